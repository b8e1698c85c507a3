"""A folder of pictures as a dataset for `model.fit`: decoded once, held as one uint8 array, mirrored at random.

Labels come from sub-folders, captions from Hugging Face metadata files; `conditions` turns either into named arrays.
A batch is a function of (seed, epoch, index) alone, so neither the backend nor threads can change it.
"""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from unet_keras.checks import check_counts, check_open_counts, check_seed, is_whole
from unet_keras.data.contents import Contents, read_contents
from unet_keras.data.epochs import EpochDataset


class ImageFolder(EpochDataset):
    """The images of a folder in batches, shuffled and mirrored anew each epoch; made by `image_folder`.

    The attributes are those of `Contents`, and `conditions`: None or a dict of arrays of first axis N. Item i is
    `(images,)` or `(images, {name: array})`, at most `batch_size` long.
    """

    def __init__(self, contents: Contents, *, batch_size, shuffle, flip, conditions, seed):
        super().__init__()
        self.images, self.paths, self.labels, self.class_names, self.captions = contents
        self.batch_size = batch_size
        self._shuffle, self._flip, self._seed = shuffle, flip, seed
        self.conditions = None if conditions is None else named_arrays(conditions(self), len(self.images))
        self.set_epoch(0)

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.images)

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        first = range(0, len(self.images), self.batch_size)[index]
        chosen = self._order[first : first + self.batch_size]
        images, flipped = self.images[chosen], self._flipped[chosen]
        images[flipped] = images[flipped, :, ::-1]
        if self.conditions is None:
            return (images,)
        return images, {name: values[chosen] for name, values in self.conditions.items()}

    def split(self, share: float) -> tuple["ImageFolder", "ImageFolder"]:
        """Divide into a dataset to train on and one of a share of the images, in order and not mirrored, to validate.

        Which images are held out depends on the seed alone. Raises ValueError unless both get one at least.
        """
        known, held = divided(self._seed, self.count, share)
        return self._part(known), self._part(held, shuffle=False, flip=False)

    def _part(self, chosen, shuffle=None, flip=None):
        part = copy.copy(self)
        part.images, part.paths = self.images[chosen], [self.paths[i] for i in chosen]
        part.labels = None if self.labels is None else self.labels[chosen]
        part.captions = None if self.captions is None else [self.captions[i] for i in chosen]
        if self.conditions is not None:
            part.conditions = {name: values[chosen] for name, values in self.conditions.items()}
        part._shuffle = self._shuffle if shuffle is None else shuffle
        part._flip = self._flip if flip is None else flip
        part.set_epoch(0)
        return part

    def set_epoch(self, epoch):
        """Draw all that is random in an epoch, so that the order in which batches are asked for cannot matter."""
        super().set_epoch(epoch)
        self._order, self._flipped = order_of(self._seed, epoch, len(self.images), self._shuffle, self._flip)


def order_of(seed: int, epoch: int, count: int, shuffle: bool, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw an epoch of `count` images: their order, and for each image whether it is mirrored."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(count) if shuffle else np.arange(count)
    return order, rng.random(count) < (0.5 if flip else 0.0)


def divided(seed: int, count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw which of `count` images to train on, and the share of them to hold out; each sorted."""
    held = round(share * count)
    if not 0 < held < count:
        raise ValueError(f"share: {share} of {count} images makes {held}; both parts need one at least.")
    order = np.random.default_rng([seed, count, held]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


Conditions = Callable[[ImageFolder], Mapping[str, np.ndarray]]


def image_folder(
    path: str | os.PathLike,
    size: int | tuple[int, int],
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    flip: bool = True,
    conditions: Conditions | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> ImageFolder:
    """Read every picture under a folder, at one size, into a dataset for `model.fit`.

    `size` is a side or (height, width), in pixels: each image is scaled until its shorter side fits, then cropped
    around its centre. N images take N * height * width * 3 bytes of memory. `flip` mirrors each image, left to right,
    in half of the epochs: not for lettering, nor for captions that say left or right. For validation, turn `shuffle`
    and `flip` off. `conditions` is called once, with the dataset, whose `labels`, `class_names` and `captions` it may
    use; it returns a dict of arrays of first axis N, as `by_label` does. `workers` threads decode; None: one a core.

    The same seed gives the same batches in each epoch again, in the same order. Other models than `DiffusionModel` ask
    for them in an order of Keras's, unless their `fit` is told `shuffle=False`; `keras.utils.set_random_seed` makes
    that order the same again too.

    Files that cannot be read, links out of the folder and, where there are metadata files, images without a row are
    left out and named in one warning. Arguments and metadata that do not fit, and a folder without images, are a
    ValueError.
    """
    root, (height, width) = checked_root(path), checked_size(size)
    check_counts(batch_size=batch_size)
    check_open_counts(workers=workers)
    check_seed(seed)
    check_function(conditions)
    return ImageFolder(
        read_contents(root, height, width, workers=workers),
        batch_size=batch_size,
        shuffle=shuffle,
        flip=flip,
        conditions=conditions,
        seed=seed,
    )


def by_label(folder: ImageFolder) -> dict[str, np.ndarray]:
    """Give the class of each image as the condition `label`, (N,) int32: for `image_folder(…, conditions=by_label)`.

    Raises ValueError where an image lies in no class sub-folder.
    """
    if folder.labels is None:
        stray = min(folder.paths, key=lambda path: len(path.parts))
        raise ValueError(
            f"by_label: {stray} lies in no class sub-folder; put the images of each class in one of its own."
        )
    return {"label": folder.labels}


def checked_root(path: str | os.PathLike) -> Path:
    """Return an existing folder as a Path."""
    root = Path(path)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ValueError(f"path: there is {found} at {str(path)!r}; give a folder of images.")
    return root


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a side or a pair as (height, width)."""
    sides = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(sides) != 2 or not all(is_whole(side) for side in sides):
        raise ValueError(f"size: received {size!r}; give a side or (height, width), whole numbers of at least 1.")
    return tuple(int(side) for side in sides)


def check_function(conditions) -> None:
    """Raise ValueError unless conditions are left out, or a function."""
    if conditions is not None and not callable(conditions):
        raise ValueError(f"conditions: received {conditions!r:.100}; give a function of the dataset, such as by_label.")


def named_arrays(conditions: Mapping, count: int) -> dict[str, np.ndarray]:
    """Return conditions as NumPy arrays, once each is known to have an entry an image."""
    if not isinstance(conditions, Mapping) or not conditions:
        raise ValueError(f"conditions: the function returned {conditions!r:.200}; return a dict of named arrays.")
    arrays = {name: keras.ops.convert_to_numpy(values) for name, values in conditions.items()}
    for name, values in arrays.items():
        if values.shape[:1] != (count,):
            raise ValueError(
                f"conditions: {name!r} has shape {values.shape}; its first axis must be the {count} images."
            )
    return arrays
