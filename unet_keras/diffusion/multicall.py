"""Samplers that call the network more than once a step, and keep nothing from one step to the next: two rows a step.

The step that has a single row is the one that ends at the image, where there is no noise to call the network with, and
the one that begins at pure noise, where sigma / alpha is infinite: both are first order, exact where D is constant.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, sqrt

from unet_keras.diffusion.samplers import (
    Row,
    ancestral,
    between,
    by_noise,
    check_flow,
    check_share,
    churned,
    ratio,
    renoised,
    towards,
)
from unet_keras.diffusion.schedules import Point


def heun(
    points: Sequence[Point],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> list[Row]:
    """Heun's method in sigma / alpha (Karras et al. 2022, algorithms 1 and 2). Second order, two calls a step.

    y' = y + (r' - r) (eps + eps') / 2, with eps' after a step of Euler. The churn is that of ``euler``.
    """
    starts = churned(points, churn, churn_min, churn_max, churn_noise)
    rows = []
    for n, there in enumerate(points[1:]):
        here = starts[n]
        a, b = towards(here, there)
        step = [Row(here, (a,), (b,))]
        if here.alpha and there.sigma:
            half = (ratio(there) - ratio(here)) / 2
            step.append(by_noise(there, here, there, [(0, there, half), (1, here, half)], base=1))
        rows += [*step[:-1], renoised(step[-1], there, starts[n + 1], churn_noise)]
    return rows


def flow_heun(points: Sequence[Point]) -> list[Row]:
    """Heun's method along x' = x + (sigma' - sigma) (u + u') / 2, u = (x - D) / sigma, for flow matching.

    Needs alpha + sigma = 1. Second order, two calls a step (diffusers' FlowMatchHeunDiscreteScheduler).
    """
    check_flow(points)
    rows = []
    for here, there in pairwise(points):
        step = there.sigma - here.sigma
        rows.append(Row(here, (1 + step / here.sigma,), (-step / here.sigma,)))
        if there.sigma:
            now, before = step / 2 / there.sigma, step / 2 / here.sigma
            rows.append(Row(there, (now, 1 + before), (-now, -before)))
    return rows


def dpm2(points: Sequence[Point]) -> list[Row]:
    """The midpoint method in sigma / alpha, halfway in its logarithm (after Lu et al. 2022, algorithm 1; k-diffusion).

    y' = y + (r' - r) eps(sqrt(r r')). Second order, two calls a step.
    """
    return dpm2_ancestral(points, eta=0.0)


def dpm2_ancestral(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """``dpm2`` down to less noise than wanted, and fresh noise up again (k-diffusion). Second order, two calls a step.

    ``eta`` scales the fresh noise: 0 is ``dpm2``, 1 is the posterior's. Fresh noise keeps to the law, and so the
    order is that of the deterministic part.
    """
    check_share("eta", eta)
    rows = []
    for here, there in pairwise(points):
        down, c = ancestral(here, there, eta)
        if here.alpha == 0 or down.sigma == 0:
            rows.append(_single(here, down, c))
            continue
        middle = between(points, sqrt(ratio(here) * ratio(down)))
        rows.append(_single(here, middle))
        change = ratio(down) - ratio(here)
        rows.append(by_noise(middle, here, there, [(0, middle, change)], base=1, c=c))
    return rows


def dpmpp_2s_ancestral(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1 with r = 1/2), ancestral as in k-diffusion. Two calls a step.

    x' = (sigma' / sigma) x + alpha' (1 - e^-h) D(halfway in lambda). Second order. ``eta`` scales the fresh noise: at 0
    it is the paper's 2S.
    """
    check_share("eta", eta)
    rows = []
    for here, there in pairwise(points):
        down, c = ancestral(here, there, eta)
        if here.alpha == 0 or down.sigma == 0:
            rows.append(_single(here, down, c))
            continue
        middle = between(points, sqrt(ratio(here) * ratio(down)))
        a, b = towards(here, down)
        rows += [_single(here, middle), Row(middle, (0.0, a), (b,), c)]
    return rows


def dpmpp_sde(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """DPM-Solver++ for the reverse SDE, with a call halfway in lambda (k-diffusion's dpmpp_sde). Two calls a step.

    Second order, in the law of a Gaussian. Both halves are ancestral, on one Brownian path in r = sigma / alpha: the
    step's noise is sqrt(s) z_n + sqrt(1 - s) z', s = (r - r_middle) / (r - r'), and z_n is had back from the state that
    it led to.
    """
    check_share("eta", eta)
    rows = []
    for here, there in pairwise(points):
        down, c = ancestral(here, there, eta)
        if here.alpha == 0 or down.sigma == 0:
            rows.append(_single(here, down, c))
            continue
        middle = between(points, sqrt(ratio(here) * ratio(there)))
        first = _single(here, *ancestral(here, middle, eta))
        a, b = towards(here, down)
        s = (ratio(here) - ratio(middle)) / (ratio(here) - ratio(there))
        again = sqrt(s) * c / first.c if c else 0.0  # of what the first row added: x_n - a x_{n-1} - b D_{n-1}
        second = Row(middle, (again, a - again * first.a[0]), (b, -again * first.b[0]), sqrt(1 - s) * c)
        rows += [first, second]
    return rows


def _single(here, there, c=0.0):
    a, b = towards(here, there)
    return Row(here, (a,), (b,), c)
