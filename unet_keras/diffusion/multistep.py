"""Samplers that call the network once a step and remember: linear multistep methods, on eps or on the estimate D.

The first steps are of lower order, until there is enough to remember. A step that begins at pure noise, where sigma /
alpha is infinite, is DDIM's, and the method begins after it. With lambda = log(alpha / sigma), h is a step in lambda.
"""

from collections.abc import Sequence
from functools import wraps
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

from unet_keras.checks import is_whole
from unet_keras.diffusion.samplers import HISTORY, Row, Sampler, by_noise, check_share, ddim, ratio, towards
from unet_keras.diffusion.schedules import Point


def _after_pure_noise(sampler: Sampler) -> Sampler:
    """Let a sampler that needs alpha > 0 begin after a step of DDIM where the first point is pure noise."""

    @wraps(sampler)
    def method(points, **options):
        if points[0].alpha:
            return sampler(points, **options)
        return ddim(points[:2]) + sampler(points[1:], **options)

    return method


# ---- on eps: y' = y + sum_k change_k eps_{n-k} ----------------------------------------------------------------------


@_after_pure_noise
def lms(points: Sequence[Point], *, order: int = 4) -> list[Row]:
    """Linear multistep: Adams-Bashforth with uneven steps, eps a polynomial in r = sigma / alpha (k-diffusion).

    Of the given ``order``, 1 to 4; one call a step. The last step keeps its order also where it ends at the image.
    """
    _check_order(order, HISTORY)
    rows = []
    for n, (here, there) in enumerate(pairwise(points)):
        past = points[n::-1][:order]
        changes = _integrals([ratio(p) - ratio(here) for p in past], ratio(there) - ratio(here), np.ones_like)
        rows.append(by_noise(here, here, there, zip(range(order), past, changes, strict=False)))
    return rows


@_after_pure_noise
def deis(points: Sequence[Point], *, order: int = 3) -> list[Row]:
    """DEIS, rho-AB: eps a polynomial in u = log r, r = sigma / alpha (Zhang & Chen 2023).

    Of the given ``order``, 1 to 4; one call a step. A step that ends at the image is of first order, and gives D.
    """
    _check_order(order, HISTORY)
    rows = []
    for n, (here, there) in enumerate(pairwise(points)):
        past, changes = [here], [-ratio(here)]
        if there.sigma:
            past = points[n::-1][:order]
            changes = _integrals([-_step(here, p) for p in past], -_step(here, there), np.exp) * ratio(here)
        rows.append(by_noise(here, here, there, zip(range(order), past, changes, strict=False)))
    return rows


_GAUSS = np.polynomial.legendre.leggauss(24)
"""Gauss's points and weights on [-1, 1]: exact for ``lms``, and for ``deis`` to rounding."""


def _integrals(nodes, end, weight):
    """Integrate weight(u) l_k(u) from 0 to ``end``, l_k the polynomials that are 1 at node k and 0 at the others."""
    u, du = (1 + _GAUSS[0]) * end / 2, _GAUSS[1] * end / 2
    others = (nodes[:k] + nodes[k + 1 :] for k in range(len(nodes)))
    lagrange = (np.prod([(u - v) / (node - v) for v in rest], axis=0) for node, rest in zip(nodes, others, strict=True))
    return np.array([np.sum(du * weight(u) * p) for p in lagrange])


@_after_pure_noise
def plms(points: Sequence[Point]) -> list[Row]:
    """Pseudo linear multistep, PNDM without its Runge-Kutta start (Liu et al. 2022; latent diffusion).

    Adams-Bashforth as if the steps were even. One call a step, and one more: the second point is visited twice, as the
    first step is taken again with the mean of both ends' eps. The last step keeps its order also where it ends at the
    image. Fourth order where the steps are even in sigma / alpha, second elsewhere.
    """
    if len(points) == 1:
        return []
    first, second = points[:2]
    changes = [ratio(there) - ratio(here) for here, there in pairwise(points)]
    rows = [by_noise(first, first, second, [(0, first, changes[0])])]
    if len(points) > 2:
        half = changes[0] / 2
        rows.append(by_noise(second, first, second, [(0, second, half), (1, first, half)], base=1))
    for n in range(1, len(points) - 1):
        weights = _PLMS[min(n, 3)]
        # The second call at the second point pushes the first point's back by one row.
        terms = [(k + (k == n), points[n - k], changes[n] * w) for k, w in enumerate(weights)]
        row = by_noise(points[n], points[n], points[n + 1], [term for term in terms if term[0] < HISTORY])
        rows.append(_with_first_noise(row, points, terms[3][2]) if n == 3 else row)
    return rows


