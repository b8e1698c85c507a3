"""What the numbers of an image are: pixels, or a codec's latents. Data come in, and samples go out, through here."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.guidance import clipped, unclipped
from unet_keras.diffusion.named import serialized

SLACK = 1e-3
"""How far outside [-1, 1] a float image may lie: rounding of a resize, not another scale."""


@keras.saving.register_keras_serializable("unet_keras")
@dataclass(frozen=True)
class Values:
    """The range of an image's numbers, and how sampling keeps the clean estimate within it.

    bounded      uint8 in 0 ... 255 or floats in [-1, 1], sampled as uint8; or else any floats, sampled as floats
    threshold    what ``generate`` applies to the clean estimate unless told otherwise: see guidance.py; a function of
                 your own must be registered with Keras, or the model cannot be saved
    """

    bounded: bool
    threshold: Callable

    def check(self, images: np.ndarray) -> None:
        """Raise ValueError unless images are of a known type, in range, and hold no NaN."""
        if self.bounded and np.issubdtype(images.dtype, np.integer):
            low, high, want = 0, 255, "0 to 255"
        elif self.bounded and np.issubdtype(images.dtype, np.floating):
            low, high, want = -1 - SLACK, 1 + SLACK, "[-1, 1]; scale 0 to 255 with images / 127.5 - 1, or give uint8"
        elif np.issubdtype(images.dtype, np.floating):
            low, high, want = np.finfo("float32").min, np.finfo("float32").max, "float32's range"
        else:
            raise ValueError(f"images must be {'uint8 or ' if self.bounded else ''}floats, got {images.dtype}.")
        least, most = images.min(), images.max()  # NaN wherever there is a NaN
        if np.isnan(least) or np.isnan(most):
            bad = np.unique(np.argwhere(np.isnan(images))[:, 0])
            raise ValueError(f"images hold NaN, in {len(bad)} of {len(images)}, e.g. number {bad[0]}: leave those out.")
        if least < low or most > high:
            raise ValueError(f"{images.dtype} images must lie in {want}; got values from {least:.4g} to {most:.4g}.")

    def given(self, images):
        """Bring images being traced to float32, in [-1, 1] where bounded: whole numbers are 0 ... 255."""
        if self.bounded and "int" in keras.backend.standardize_dtype(images.dtype):
            return ops.cast(images, "float32") / 127.5 - 1.0
        return ops.cast(images, "float32")

    def sampled(self, images) -> np.ndarray:
        """Bring sampled images to what is handed out: uint8 in 0 ... 255 where bounded, else float32."""
        images = np.asarray(images, "float32")
        return np.clip(np.round((images + 1.0) * 127.5), 0, 255).astype("uint8") if self.bounded else images

    def get_config(self) -> dict:
        """Return the range, and the threshold by its registered name."""
        return {"bounded": self.bounded, "threshold": serialized(self.threshold)}

    @classmethod
    def from_config(cls, config: dict) -> "Values":
        """Make the values that ``get_config`` described."""
        return cls(config["bounded"], keras.saving.deserialize_keras_object(config["threshold"]))


pixels = Values(True, clipped)
"""Images: uint8, or floats in [-1, 1]."""

latents = Values(False, unclipped)
"""What a codec makes of images, e.g. Stable Diffusion's: floats that know no bounds."""
