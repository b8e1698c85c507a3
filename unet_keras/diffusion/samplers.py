"""Samplers as tables: each turns points on a schedule into rows of coefficients, one row a network call.

With D_n the denoised estimate at row n, every sampler is
    x_{n+1} = sum_k a[k] x_{n-k} + sum_k b[k] D_{n-k} + c z_n,    z_n ~ N(0, I)
(times spread^f, with f the network's, where the variance is learned)
computed ahead in float64; loop.py runs the rows. ``points`` holds the steps' beginnings, noisiest first, and then the
place to end at. A sampler of your own is a function from points to rows, with up to HISTORY coefficients.

Here are those with one call and no memory; multicall.py has those that call several times a step, multistep.py those
that remember. Most solve dy/dr = eps, with y = x / alpha, the ratio r = sigma / alpha, eps = (x - alpha D) / sigma.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, sqrt
from typing import NamedTuple

from unet_keras.diffusion.schedules import Point, Points

HISTORY = 4
"""How many earlier states and estimates the loop keeps: enough for the fourth-order multistep methods."""


class Row(NamedTuple):
    """One network call: where it is made, and how states, estimates and fresh noise make the next state."""

    point: Point
    a: tuple[float, ...]  # of x_n, x_{n-1} ...
    b: tuple[float, ...]  # of D_n, D_{n-1} ...
    c: float = 0.0  # of z_n
    spread: float = 1.0  # c is multiplied by spread^f, where the network tells f: see variance.py


Sampler = Callable[[Sequence[Point]], list[Row]]


# ---- DDPM, DDIM -----------------------------------------------------------------------------------------------------


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


def ddpm_learned(points: Sequence[Point]) -> list[Row]:
    """Ancestral sampling with the variance that the network learned (Nichol & Dhariwal 2021, equation 15). One call.

    The network's f leads from beta-tilde, at 0, to beta, at 1, both of the points visited: see variance.py.
    """
    steps = zip(ddpm(points), pairwise(points), strict=True)
    return [row._replace(spread=here.sigma / there.sigma) if row.c else row for row, (here, there) in steps]


def ddim(points: Sequence[Point], *, eta: float = 0.0) -> list[Row]:
    """Denoising diffusion implicit steps (Song, Meng & Ermon 2021, equations 12 and 16). First order, one call a step.

    ``eta`` scales the fresh noise: 0 is deterministic, 1 is DDPM's posterior.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie between 0 (deterministic) and 1 (DDPM), got {eta}.")
    rows = []
    for here, there in pairwise(points):
        down, c = ancestral(here, there, eta)
        a, b = towards(here, down)
        rows.append(Row(here, (a,), (b,), c))
    return rows


def ddim_inversion(points: Sequence[Point]) -> list[Row]:
    """DDIM run backwards, from the image to the noise it would come from (Mokady et al. 2023).

    Takes the points that ``ddim`` takes; the rows lead from the last to the first. First order, one call a step, made
    with x at the cleaner point and the noisier point's timestep, as the field does: at the image itself there is none.
    So D stands for (x - sigma' eps) / alpha'. Where alpha' = 0 that has no value, and the call is made at the cleaner.
    """
    if len(points) == 2 and points[0].alpha == 0:
        raise ValueError("points must be three or more where the first is pure noise, to tell what noise it is; got 2.")
    rows = []
    for there, here in reversed(list(pairwise(points))):
        if there.alpha == 0:
            a, b = towards(here, there)
            rows.append(Row(here, (a,), (b,)))
        else:
            rows.append(by_noise(there, here, there, [(0, there, ratio(there) - ratio(here))]))
    return rows


# ---- Euler ----------------------------------------------------------------------------------------------------------


def euler(
    points: Sequence[Point],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = inf,
    churn_noise: float = 1.0,
) -> list[Row]:
    """Euler's method in sigma / alpha (Karras et al. 2022, algorithm 2 without its correction). First order, one call.

    Without churn it is DDIM. ``churn`` = S_churn adds fresh noise before a step, where sigma / alpha is in
    [``churn_min``, ``churn_max``], of standard deviation ``churn_noise``; never before the first step.
    """
    starts = churned(points, churn, churn_min, churn_max, churn_noise)
    rows = []
    for n, there in enumerate(points[1:]):
        a, b = towards(starts[n], there)
        rows.append(renoised(Row(starts[n], (a,), (b,)), there, starts[n + 1], churn_noise))
    return rows


