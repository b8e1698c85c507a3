"""Prompts to rows of token numbers: a tokenizer, whoever wrote it, and the frame of special tokens around the prompt.

A row of length L is ``start`` (where the family has one), the prompt's tokens as far as there is room, ``end``, and
``pad`` to the end. A prompt that is too long loses its tail, with a warning, never the ``end``.
"""

import hashlib
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_keras.checks import is_int
from unet_keras.files import read_json
from unet_keras.text.encoder import warn_if_cut
from unet_keras.text.hub import keras_hub


class Vocabulary(NamedTuple):
    """A tokenizer as the encoders use it; ``split`` gives tokens without the special ones around them."""

    split: Callable[[list[str]], list[list[int]]]
    piece: Callable[[int], str]  # what a token stands for, to be read by people
    number: Callable[[str], int | None]
    start: int | None
    end: int
    pad: int
    size: int
    digest: str  # two tokenizers with the same digest give the same numbers


class Frame(NamedTuple):
    """The special tokens of a family, by name; ``start`` may be None."""

    start: str | None
    end: str
    pad: str


def read_vocabulary(folder, frame: Frame, from_files: Callable) -> Vocabulary:
    """Read a folder's tokenizer.json, or the older files that ``from_files(folder)`` gives to KerasHub's tokenizer.

    Raises ValueError where neither is there or a special token of ``frame`` is not in the vocabulary.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        return of_tokenizer(_read_tokenizer(folder / "tokenizer.json"), frame)
    return of_keras_hub(from_files(folder), frame)


def pad_token(folder, default: str) -> str:
    """Give the name of the token that a folder's tokenizer pads with."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = read_json(Path(folder) / name) if (Path(folder) / name).is_file() else {}
        if config.get("pad_token"):
            return config["pad_token"]["content"] if isinstance(config["pad_token"], dict) else config["pad_token"]
    return default


def _read_tokenizer(path):
    keras_hub()  # for its error message: the package tokenizers comes with it
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def of_tokenizer(tokenizer, frame: Frame) -> Vocabulary:
    """Wrap a tokenizer of the package tokenizers."""

    def split(prompts):
        return [row.ids for row in tokenizer.encode_batch(prompts, add_special_tokens=False)]

    def piece(token):
        name = tokenizer.id_to_token(token)
        return _readable(name if name.startswith("##") else tokenizer.decode([token]) or name)

    size = tokenizer.get_vocab_size(with_added_tokens=True)
    return _framed(split, piece, tokenizer.token_to_id, size, tokenizer.to_str(), frame)


def of_keras_hub(tokenizer, frame: Frame) -> Vocabulary:
    """Wrap a tokenizer of KerasHub, on its way through plain Python."""
    names = list(tokenizer.get_vocabulary())
    byte_pairs = hasattr(tokenizer, "merges")

    def split(prompts):
        spaced = [" ".join(prompt.split()) for prompt in prompts]  # KerasHub's BERT does not part words at U+3000
        return [[int(token) for token in row] for row in tokenizer.tokenize(spaced)]

    def piece(token):
        return _readable(tokenizer.detokenize([token]) if byte_pairs else tokenizer.id_to_token(token))

    def number(name):
        return tokenizer.token_to_id(name) if name in known else None

    known = set(names)
    kind = {k: v for k, v in tokenizer.get_config().items() if isinstance(v, bool | int)}
    text = json.dumps([type(tokenizer).__name__, kind, names, list(getattr(tokenizer, "merges", []))], sort_keys=True)
    return _framed(split, piece, number, len(names), text, frame)


def _readable(name):
    return name.replace("</w>", "").replace("▁", " ").removeprefix("##").strip()


def _framed(split, piece, number, size, text, frame):
    special = {role: name and number(name) for role, name in frame._asdict().items()}
    missing = [frame._asdict()[role] for role, token in special.items() if token is None and frame._asdict()[role]]
    if missing:
        raise ValueError(f"The vocabulary has no {missing}, the special tokens of this family of encoders.")
    digest = hashlib.sha256(json.dumps([text, special], sort_keys=True).encode()).hexdigest()
    return Vocabulary(split, piece, number, **special, size=size, digest=digest)


# ---- rows -------------------------------------------------------------------------------------------------------


def rows(vocabulary: Vocabulary, prompts: list[str], length: int):
    """Give token numbers (N, L) int32 and which of them are no padding (N, L) bool."""
    bodies, room = vocabulary.split(prompts), _room(vocabulary, length)
    _warn(vocabulary, prompts, bodies, room, length)
    first = [] if vocabulary.start is None else [vocabulary.start]
    lines = [[*first, *body[:room], vocabulary.end] for body in bodies]
    real = np.array([[place < len(line) for place in range(length)] for line in lines])
    tokens = [line + [vocabulary.pad] * (length - len(line)) for line in lines]
    return np.array(tokens, "int32"), real


def words(vocabulary: Vocabulary, prompts: list[str], length: int) -> list[list[str]]:
    """Give for each prompt the L pieces that its row stands for, "" for the special tokens and the padding."""
    room, first = _room(vocabulary, length), [] if vocabulary.start is None else [""]
    lines = [[*first, *map(vocabulary.piece, body[:room])] for body in vocabulary.split(prompts)]
    return [line + [""] * (length - len(line)) for line in lines]


def _room(vocabulary, length):
    return length - 1 - (vocabulary.start is not None)


def _warn(vocabulary, prompts, bodies, room, length):
    def kept(prompt, body):
        if len(body) <= room:
            return len(prompt.split())
        ends = accumulate(len(tokens) for tokens in vocabulary.split(prompt.split()))
        return min(sum(end <= room for end in ends), len(prompt.split()) - 1)

    if any(len(body) > room for body in bodies):
        warn_if_cut(prompts, [kept(p, b) for p, b in zip(prompts, bodies, strict=True)], length)


def check_fits(vocabulary: Vocabulary, embeddings: int, length: int, positions: int | None):
    """Raise ValueError unless the tokens fit the embedding table, and ``length`` the positions that the model knows."""
    if not is_int(length, 3) or length > (positions or length):
        most = f"; the model knows {positions} places" if positions else ""
        raise ValueError(f"length must be a whole number of tokens, 3 or more, got {length!r}{most}.")
    if vocabulary.size > embeddings:
        raise ValueError(
            f"The tokenizer knows {vocabulary.size} tokens and the model {embeddings}: they are no pair; give the "
            "tokenizer's folder with tokenizer=."
        )
