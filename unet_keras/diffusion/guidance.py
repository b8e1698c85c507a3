"""Guidance: what to make of the network's output with and without its conditions.

A guidance combines (conditional, unconditional, scale) -> output, all in what the network predicts; a threshold maps
the clean estimate to one that an image can take. Both are functions traced into the compiled step. The scale is a
number, or a function Point -> number, asked once for each row ahead of sampling.
"""

from collections.abc import Callable
from functools import cache
from math import inf

import keras
from keras import ops

from unet_keras.diffusion.schedules import Point

serializable = keras.saving.register_keras_serializable("unet_keras")

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


def interval(scale: float, low: float, high: float) -> Callable[[Point], float]:
    """Make a scale that guides only while low < sigma / alpha <= high, and is 1 elsewhere (Kynkaanniemi et al. 2024).

    For ``generate(..., guidance=interval(3.0, 0.3, 5.0))``: guidance harms variety at high noise and does nothing
    at low. ``high`` may be infinite. Raises ValueError unless 0 <= low < high.
    """
    if not 0 <= low < high:
        raise ValueError(f"interval needs 0 <= low < high, in sigma / alpha, got low={low}, high={high}.")

    def guidance(point):  # multiplied out, as alpha may be 0
        below = high == inf or point.sigma <= high * point.alpha
        return scale if below and low * point.alpha < point.sigma else 1.0

    return guidance


@serializable
def clipped(estimate):
    """Clip the clean estimate to [-1, 1], where images live (static thresholding)."""
    return ops.clip(estimate, -1.0, 1.0)


@cache  # one object for one quantile: another would be compiled anew
def dynamic(quantile: float = 0.995) -> Callable:
    """Make the threshold that clips each image at a quantile of its own values and scales it back to [-1, 1].

    Dynamic thresholding (Saharia et al. 2022, section 2.3): keeps strong guidance from saturating the colours. Never
    clips below 1. Raises ValueError for a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}.")
    return _Dynamic(quantile)


@serializable
class _Dynamic:
    """What ``dynamic`` makes: an object, so that a saved model knows the quantile."""

    def __init__(self, quantile):
        self.quantile = quantile

    def __call__(self, estimate):
        flat = ops.reshape(ops.abs(estimate), (ops.shape(estimate)[0], -1))
        limit = ops.maximum(ops.quantile(flat, self.quantile, axis=1), 1.0)
        limit = ops.reshape(limit, (-1,) + (1,) * (len(estimate.shape) - 1))
        return ops.clip(estimate, -limit, limit) / limit

    def get_config(self):
        return {"quantile": self.quantile}

    @classmethod
    def from_config(cls, config):
        return dynamic(config["quantile"])


@serializable
def unclipped(estimate):
    """Leave the clean estimate as it is: for latents, and for data that know no bounds."""
    return estimate