def euler_ancestral(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """Euler's method down to less noise than wanted, and fresh noise up again (k-diffusion). First order, one call.

    ``eta`` scales the fresh noise: 0 is ``euler``; 1 is the posterior, as for ``ddim``, of which this is another name.
    """
    return ddim(points, eta=eta)


def flow_euler(points: Sequence[Point]) -> list[Row]:
    """Euler's method along x' = x + (sigma' - sigma) u, u = (x - D) / sigma (Lipman et al. 2023; Esser et al. 2024).

    For flow matching, alpha + sigma = 1. First order, one call a step.
    """
    check_flow(points)
    rows = []
    for here, there in pairwise(points):
        step = (there.sigma - here.sigma) / here.sigma
        rows.append(Row(here, (1 + step,), (-step,)))
    return rows


# ---- consistency ----------------------------------------------------------------------------------------------------


def lcm(points: Sequence[Point], *, timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> list[Row]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1; Luo et al. 2023, algorithm 3). One call a step.

    f = c_skip x + c_out D is noised anew to the next point; with s = ``timestep_scaling`` times the timestep, and d
    = ``sigma_data``, c_skip = d^2 / (s^2 + d^2) and c_out = s / sqrt(s^2 + d^2). For networks distilled to do so.
    """
    for name, value in {"timestep_scaling": timestep_scaling, "sigma_data": sigma_data}.items():
        if not 0 < value < inf:
            raise ValueError(f"{name} must be positive, got {value}.")
    rows = []
    for here, there in pairwise(points):
        s = timestep_scaling * here.timestep
        skip, out = sigma_data**2 / (s**2 + sigma_data**2), s / sqrt(s**2 + sigma_data**2)
        rows.append(Row(here, (there.alpha * skip,), (there.alpha * out,), there.sigma))
    return rows


# ---- what samplers share --------------------------------------------------------------------------------------------


def ratio(point: Point) -> float:
    """Give sigma / alpha, inf for pure noise."""
    return point.sigma / point.alpha if point.alpha else inf


def towards(here: Point, there: Point) -> tuple[float, float]:
    """Give a and b of x' = alpha' D + sigma' eps, the step that is exact where D is constant. alpha may be 0."""
    a = there.sigma / here.sigma
    return a, there.alpha - a * here.alpha


def by_noise(point: Point, start: Point, there: Point, changes, *, base: int = 0, c: float = 0.0) -> Row:
    """Make the row of y' = y + sum_k change_k eps_{n-k}, with y = x_{n-base} / alpha at ``start``, ending at ``there``.

    ``changes`` holds (k, the point where x_{n-k} lies, change_k); none of the points may have alpha or sigma 0.
    """
    changes = list(changes)
    size = 1 + max([base] + [k for k, _, _ in changes])
    a, b = [0.0] * size, [0.0] * size
    a[base] = there.alpha / start.alpha
    for k, place, change in changes:
        a[k] += there.alpha * change / place.sigma
        b[k] -= there.alpha * change * place.alpha / place.sigma
    return Row(point, tuple(a), tuple(b), c)


def ancestral(here: Point, there: Point, eta: float) -> tuple[Point, float]:
    """Divide the noise at ``there`` into what a deterministic step leaves, as a point, and fresh noise, as c."""
    c = eta * there.sigma / here.sigma * sqrt(_fresh_noise(here, there))
    return there._replace(sigma=sqrt(max(there.sigma**2 - c**2, 0.0))), c


def _fresh_noise(here, there):
    """The variance that q(x_here | x_there) adds: sigma^2 - (alpha / alpha')^2 sigma'^2, beta_t where steps are one."""
    return max(here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2, 0.0)


def churned(points: Sequence[Point], churn: float, low: float, high: float, noise: float) -> list[Point]:
    """Give where each step begins once its noise is raised by gamma (Karras et al. 2022, algorithm 2), and the end."""
    for name, value in {"churn": churn, "churn_min": low, "churn_noise": noise}.items():
        if not 0 <= value < inf:
            raise ValueError(f"{name} must be 0 or more, got {value}.")
    if not high >= low:
        raise ValueError(f"churn_max must be churn_min={low} or more, got {high}.")
    gamma = min(churn / (len(points) - 1), sqrt(2) - 1)
    raised = [p for p in points[1:-1] if gamma and low <= ratio(p) <= high]
    most = ratio(points[0])
    return [between(points, min(ratio(p) * (1 + gamma), most)) if p in raised else p for p in points]


def renoised(row: Row, there: Point, start: Point, noise: float) -> Row:
    """Let a row that ends ``there`` end at the noisier ``start``: y + sqrt(r_start^2 - r_there^2) z."""
    if start is there:
        return row
    scale = start.alpha / there.alpha
    c = noise * start.alpha * sqrt(ratio(start) ** 2 - ratio(there) ** 2)
    return Row(row.point, tuple(scale * v for v in row.a), tuple(scale * v for v in row.b), c)


def between(points: Sequence[Point], ratio: float) -> Point:
    """Give the point of the schedule at sigma / alpha = ``ratio``."""
    if not isinstance(points, Points):
        raise ValueError("points must be what Schedule.points gives: the network is called between them; got a list.")
    return points.schedule.at_ratio(ratio)


def check_share(name: str, value: float):
    """Raise ValueError unless the value lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 (no fresh noise) and 1 (the posterior's), got {value}.")


def check_flow(points: Sequence[Point]):
    """Raise ValueError unless the points lie on the straight path of flow matching."""
    off = max(abs(p.alpha + p.sigma - 1) for p in points)
    if off > 1e-3:
        raise ValueError(f"points must have alpha + sigma = 1, as those of flow(); they are off by {off:.3g}.")
