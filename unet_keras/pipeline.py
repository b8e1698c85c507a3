"""Where text, network and sampling meet: pictures together with what each word did to them."""

from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.loop import Frame
from unet_keras.nn.taps import attention_taps


class Attended(NamedTuple):
    """Images sampled from prompts, and where they looked at each word."""

    images: np.ndarray  # (N, H, W, C) uint8, as generate gives them; channels first where the network's are
    words: list[list[str]]  # of each image L words, "" for marks and padding
    maps: np.ndarray  # (N, H, W, L) float32: the share of a pixel's attention that went to a word; sums to 1 over L


_TAPS = WeakKeyDictionary()
"""The tapped form of each network that was asked for one, so that sampling is compiled once."""


def attention(model, prompts, **options) -> Attended:
    """Sample from prompts and tell which pixels looked at which word; the options are those of ``denoising``.

    The cross-attention weights of every network call that made the images (of the conditional half, where there is
    guidance), averaged over heads, layers and calls, brought to the images' size bilinearly (Tang et al. 2023).
    ``prompts`` may be a dictionary with other conditions beside ``"prompt"``.

    Raises ValueError for a model without an encoder, or whose encoder does not tell its words, or without
    cross-attention; for conditions without prompts; and where ``generate`` does.
    """
    words = _words(model, prompts)
    total, calls = 0.0, 0
    for frame, maps in attending(model, prompts, **options):
        total, calls, x = total + maps, calls + 1, frame.x
    return Attended(model.values.sampled(ops.convert_to_numpy(x)), words, (total / calls).astype("float32"))


def _words(model, prompts):
    """Name the words of prompts, before anything is sampled."""
    if model.encoder is None:
        raise ValueError("attention needs a model that reads prompts: DiffusionModel(..., encoder=...).")
    if not hasattr(model.encoder, "words"):
        raise ValueError(f"attention needs an encoder with words(prompts); {type(model.encoder).__name__} has none.")
    texts = prompts.get("prompt") if isinstance(prompts, dict) else prompts
    if not isinstance(texts, list | tuple | np.ndarray):
        raise ValueError(
            f'attention needs prompts: a list of texts, or {{"prompt": texts, ...}}, got {prompts!r:.100}.'
        )
    return model.encoder.words(texts)


def attending(model, prompts, **options) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield what ``denoising`` does, and with each frame the maps of that call alone, (N, H, W, L) float32."""
    if model.averaged not in _TAPS:
        _TAPS[model.averaged] = attention_taps(model.averaged)
    rows_first = keras.config.image_data_format() == "channels_last"
    for frame in model.denoising(prompts, network=_TAPS[model.averaged], **options):
        height, width = frame.x.shape[1:3] if rows_first else frame.x.shape[2:]
        yield frame, np.mean([_upsampled(weights, height, width) for weights in frame.extras], axis=0)


def _upsampled(weights, height, width):
    """(N, h * w, L) -> (N, height, width, L), for the h x w that halving the image's size leads to."""
    count, pixels, tokens = weights.shape
    sizes = [(-(-height // 2**k), -(-width // 2**k)) for k in range(16)]
    h, w = next((size for size in sizes if size[0] * size[1] == pixels), (None, None))
    if h is None:
        raise ValueError(f"attention over {pixels} pixels is none of an image of {height} x {width} that was halved.")
    small = ops.reshape(weights, (count, h, w, tokens))
    options = {"interpolation": "bilinear", "data_format": "channels_last"}
    return ops.convert_to_numpy(ops.image.resize(small, (height, width), **options))
