"""Guidance: what to make of the network's output with and without its conditions.

A guidance combines (conditional, unconditional, scale) -> output, all in what the network predicts; a threshold maps
the clean estimate to one that an image can take. Both are functions traced into the compiled step.
"""

from collections.abc import Callable
from functools import cache

from keras import ops

Combine = Callable[..., object]


def classifier_free(conditional, unconditional, scale):
    """Go from the unconditional towards the conditional, and past it where scale > 1 (Ho & Salimans 2022, equation 6).

    The scale is counted as most programs count it: 1 is the plain conditional model, 0 the unconditional one.
    """
    return unconditional + scale * (conditional - unconditional)


@cache  # one function for one phi: another would be compiled anew
def rescaled(phi: float = 0.7) -> Combine:
    """Make classifier-free guidance that keeps the conditional's spread (Lin et al. 2024, equations 15 and 16).

    ``phi`` mixes the rescaled (1) and the plain (0) guided output. Raises ValueError outside [0, 1].
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi must lie in [0, 1], got {phi}.")

    def combine(conditional, unconditional, scale):
        guided = classifier_free(conditional, unconditional, scale)
        return guided * (phi * _spread(conditional) / _spread(guided) + (1.0 - phi))

    return combine


def _spread(x):
    return ops.std(x, axis=tuple(range(1, len(x.shape))), keepdims=True)


def clipped(estimate):
    """Clip the clean estimate to [-1, 1], where images live (static thresholding)."""
    return ops.clip(estimate, -1.0, 1.0)


def unclipped(estimate):
    """Leave the clean estimate as it is: for latents, and for data that know no bounds."""
    return estimate