_PLMS = {1: (3 / 2, -1 / 2), 2: (23 / 12, -16 / 12, 5 / 12), 3: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def _with_first_noise(row, points, change):
    """Add change * eps_0 to PLMS's fifth row, five rows after that noise was seen, one more than the loop remembers.

    x_1 and x_2, both at the second point, differ by q (eps_0 - eps_1) / 2, so that eps_0 = eps_1 + 2 (x_1 - x_2) / q.
    """
    first, second, there = points[0], points[1], points[4]
    q = second.alpha * (ratio(second) - ratio(first))
    a, b = (list(v) + [0.0] * (HISTORY - len(v)) for v in (row.a, row.b))
    a[3] += there.alpha * change * (1 / second.sigma + 2 / q)
    a[2] -= there.alpha * change * 2 / q
    b[3] -= there.alpha * change * second.alpha / second.sigma
    return row._replace(a=tuple(a), b=tuple(b))


# ---- on D: x' = (sigma' / sigma) x + g D~, g = alpha' (1 - e^-h) = alpha' - alpha sigma' / sigma -------------------


def dpmpp_2m(points: Sequence[Point]) -> list[Row]:
    """DPM-Solver++(2M): D~ = D + h / (2 h_1) (D - D_1), h_1 the step before (Lu et al. 2022b, algorithm 2).

    Second order, one call a step. A step that ends at the image is first order, and gives D.
    """
    return dpmpp_2m_sde(points, eta=0.0)


@_after_pure_noise
def dpmpp_2m_sde(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """SDE-DPM-Solver++(2M), the midpoint form (Lu et al. 2022b; k-diffusion). One call a step.

    x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D~ + sigma' sqrt(1 - e^(-2 eta h)) z, with D~ of
    ``dpmpp_2m``, which it is where ``eta`` is 0. Second order, in the law of a Gaussian.
    """
    check_share("eta", eta)
    rows = []
    for n, (here, there) in enumerate(pairwise(points)):
        a, g, c = _reverse_sde(here, there, eta)
        past = _step(here, there) / (2 * _step(points[n - 1], here)) if n and there.sigma else 0.0
        rows.append(Row(here, (a,), (g * (1 + past), -g * past) if past else (g,), c))
    return rows


def dpmpp_3m(points: Sequence[Point]) -> list[Row]:
    """DPM-Solver++(3M), as in its authors' code: ``dpmpp_3m_sde`` without noise. Second order. One call a step."""
    return dpmpp_3m_sde(points, eta=0.0)


@_after_pure_noise
def dpmpp_3m_sde(points: Sequence[Point], *, eta: float = 1.0) -> list[Row]:
    """SDE-DPM-Solver++(3M), as in k-diffusion (in diffusers phi_3 adds 1/2). One call a step; one to the image gives D.

    As ``dpmpp_2m_sde``, with alpha' (1 - e^-H) D + alpha' phi_2 d_1 - alpha' phi_3 d_2 in D~'s place, H = (1 + eta) h,
    phi_2 = 1 - (1 - e^-H) / H, phi_3 = phi_2 / H - 1/2, and d_1, d_2 divided differences of D. Second order: for
    the third d_2 would have to be twice what it is, in diffusers as well.
    """
    check_share("eta", eta)
    rows = []
    for n, (here, there) in enumerate(pairwise(points)):
        a, g, c = _reverse_sde(here, there, eta)
        b = [g]
        if n and there.sigma:
            h = _step(here, there)
            r = [_step(q, p) / h for p, q in pairwise(points[n::-1][:3])]  # the steps before, as shares of this one
            first, second = _differences(r)
            whole = (1 + eta) * h
            phi_2 = 1 + expm1(-whole) / whole
            phi_3 = phi_2 / whole - 0.5
            b = there.alpha * (phi_2 * first - phi_3 * second)
            b[0] += g
        rows.append(Row(here, (a,), tuple(b), c))
    return rows


def _differences(r):
    """Give d_1 and d_2 as coefficients of D, D_1 (and D_2), of steps r_0 (and r_1) long."""
    if len(r) == 1:
        return np.array([1.0, -1.0]) / r[0], np.zeros(2)
    late, early = np.array([1.0, -1.0, 0.0]) / r[0], np.array([0.0, 1.0, -1.0]) / r[1]
    bend = (late - early) / (r[0] + r[1])
    return late + r[0] * bend, bend


def _reverse_sde(here, there, eta):
    """Give the coefficients of x, D and z of the exact step for constant D, with eta of the reverse SDE's noise."""
    shrink = here.alpha / there.alpha * there.sigma / here.sigma  # e^-h
    a = there.sigma / here.sigma * shrink**eta
    return a, there.alpha * (1 - shrink ** (1 + eta)), there.sigma * sqrt(1 - shrink ** (2 * eta))


def _step(here, there):
    """Give h = lambda' - lambda."""
    return log(ratio(here) / ratio(there))


# ---- predictor and corrector ----------------------------------------------------------------------------------------


@_after_pure_noise
def unipc(points: Sequence[Point], *, order: int = 2) -> list[Row]:
    """UniPC, B_2(h) (Zhao et al. 2023). One call a step.

    Each call also corrects the state that it was made at, by x + g_1 (w_corrector - w_predictor) D, before it leaves
    from there by (sigma' / sigma) x + g w_predictor D. The predictor's ``order`` is 1, 2 or 3, the corrector one more;
    the last steps are of lower order, and one to the image gives D.
    """
    _check_order(order, 3)
    rows, left, g_before, predicted = [], None, 0.0, np.zeros(0)
    for n, (here, there) in enumerate(pairwise(points)):
        a, g = towards(here, there)
        b = np.zeros(HISTORY)
        if left:  # correct the step from there to here, which took len(predicted) older estimates
            older = points[n - 2 :: -1][: len(predicted)] if len(predicted) else []
            bent = _weights(left, here, [here, *older])
            bent[1:] -= predicted
            b[0], b[2 : 1 + len(bent)] = bent[0], bent[1:]
            b[1] = -bent.sum()
            b *= a * g_before
        older = points[n - 1 :: -1][: min(order, len(points) - 1 - n) - 1] if n else []
        predicted = _weights(here, there, older)
        b[1 : 1 + len(older)] += g * predicted
        b[0] += g * (1 - predicted.sum())
        rows.append(Row(here, (a,), tuple(b.tolist())))
        left, g_before = here, g
    return rows


def _weights(here, there, places):
    """Weigh D at ``places``, the rest being D at ``here``, to integrate polynomials in lambda exactly up to ``there``.

    The integral is of r^m e^(-h (1 - r)), r going from 0 to 1. A single place has the paper's shortcut, 1/2.
    """
    count = len(places)
    nodes = np.array([_step(here, p) for p in places]) / (_step(here, there) if count else 1.0)
    if count < 2:
        return 0.5 / nodes
    h = _step(here, there)
    integrals = [1 - exp(-h)]
    for m in range(1, count + 1):
        integrals.append(1 - m / h * integrals[-1])
    powers = np.vander(nodes, count + 1, increasing=True).T[1:]
    return np.linalg.solve(powers, np.array(integrals[1:]) / integrals[0])


def _check_order(order, most):
    if not is_whole(order) or order > most:
        raise ValueError(f"order must be a whole number from 1 to {most}, got {order}.")
