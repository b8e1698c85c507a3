"""What a text encoder is, and the checks that all of them share."""

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Encoder(Protocol):
    """Prompts in, named arrays of conditions out, one row a prompt; "" stands for no prompt at all."""

    def __call__(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encode: e.g. ``{"tokens": (N, L)}``, or ``{"context": (N, L, D), "context_mask": (N, L)}``."""

    def words(self, prompts: Sequence[str]) -> list[list[str]]:
        """Name what each of the L places of the context stands for; "" for padding and marks."""


def check_prompts(prompts) -> list[str]:
    """Give prompts as a list. Raises ValueError for a bare string, an empty list and for what is no text."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got one text: give [{prompts!r}].")
    prompts = list(prompts)
    if not prompts:
        raise ValueError('prompts is empty: give a list of one text or more, [""] for no prompt.')
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be texts, got {prompt!r:.60} ({type(prompt).__name__}) as number {i}.")
    return [str(prompt) for prompt in prompts]


def warn_if_cut(words: Sequence[Sequence[str]], kept: Sequence[Sequence[str]]):
    """Warn of prompts that are longer than the context, and show the words that are left out."""
    cut = [(long, len(short)) for long, short in zip(words, kept, strict=True) if len(short) < len(long)]
    if cut:
        shown = "; ".join(f"'{' '.join(long[:n])}' without '{' '.join(long[n:])}'" for long, n in cut[:3])
        warnings.warn(f"{len(cut)} prompt(s) are longer than the context and are cut: {shown}.", stacklevel=5)
