"""Images whose conditions are drawn anew each epoch: other captions for the same picture, or pictures changed."""

from collections.abc import Callable, Mapping

import keras
import numpy as np

Conditions = Mapping[str, np.ndarray]
Draw = Callable[[np.random.Generator], Conditions | tuple[np.ndarray, Conditions]]


class Redrawn(keras.utils.PyDataset):
    """Images (N, H, W, C) uint8 and ``draw(rng) -> {name: array (N, ...)}``, called at the start of each epoch.

    ``draw`` may also give ``(images, {name: array})``: as many images, shown in the epoch instead of those given.
    A batch is a function of (seed, epoch, index) alone. Item i is ``(images, {name: array})``.

        Redrawn(images, lambda rng: encoder(captions(rng)))

    Raises ValueError where ``draw`` gives other than N rows or no {name: array}, and for a ``batch_size`` below 1.
    """

    def __init__(self, images: np.ndarray, draw: Draw, *, batch_size: int = 32, seed: int = 0):
        super().__init__(workers=1)  # see ImageFolder
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}.")
        self.images, self.batch_size = images, batch_size
        self._draw, self._seed = draw, seed
        self.set_epoch(0)

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        first = range(0, len(self.images), self.batch_size)[index]
        chosen = self._order[first : first + self.batch_size]
        return self._shown[chosen], {name: values[chosen] for name, values in self._conditions.items()}

    def on_epoch_end(self):
        """Move on to the next epoch's order and conditions."""
        self.set_epoch(self._epoch + 1)

    def set_epoch(self, epoch):
        """Draw an epoch's order, conditions and, where they are drawn, images."""
        rng = np.random.default_rng([self._seed, epoch])
        self._epoch, self._order = epoch, rng.permutation(len(self.images))
        drawn = self._draw(rng)
        self._shown, self._conditions = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (self.images, drawn)
        if not isinstance(self._conditions, Mapping):
            kind = type(self._conditions).__name__
            raise ValueError(f"draw must give {{name: array}}, or images and that, got a {kind}: encode texts first.")
        for name, values in {"images": self._shown, **self._conditions}.items():
            if len(values) != len(self.images):
                raise ValueError(f"draw gave {len(values)} rows of {name!r} for {len(self.images)} images.")
