"""A folder of pictures too large for memory, as a dataset for `model.fit`: decoded when needed, in several processes.

Batch k, counted from the beginning of training, is a function of (seed, k) alone, the same that `image_folder` gives,
whatever the number of processes and wherever training is taken up again. In memory are the images' names in one array,
an epoch's order, the conditions, and the few batches that are decoded ahead.
"""

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from numbers import Integral
from pathlib import Path

import keras
import numpy as np

from unet_keras.data.contents import check_memory, classes, read_names, report
from unet_keras.data.decoders import Decoders
from unet_keras.data.folder import check_counts, checked_root, checked_size, named_arrays, order_of
from unet_keras.data.listing import Names

AHEAD = 3
"""Batches that are decoded before they are asked for."""

MOST_BROKEN = 100
"""Files in a row that cannot be read before it is the folder that is at fault."""


class ImageStream(keras.utils.PyDataset):
    """The images of a folder in batches without end, read as they are needed; made by `image_stream`.

    Item k is `(images,)` or `(images, {name: array})`, the k-th batch after `start`. An epoch has `steps` batches, the
    last of which may be smaller.

    names          relative to the folder, sorted: a sequence of N str, held as one array
    labels, class_names, captions, conditions      as in `image_folder`
    start          batches that came before item 0
    """

    num_batches = None  # of Keras: without end, or it would ask for batches in an order of its own

    def __init__(self, root, *, size, batch_size, shuffle, flip, conditions, seed, workers, start):
        super().__init__(workers=1)  # see ImageFolder
        found, captions, left_out = read_names(root)
        self.root, self.batch_size = root, batch_size
        self.names = found if captions is None else Names(captions)
        self.captions = None if captions is None else [captions[name] for name in self.names]
        report("image_stream", root, len(self.names), left_out)
        self.labels, self.class_names = classes(found, self.names)
        self.conditions = None if conditions is None else named_arrays(conditions(self), len(self.names))
        self.steps = -(-len(self.names) // batch_size)
        self.start = _checked_start(start, self.steps)
        self._order = lru_cache(2)(partial(order_of, seed, count=len(self.names), shuffle=shuffle, flip=flip))
        self._decoders, self._broken = Decoders(*size, workers), {}
        self._ahead, self._lock = {}, threading.Lock()

    @property
    def paths(self) -> list[Path]:
        """The files, as `image_folder` has them: a list made anew, for folders that are not that large."""
        return [self.root / name for name in self.names]

    def position(self, batches: int) -> tuple[int, int]:
        """Say where (epoch, batch) one is after so many batches: what to give as `start` to go on from there."""
        return divmod(self.start + batches, self.steps)

    def __getitem__(self, index):
        number = self.start + index
        with self._lock:
            asked = self._ahead.pop(number, None) or self._ask(number)
            wanted = range(number + 1, number + 1 + AHEAD)
            kept = {k: v for k, v in self._ahead.items() if k in wanted}
            self._ahead = kept | {k: self._ask(k) for k in wanted if k not in kept}
        chosen, images = self._read(*asked)
        if self.conditions is None:
            return (images,)
        return images, {name: values[chosen] for name, values in self.conditions.items()}

    def _ask(self, number):
        """Have a batch decoded -> the images' indices, which are mirrored, and futures of their pixels."""
        epoch, batch = divmod(number, self.steps)
        order, flipped = self._order(epoch)
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
            index = (index + 1) % len(self.names)
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
    start: tuple[int, int] = (0, 0),
) -> ImageStream:
    """List the pictures under a folder of any size, and read them at one size while `model.fit` trains on them.

        stream = image_stream("photos", 64, batch_size=64)
        model.fit(stream, steps_per_epoch=stream.steps, epochs=10)

    The arguments are those of `image_folder`, but for `workers`, the processes that decode, None for one a core; and
    `start`, the epoch and the batch in it, from 0, to begin with: `stream.position(n)` says where n batches lead. The
    same seed gives the same batches, and the same as `image_folder` gives. To validate, turn `shuffle` and `flip` off
    and give `validation_steps`.

    A file that cannot be read is found when it is needed: the next one takes its place, conditions included, and a
    warning names it. What `image_folder` says of links, metadata and errors holds here too.
    """
    root, size = checked_root(path), checked_size(size)
    workers = os.cpu_count() if workers is None else workers
    check_counts(batch_size=batch_size, workers=workers)
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
        start=start,
    )


def _checked_start(start, steps):
    """Turn (epoch, batch) into a number of batches."""
    whole = isinstance(start, tuple | list) and len(start) == 2 and all(isinstance(n, Integral) for n in start)
    if not whole or start[0] < 0 or not 0 <= start[1] < steps:
        raise ValueError(f"start: received {start!r}; give (epoch, batch), the batch of 0 to {steps - 1}.")
    return int(start[0]) * steps + int(start[1])
