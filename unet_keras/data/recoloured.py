"""Emoji in other colours than their own: so that a colour's word is seen on more than the few things named by it."""

import re
from collections.abc import Iterable

import numpy as np

from unet_keras.data.emoji import EmojiTable

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
INK = 40
"""How far from white, in the channel furthest from it, a pixel is drawn on; in levels of 255."""
NEAR = 60.0
"""How far a pixel may lie from the line between white and the object's colour, in levels, to count as its colour."""
PLAIN = 0.9
"""The share of what is drawn that has one colour, from which on an emoji is recoloured."""
AS_THEY_ARE = ("people & body", "smileys & emotion", "flags")
"""Groups whose emoji are recoloured only if they are named by a colour; people never are."""

_WORD = re.compile(rf"\b({'|'.join(COLOURS)})\b")
_OTHER = re.compile(r"\b(light|white|pink|grey|gray)\b")  # "light blue heart": its name would be wrong


class Recoloured:
    """Draw emoji of a table of which some have another colour, and are named by it: "blue apple".

        other = Recoloured(table, never=held_out_captions)
        emoji_captions(other(rng), rng)

    table    the emoji; those of one plain colour can be recoloured, as those of their style are that are named by it
    never    captions none of which is made, nor one that has all its words: those that a model is to be tested on
    share    how many of the emoji that can be are recoloured, on average

    Raises ValueError for a share outside 0 to 1, and for a text in the place of captions.

    Each call gives a table of the same rows. A recoloured one has no keywords, for they may name its old colour.
    Every pixel is split into a multiple of the object's colour on white, which is exchanged, and the rest, which stays:
    shades and soft edges are kept, and so are parts of another colour.
    """

    def __init__(self, table: EmojiTable, *, never: Iterable[str] = (), share: float = 0.25):
        if not 0 <= share <= 1:
            raise ValueError(f"share must be from 0 to 1, got {share}.")
        if isinstance(never, str):
            raise ValueError(f"never must be captions, got the one {never!r}: write [{never!r}].")
        self.table, self.share = table, share
        self._never = [words for caption in never if (words := _words(caption))]
        self._own, plain = _plain_colours(table.images)
        named, other = (np.array([bool(word.search(c)) for c in table.captions]) for word in (_WORD, _OTHER))
        free = ~np.isin(table.groups, AS_THEY_ARE) | (named & (table.groups != "people & body"))
        self._rows = np.flatnonzero(plain & free & ~other)
        own = {}
        for i in self._rows:
            own.setdefault((table.styles[i], *_WORD.findall(table.captions[i])), []).append(self._own[i])
        self._looks = {named: np.median(colours, axis=0) for named, colours in own.items()}

    def __call__(self, rng: np.random.Generator) -> EmojiTable:
        """Draw which emoji are recoloured, and how; a caption has its colour in the old one's place, or before it."""
        images, captions, tags = (list(column) for column in (self.table.images, self.table.captions, self.table.tags))
        chosen = self._rows[rng.random(len(self._rows)) < self.share]
        for i, colour in zip(chosen, rng.choice(COLOURS, len(chosen)).tolist(), strict=True):
            caption = _renamed(captions[i], colour)
            look = self._looks.get((self.table.styles[i], colour))
            if look is not None and not any(words <= _words(caption) for words in self._never):
                captions[i], tags[i] = caption, ""
                images[i] = _exchanged(images[i], self._own[i], look)
        return self.table._replace(images=np.stack(images), captions=np.array(captions), tags=np.array(tags))


def _words(caption):
    return set(re.findall(r"\w+", caption.lower()))


def _renamed(caption, colour):
    return _WORD.sub(colour, caption, count=1) if _WORD.search(caption) else f"{colour} {caption}"


def _plain_colours(images):
    """Find each image's colour, as its distance from white (N, 3), and whether it has but one."""
    dark = 255 - images.reshape(len(images), -1, 3).astype("float32")
    inked = dark.max(axis=-1) > INK
    near, most = inked, np.maximum(inked.sum(axis=1), 1)
    for _ in range(5):  # the mean of what is near the line, and again what is near it
        own = np.einsum("np,npc->nc", near, dark) / np.maximum(near.sum(axis=1), 1)[:, None]
        near = inked & (np.linalg.norm(_rest(dark, own), axis=-1) < NEAR)
    return own, near.sum(axis=1) / most > PLAIN


def _rest(dark, own):
    """What is left of pixels (..., P, 3) when their share of a colour (..., 3) is taken away."""
    share = np.einsum("...pc,...c->...p", dark, own) / np.maximum((own**2).sum(axis=-1), 1.0)[..., None]
    return dark - share[..., None] * own[..., None, :]


def _exchanged(image, own, other):
    dark = 255 - image.reshape(-1, 3).astype("float32")
    rest = _rest(dark, own)
    share = (dark - rest) @ own / max(own @ own, 1.0)
    weight = np.exp(-np.square(np.linalg.norm(rest, axis=-1) / NEAR))  # of another colour, the less it changes
    changed = dark + (weight * share)[:, None] * (other - own)
    return (255 - changed).clip(0, 255).round().astype("uint8").reshape(image.shape)
