"""CLIP through KerasHub, for the CLIP score: pictures and prompts to embeddings that can be compared.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image

from unet_keras.metrics.extractors import Extractor, check_pictures

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, of values in [0, 1]: section "Preprocessing" of its model card."""


class Clip(NamedTuple):
    """Both halves of a CLIP; each gives embeddings (N, D), which are not normalised."""

    images: Extractor  # (N, H, W, 3) uint8 -> (N, D)
    texts: Callable[[list[str]], np.ndarray]


def load_clip(preset: str = "clip_vit_base_patch16") -> Clip:
    """Load a CLIP by the name, the handle or the folder of a KerasHub preset."""
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("CLIP needs KerasHub: pip install unet-keras[text].") from error
    backbone = keras_hub.models.CLIPBackbone.from_preset(preset)
    return of_parts(backbone, keras_hub.models.CLIPTokenizer.from_preset(preset), name=str(preset))


def of_parts(backbone, tokenizer, *, name: str) -> Clip:
    """Make a Clip of KerasHub's CLIPBackbone and CLIPTokenizer."""
    size, length = backbone.vision_encoder.image_shape[:2], backbone.text_encoder.max_sequence_length
    pixels, tokens = keras.Input((*size, 3), name="images"), keras.Input((length,), dtype="int32", name="token_ids")
    see = keras.Model(pixels, backbone.get_vision_embeddings(pixels))
    read = keras.Model(tokens, backbone.get_text_embeddings(tokens))

    def images(given):
        given = np.asarray(given)
        check_pictures(given)
        return see.predict(np.stack([_prepared(image, size) for image in given]), batch_size=32, verbose=0)

    def texts(prompts):
        return read.predict(_rows(tokenizer, list(prompts), length), batch_size=32, verbose=0)

    return Clip(Extractor(name, images), texts)


def _prepared(image, size):
    """Resize the shorter side, bicubic with antialiasing, cut out the middle, and normalise."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    height, width = size
    scale = max(height / picture.height, width / picture.width)
    wide, high = (max(round(side * scale), least) for side, least in ((picture.width, width), (picture.height, height)))
    left, top = (wide - width) // 2, (high - height) // 2
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + width, top + height))
    return ((np.asarray(picture, "float32") / 255.0 - MEAN) / STD).astype("float32")


def _rows(tokenizer, prompts, length):
    """Token numbers (N, length): start, the prompt as far as there is room, and end, again and again.

    Warns of prompts that are cut.
    """
    end = tokenizer.end_token_id
    rows, longest = np.full((len(prompts), length), end, "int32"), 0
    for row, body in zip(rows, tokenizer.tokenize([" ".join(p.lower().split()) for p in prompts]), strict=True):
        body = [tokenizer.start_token_id, *map(int, body)]
        longest = max(longest, len(body) + 1)
        row[: length - 1][: len(body)] = body[: length - 1]
    if longest > length:
        warnings.warn(f"Prompts of up to {longest} tokens are cut to CLIP's {length}, marks included.", stacklevel=3)
    return rows
