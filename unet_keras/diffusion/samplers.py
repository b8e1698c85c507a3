"""Samplers as tables: each turns points on a schedule into rows of coefficients, one row a network call.

With D_n the denoised estimate at row n, every sampler here is
    x_{n+1} = sum_k a[k] x_{n-k} + sum_k b[k] D_{n-k} + c z_n,    z_n ~ N(0, I)
computed ahead in float64; loop.py runs the rows. ``points`` holds the places of the network calls, noisiest first, and
then the place to end at. A sampler of your own is a function from points to rows, with up to HISTORY coefficients.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

from unet_keras.diffusion.schedules import Point

HISTORY = 4
"""How many earlier states and estimates the loop keeps: enough for the fourth-order multistep methods."""


class Row(NamedTuple):
    """One network call: where it is made, and how states, estimates and fresh noise make the next state."""

    point: Point
    a: tuple[float, ...]  # of x_n, x_{n-1} ...
    b: tuple[float, ...]  # of D_n, D_{n-1} ...
    c: float = 0.0  # of z_n


Sampler = Callable[[Sequence[Point]], list[Row]]


def _fresh_noise(here: Point, there: Point) -> float:
    """The variance that q(x_here | x_there) adds: sigma^2 - (alpha / alpha')^2 sigma'^2, beta_t where steps are one."""
    return max(here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2, 0.0)


def ddpm(points: Sequence[Point], *, variance: float = 0.0) -> list[Row]:
    """Ancestral sampling from the posterior q(x_{t-1} | x_t, D) (Ho et al. 2020, equations 6 and 7). One call a step.

    ``variance`` chooses between the two bounds on the step's variance: 0 is beta-tilde (fixed_small), 1 is beta
    (fixed_large), between them the logarithm is interpolated (Nichol & Dhariwal 2021, equation 15).
    """
    if not 0 <= variance <= 1:
        raise ValueError(f"variance must lie between 0 (beta-tilde) and 1 (beta), got {variance}.")
    rows = []
    for here, there in pairwise(points):
        beta = _fresh_noise(here, there)
        ratio = (there.sigma / here.sigma) ** 2
        a = here.alpha / there.alpha * ratio
        b = there.alpha * beta / here.sigma**2
        rows.append(Row(here, (a,), (b,), sqrt(beta) * sqrt(ratio) ** (1 - variance) if there.sigma else 0.0))
    return rows


def ddim(points: Sequence[Point], *, eta: float = 0.0) -> list[Row]:
    """Denoising diffusion implicit steps (Song, Meng & Ermon 2021, equations 12 and 16). First order, one call a step.

    ``eta`` scales the fresh noise: 0 is deterministic, 1 is DDPM's posterior.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 (deterministic) and 1 (DDPM), got {eta}.")
    rows = []
    for here, there in pairwise(points):
        c = eta * there.sigma / here.sigma * sqrt(_fresh_noise(here, there))
        a = sqrt(max(there.sigma**2 - c**2, 0.0)) / here.sigma
        rows.append(Row(here, (a,), (there.alpha - a * here.alpha,), c))
    return rows
