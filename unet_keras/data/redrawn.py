"""Images whose conditions are drawn anew each epoch: other captions for the same picture, or pictures changed."""

from collections.abc import Callable, Mapping

import numpy as np

from unet_keras.checks import check_counts, check_seed
from unet_keras.data.epochs import EpochDataset

Conditions = Mapping[str, np.ndarray]
Draw = Callable[[np.random.Generator], Conditions | tuple[np.ndarray, Conditions]]


class Redrawn(EpochDataset):
    """Images (N, H, W, C) uint8 and ``draw(rng) -> {name: array (N, ...)}``, called at the start of each epoch.

    ``draw`` may also give ``(images, {name: array})``: as many images, shown in the epoch instead of those given.
    A batch is a function of (seed, epoch, index) alone. Item i is ``(images, {name: array})``.

        Redrawn(images, lambda rng: encoder(captions(rng)))

    Raises ValueError where ``draw`` gives other than N rows or no {name: array}, for a ``batch_size`` below 1 and for
    a negative seed.
    """

    def __init__(self, images: np.ndarray, draw: Draw, *, batch_size: int = 32, seed: int = 0):
        super().__init__()
        check_counts(batch_size=batch_size)
        check_seed(seed)
        self.images, self.batch_size = images, batch_size
        self._draw, self._seed, self._drawn = draw, seed, None
        self._draw_epoch()

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        if self._drawn != self._epoch:
            self._draw_epoch()
        first = range(0, len(self.images), self.batch_size)[index]
        chosen = self._order[first : first + self.batch_size]
        return self._shown[chosen], {name: values[chosen] for name, values in self._conditions.items()}

    def _draw_epoch(self):
        """Draw the epoch's order, conditions and, where they are drawn, images."""
        rng = np.random.default_rng([self._seed, self._epoch])
        self._order, drawn = rng.permutation(len(self.images)), self._draw(rng)
        self._shown, conditions = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (self.images, drawn)
        if not isinstance(conditions, Mapping):
            kind = type(conditions).__name__
            raise ValueError(f"draw must give {{name: array}}, or images and that, got a {kind}: encode texts first.")
        self._conditions = {name: np.asarray(values) for name, values in conditions.items()}
        for name, values in {"images": self._shown, **self._conditions}.items():
            if np.shape(values)[:1] != (len(self.images),):
                raise ValueError(
                    f"draw gave {name!r} of shape {np.shape(values)}: it needs a row for each of the "
                    f"{len(self.images)} images."
                )
        self._drawn = self._epoch
