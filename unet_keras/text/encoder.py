"""What every text encoder promises, and the checks on prompts that all of them share.

An encoder is any callable from prompts to conditions, N rows each, the same for the same prompts. They go to the
network's inputs by name: ``context`` (N, L, D) float32, ``context_mask`` (N, L) bool where True is a token to look at,
``pooled`` (N, P) float32. For attention maps it has ``words(prompts)`` as well: what each prompt's L places in the
context stand for, "" for padding and special tokens.
"""

import warnings
from collections.abc import Sequence

import numpy as np

SHOWN = 3
"""For how many prompts a warning says what was cut."""


def check_prompts(prompts) -> list[str]:
    """Give prompts as a list of str. Takes a list, a tuple or a one-dimensional NumPy array.

    Raises ValueError for a bare string, for no prompts at all and for an entry that is not a string.
    """
    if isinstance(prompts, str | bytes):
        raise ValueError(f"prompts must be a list of strings, got the one {prompts!r}: write [{prompts!r}].")
    if not isinstance(prompts, list | tuple | np.ndarray) or np.shape(prompts) == ():
        raise ValueError(f"prompts must be a list, a tuple or an array of strings, got {type(prompts).__name__}.")
    if len(prompts) == 0:
        raise ValueError('prompts must hold one string or more, got none; "" is the empty prompt.')
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts must be strings, but entry {number} is {type(prompt).__name__}: {prompt!r:.80}.")
    return [str(prompt) for prompt in prompts]


def warn_if_cut(prompts: Sequence[str], kept: Sequence[int], length: int):
    """Warn where prompts are longer than the context, and show for the first few which words are left out.

    ``kept`` has one number a prompt: how many of its words, as ``prompt.split()`` gives them, are in the context whole.
    ``length`` is the context's, in tokens.
    """
    cut = [(prompt, count) for prompt, count in zip(prompts, kept, strict=True) if count < len(prompt.split())]
    if not cut:
        return
    shown = "; ".join(
        f"{_short(' '.join(prompt.split()[count:]))} of {_short(prompt)}" for prompt, count in cut[:SHOWN]
    )
    more = f"; and {len(cut) - SHOWN} more" if len(cut) > SHOWN else ""
    warnings.warn(
        f"{len(cut)} of {len(prompts)} prompts are longer than the context's {length} tokens. Left out: {shown}{more}. "
        "Give shorter prompts, or an encoder with a longer context.",
        stacklevel=3,
    )


def _short(text):
    return repr(text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}")
