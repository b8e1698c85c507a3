"""A folder of pictures too large for memory, as a dataset for `model.fit`: decoded when needed, in several processes.

A batch is a function of (seed, epoch, index) alone, the same that `image_folder` gives, whatever the number of
processes and wherever training is taken up again. In memory are the images' names in one array, an epoch's order, the
conditions, and the few batches that are decoded ahead.
"""

import copy
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from unet_keras.checks import check_counts, check_open_counts, check_seed
from unet_keras.data.contents import check_memory, classes, read_names, report
from unet_keras.data.decoders import Decoders
from unet_keras.data.epochs import EpochDataset
from unet_keras.data.folder import (
    check_function,
    checked_root,
    checked_size,
    divided,
    named_arrays,
    order_of,
)
from unet_keras.data.listing import Names

AHEAD = 3
"""Batches that are decoded before they are asked for, as long as they are asked for in order."""

MOST_BROKEN = 100
"""Files in a row that cannot be read before it is the folder that is at fault."""


class ImageStream(EpochDataset):
    """The images of a folder in batches, read as they are needed, in a new order each epoch; made by `image_stream`.

    Item i is `(images,)` or `(images, {name: array})`, the epoch's i-th batch; the last of all images may be smaller.

    names          relative to the folder, sorted: a sequence of N str, held as one array
    labels, class_names, captions, conditions      as in `image_folder`
    """

    def __init__(self, root, *, size, batch_size, shuffle, flip, conditions, seed, workers, steps):
        super().__init__()
        found, captions, left_out = read_names(root)
        self.root, self.batch_size = root, batch_size
        self.names = found if captions is None else Names(captions)
        self.captions = None if captions is None else [captions[name] for name in self.names]
        report("image_stream", root, len(self.names), left_out)
        self.labels, self.class_names = classes(found, self.names)
        self.conditions = None if conditions is None else named_arrays(conditions(self), self.count)
        self._seed, self._decoders, self._broken = seed, Decoders(*size, workers), {}
        self._begin(shuffle, flip, steps)

    def _begin(self, shuffle, flip, steps):
        """Set what the order depends on, and what has been asked for: nothing yet."""
        self._shuffle, self._flip, self._steps = shuffle, flip, steps
        self._order = lru_cache(2)(partial(order_of, self._seed, count=self.count, shuffle=shuffle, flip=flip))
        self._last, self._ahead, self._lock = None, {}, threading.Lock()
        self.set_epoch(0)

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The files, as `image_folder` has them: a list made anew, for folders that are not that large."""
        return [self.root / name for name in self.names]

    def __len__(self):
        return self._steps or self._once()

    def _once(self):
        """How many batches show each image once."""
        return -(-self.count // self.batch_size)

    def split(self, share: float) -> tuple["ImageStream", "ImageStream"]:
        """Divide into a stream to train on and one of a share of the images, in order and not mirrored, to validate.

        Which images are held out is as in `image_folder`; the same processes read both.
        """
        known, held = divided(self._seed, self.count, share)
        return self._part(known, self._shuffle, self._flip, self._steps), self._part(held, False, False, None)

    def _part(self, chosen, *options):
        part = copy.copy(self)
        part.names = self.names.taken(chosen)
        part.labels = None if self.labels is None else self.labels[chosen]
        part.captions = None if self.captions is None else [self.captions[i] for i in chosen]
        if self.conditions is not None:
            part.conditions = {name: values[chosen] for name, values in self.conditions.items()}
        part._begin(*options)
        return part

    def __getitem__(self, index):
        number = self._epoch * len(self) + range(len(self))[index]
        with self._lock:
            asked = self._ahead.pop(number, None) or self._ask(number)
            in_order, self._last = number - 1 == self._last, number
            following = [k for k in range(number + 1, number + 1 + AHEAD) if in_order or k in self._ahead]
            self._ahead = {k: self._ahead.get(k) or self._ask(k) for k in following}
        chosen, images = self._read(*asked)
        if self.conditions is None:
            return (images,)
        return images, {name: values[chosen] for name, values in self.conditions.items()}

    def _ask(self, number):
        """Have a batch, counted from epoch 0 on, decoded -> indices, which are mirrored, and futures of the pixels."""
        done, batch = divmod(number, self._once())
        order, flipped = self._order(done)
        chosen = order[batch * self.batch_size :][: self.batch_size]
        return chosen, flipped[chosen], [self._submit(i) for i in chosen]

    def _submit(self, index):
        return self._decoders.submit(os.path.join(self.root, self.names[index]))

    def _read(self, chosen, flipped, futures):
        """Wait for a batch -> indices and pixels; in the place of a file that cannot be read, the next one's."""
        found = [self._readable(index, future) for index, future in zip(chosen, futures, strict=True)]
        images = np.stack([pixels for _, pixels in found])
        images[flipped] = images[flipped, :, ::-1]
        return np.array([index for index, _ in found]), images

    def _readable(self, index, future):
        for _ in range(MOST_BROKEN):
            pixels = future.result()
            if not isinstance(pixels, str):
                return index, pixels
            self._note(self.names[index], pixels)
            index = (index + 1) % self.count
            future = self._submit(index)
        raise ValueError(f"path: {MOST_BROKEN} images in a row cannot be read in {str(self.root)!r}: {pixels:.200}.")

    def _note(self, name, reason):
        if name not in self._broken:
            self._broken[name] = reason
            warnings.warn(f"image_stream puts the next image in the place of {name}: {reason}", stacklevel=2)


Conditions = Callable[[ImageStream], Mapping[str, np.ndarray]]


def image_stream(
    path: str | os.PathLike,
    size: int | tuple[int, int],
    *,
    batch_size: int = 32,
    shuffle: bool = True,
    flip: bool = True,
    conditions: Conditions | None = None,
    seed: int = 0,
    workers: int | None = None,
    steps: int | None = None,
) -> ImageStream:
    """List the pictures under a folder of any size, and read them at one size while `model.fit` trains on them.

        stream = image_stream("photos", 64, batch_size=64)
        model.fit(stream, epochs=10)

    The arguments are those of `image_folder`, but for `workers`, the processes that decode, None for one a core; and
    `steps`, how many batches are an epoch of `fit`, which then goes on where the last one ended: None for each image
    once. The same seed gives the same batches, and the same as `image_folder` gives. With `Checkpoint`, training goes
    on at the batch at which it was cut off. For validation, `split` it, or turn `shuffle` and `flip` off.

    Batches are decoded ahead while they are asked for in order: `fit` of a model that is no `DiffusionModel` does so if
    it is told `shuffle=False`.

    A file that cannot be read is found when it is needed: the next one takes its place, conditions included, and a
    warning names it. What `image_folder` says of links, metadata and errors holds here too.
    """
    root, size = checked_root(path), checked_size(size)
    workers = os.cpu_count() if workers is None else workers
    check_counts(batch_size=batch_size, workers=workers)
    check_open_counts(steps=steps)
    check_seed(seed)
    check_function(conditions)
    check_memory(batch_size, *size)
    return ImageStream(
        root,
        size=size,
        batch_size=batch_size,
        shuffle=shuffle,
        flip=flip,
        conditions=conditions,
        seed=seed,
        workers=workers,
        steps=steps,
    )
