"""The built-in images: 3,145 emoji of 32x32 on white, in two artwork styles, with captions.

Noto Emoji and Fluent Emoji, captioned with their Unicode names; `EMOJI_NOTICES` beside this file holds the licences.
Clocks and gendered roles have near twins in another split, so pixel distance alone says little about memorising.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FILE = Path(__file__).with_name("emoji32.npz")


class EmojiTable(NamedTuple):
    """The columns of the emoji, all of one length; an emoji drawn in both styles takes two rows."""

    images: np.ndarray  # (3145, 32, 32, 3) uint8, RGB on white
    captions: np.ndarray  # str: "smiling face with hearts"
    tags: np.ndarray  # str: keywords joined by "|": "cheery|face|grin"
    groups: np.ndarray  # str: one of nine kinds, "animals & nature"
    styles: np.ndarray  # str: "noto" or "flat"
    splits: np.ndarray  # str: "train", "val", "compose" or "val_style"


def emoji_table() -> EmojiTable:
    """Load every column of the built-in emoji.

    The splits: `train` (2,818); `val` (150), captions never seen, of words that are; `compose` (40), pairings of words
    never seen together, such as "green heart" (all but "blue heart", for `train` has "light blue heart"); `val_style`
    (137), captions seen in the other style only.
    """
    with np.load(_FILE, allow_pickle=False) as columns:
        text = (columns[name].astype(str) for name in ("caption", "tags", "group", "style", "split"))
        return EmojiTable(columns["image"], *text)


def load_emoji() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Load the emoji the way `keras.datasets` does: `(x_train, captions_train), (x_test, captions_test)`.

    Images are (N, 32, 32, 3) uint8, captions (N,) str; N is 2,818 for training and 150 for testing (the split `val`).
    """
    table = emoji_table()
    train, test = (table.splits == split for split in ("train", "val"))
    return (table.images[train], table.captions[train]), (table.images[test], table.captions[test])


def emoji_captions(table: EmojiTable, rng: np.random.Generator, *, never: Iterable[str] = ()) -> list[str]:
    """Draw a caption for each emoji: its name, or one to three of its keywords; at times with an article, or the style.

    ``never``: captions that no keywords are to make, whatever their order, e.g. those that a model is to be tested on;
    the name stands in their place. Raises ValueError for one caption that is no list of them.

    70% are names; 25% begin with a, an or the; 30% end with the style's word, "noto" or "flat", so that
    "red heart flat" asks for that style.
    """
    if isinstance(never, str):
        raise ValueError(f"never must be captions, got the one {never!r}: write [{never!r}].")
    never = {tuple(sorted(caption.split())) for caption in never}
    return [_caption(*row, rng, never) for row in zip(table.captions, table.tags, table.styles, strict=True)]


def _caption(name, tags, style, rng, never):
    tags = tags.split("|") if tags else [name]
    text = name if rng.random() < 0.7 else " ".join(rng.permutation(tags)[: rng.integers(1, 4)])
    begun = f"{rng.choice(['a', 'an', 'the'])} {text}" if rng.random() < 0.25 else text
    held = any(tuple(sorted(t.split())) in never for t in (text, begun))  # "a" is a blood type, too
    text = name if held else begun
    return f"{text} {style}" if rng.random() < 0.3 else text
