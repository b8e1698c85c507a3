"""What turns images into features: any callable will do; here is a small one for 32 x 32 images, and the cache.

The small extractor is a classifier of the built-in emoji, made by ``python benchmarks/extractor.py``. Its FID compares
with its own alone: never with figures of InceptionV3, of which papers speak.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from unet_keras.checks import check_counts

WEIGHTS = Path(__file__).with_name("emoji_features.npz")
PROBES = 4
"""Images, spread over the set, by which features that are kept are told from those of an extractor of the same name."""
GROUPS = 9
"""The kinds of the built-in emoji, which the small extractor tells apart."""


@dataclass(frozen=True)
class Extractor:
    """A callable images (N, H, W, C) uint8 -> features (N, D), with a name that reports show."""

    name: str
    function: Callable

    def __call__(self, images) -> np.ndarray:
        return self.function(images)


def name_of(extractor) -> str:
    """Give the name that reports show: an Extractor's own, or that of a function."""
    return getattr(extractor, "name", None) or getattr(extractor, "__name__", type(extractor).__name__)


def features_of(extractor, images, *, batch_size: int = 256, cache: str | os.PathLike | None = None) -> np.ndarray:
    """Take the features (N, D) float32 of images, ``batch_size`` at a time.

    ``cache``: a folder that keeps them, under a hash of the images' bytes, of the extractor's name and of what it makes
    of a few of the images: other images or other weights are another file. Raises ValueError for features that are not
    (N, D), or hold NaN, for no images, and for batches of no size.
    """
    images = _array(images)
    check_counts(batch_size=batch_size)
    if not len(images):
        raise ValueError("images must be one or more, got none.")
    if cache is None:
        return _extracted(extractor, images, batch_size)
    file = Path(cache) / f"{_content_hash(extractor, images)}.npy"
    if file.is_file():
        return np.load(file, allow_pickle=False)
    features = _extracted(extractor, images, batch_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as stream:
        np.save(stream, features)
    os.replace(part, file)
    return features


def _array(images):
    if not hasattr(images, "__array__") and not isinstance(images, list | tuple):
        raise ValueError(
            f"images must be an array (N, H, W, C), got a {type(images).__name__}: of an image_folder give .images."
        )
    return np.asarray(images)


def _extracted(extractor, images, batch_size):
    parts = [np.asarray(extractor(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
    if any(part.ndim != 2 for part in parts) or sum(map(len, parts)) != len(images):
        raise ValueError(
            f"{name_of(extractor)} must give features ({len(images)}, D), got shapes {[p.shape for p in parts][:3]}."
        )
    features = np.concatenate(parts).astype("float32")
    if not np.isfinite(features).all():
        raise ValueError(f"{name_of(extractor)} gives NaN or infinity.")
    return features


def _content_hash(extractor, images):
    """The name of a set's file; several images are probed, as one, a black one say, may tell no extractor from another.

    Three digits, so that rounding, which differs between machines, seldom makes another file.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, PROBES).astype(int))
    probe = np.asarray(extractor(images[chosen])).astype("float32")
    digits = np.char.mod("%.2e", probe + 0.0)  # -0 is 0
    found = hashlib.sha256(f"{name_of(extractor)} {images.shape} {images.dtype} {digits.tolist()}".encode())
    found.update(np.ascontiguousarray(images))
    return found.hexdigest()


def check_pictures(images, channels: int = 3):
    """Raise ValueError unless images are uint8 (N, H, W, C) of so many channels, or of one."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, channels):
        raise ValueError(
            f"images must be uint8 (N, H, W, {channels}), or of one channel; got {images.dtype} {images.shape}."
        )


def of_network(name: str, network, output: str, prepare: Callable = np.asarray) -> Extractor:
    """Make an extractor of one named output of a network that takes images 0 ... 255, ``prepare``d, 64 at a time."""
    channels = network.input.shape[-1]

    def function(images):
        images = _array(images)
        check_pictures(images, channels)
        images = np.repeat(images, channels, axis=-1) if images.shape[-1] == 1 else images
        prepared = (prepare(images[i : i + 64]) for i in range(0, len(images), 64))
        return np.concatenate([_asked(batch) for batch in prepared])

    def _asked(batch):
        if batch.shape[1:] != network.input.shape[1:]:
            raise ValueError(f"{name} takes images of shape {network.input.shape[1:]}, got {batch.shape[1:]}.")
        return network.predict_on_batch(batch.astype("float32"))[output]

    return Extractor(name, function)


# ---- the small extractor --------------------------------------------------------------------------------------------


def emoji_network(dropout: float = 0.0) -> keras.Model:
    """Build the classifier, with random weights: images (N, 32, 32, 3) 0 ... 255 -> features (N, 128), logits."""
    last, plain = {"data_format": "channels_last"}, {"dtype": "float32"}
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, **plain)(image)
    for number, filters in enumerate((32, 64, 96, 128)):
        options = {"padding": "same", "activation": "relu", "name": f"conv{number}"}
        x = keras.layers.Conv2D(filters, 3, **options, **last, **plain)(x)
        x = keras.layers.MaxPooling2D(**last, **plain)(x) if number < 3 else x
    features = keras.layers.GlobalAveragePooling2D(**last, **plain)(x)
    logits = keras.layers.Dense(GROUPS, name="logits", **plain)(keras.layers.Dropout(dropout, **plain)(features))
    return keras.Model(image, {"features": features, "logits": logits}, name="emoji_network")


def emoji_features() -> Extractor:
    """Give the small extractor, 128 features of 32 x 32 RGB images, for tests and for following one training.

    It knows emoji, not photographs. Its FID, KID, precision and recall compare only with its own, of the same n.
    """
    return of_network("emoji-features", _trained(), "features")


def emoji_logits() -> Extractor:
    """Give the small extractor's logits of nine kinds of emoji, for ``inception_score``. Compares only with its own."""
    return of_network("emoji-logits", _trained(), "logits")


def _trained():
    network = emoji_network()
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        for variable in network.weights:
            variable.assign(arrays[variable.path].astype("float32"))
    return network
