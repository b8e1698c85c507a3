"""Samplers against k-diffusion's formulas, the real loop against the rows, and what samplers refuse."""

from functools import partial
from itertools import pairwise
from math import expm1, log, sqrt

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import (
    CLEAN,
    Point,
    classifier_free,
    ddim_inversion,
    deis,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    exponential,
    flow,
    heun,
    karras,
    lcm,
    lms,
    trailing,
    unclipped,
    unipc,
    velocity,
)
from unet_keras.diffusion.loop import last, make_step, run

from .helpers import by_hand, normal, states_by_hand
from .mixture import best_clean
from .solvers import ALL, FLOW, LINEAR, SCHEDULES, X

# ---- k-diffusion's formulas, where diffusers has none or others -----------------------------------------------------
# y = x / alpha and r = sigma / alpha, which k-diffusion calls sigma; z is the fresh noise of each row.


def estimate(y, r):
    point = LINEAR.at_ratio(r)
    return best_clean(y * point.alpha, point)


def split(r, to, eta):
    """What a deterministic step goes down to, and the noise that leads up again."""
    up = min(to, eta * to * sqrt(r**2 - to**2) / r)
    return sqrt(to**2 - up**2), up


def k_2s_ancestral(y, r, to, z, eta):
    down, up = split(r, to, eta)
    h = log(r / down)
    middle = r * np.exp(-h / 2)
    between = middle / r * y - expm1(-h / 2) * estimate(y, r)
    return down / r * y - expm1(-h) * estimate(between, middle) + up * z[1]


def k_dpm2_ancestral(y, r, to, z, eta):
    down, up = split(r, to, eta)
    middle = sqrt(r * down)
    between = y + (middle - r) * (y - estimate(y, r)) / r
    return y + (down - r) * (between - estimate(between, middle)) / middle + up * z[1]


def k_sde(y, r, to, z, eta):
    middle = sqrt(r * to)
    down, up = split(r, middle, eta)
    between = down / r * y + (1 - down / r) * estimate(y, r) + up * z[0]
    path = (sqrt(r - middle) * z[0] + sqrt(middle - to) * z[1]) / sqrt(r - to)
    down, up = split(r, to, eta)
    return down / r * y + (1 - down / r) * estimate(between, middle) + up * path


def k_heun(y, r, to, z, eta):
    d = (y - estimate(y, r)) / r
    ahead = y + (to - r) * d
    return y + (to - r) * (d + (ahead - estimate(ahead, to)) / to) / 2


def k_euler(y, r, to, z, eta):
    return y + (to - r) * (y - estimate(y, r)) / r


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "sampler, step",
    [(dpmpp_2s_ancestral, k_2s_ancestral), (dpm2_ancestral, k_dpm2_ancestral), (dpmpp_sde, k_sde)],
)
def test_two_calls_a_step_are_those_of_k_diffusion(sampler, step, eta):
    points, z = LINEAR.points(trailing(1000, 8)), normal(20, 16, 1, 1, 2, seed=3).astype("float64")
    y, ratios = X / points[0].alpha, [p.sigma / p.alpha for p in points[:-1]]
    for n, (r, to) in enumerate(pairwise(ratios)):
        y = step(y, r, to, z[2 * n :], eta)
    ours = by_hand(sampler(points, eta=eta), X, z, best_clean)
    np.testing.assert_allclose(ours, estimate(y, ratios[-1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler, step, calls", [(euler, k_euler, 1), (heun, k_heun, 2)])
def test_churn_is_that_of_karras(sampler, step, calls):
    options = {"churn": 4.0, "churn_min": 0.05, "churn_max": 20.0, "churn_noise": 1.1}
    points, z = LINEAR.points(trailing(1000, 10)), normal(20, 16, 1, 1, 2, seed=3).astype("float64")
    y, ratios = X / points[0].alpha, [p.sigma / p.alpha for p in points]
    for n, (r, to) in enumerate(pairwise(ratios)):
        start = r * 1.4 if n and 0.05 <= r <= 20 else r
        y = y + 1.1 * sqrt(start**2 - r**2) * z[calls * n - 1]
        y = step(y, start, to, None, None) if to else estimate(y, start)
    rows = sampler(points, **options)
    assert sum(row.c > 0 for row in rows) == sum(0.05 <= r <= 20 for r in ratios[1:])
    np.testing.assert_allclose(by_hand(rows, X, z, best_clean), y, rtol=1e-9, atol=1e-9)


def test_churn_stays_within_the_schedule():
    points = LINEAR.points([999, 995, 990, 500])
    rows = heun(points, churn=1e9)
    assert max(row.point.sigma / row.point.alpha for row in rows) <= points[0].sigma / points[0].alpha * (1 + 1e-12)
    assert all(row.c > 0 for row in rows[1:-1:2])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("order, sampler", [(2, dpmpp_2m_sde), (3, dpmpp_3m_sde)])
def test_multistep_sde_is_that_of_k_diffusion(order, sampler, eta):
    """diffusers' third order with noise is left out: it has phi_2 / H + 1/2 where there must be phi_2 / H - 1/2."""
    points, z = LINEAR.points(trailing(1000, 9)), normal(20, 16, 1, 1, 2, seed=3).astype("float64")
    y, lambdas = X / points[0].alpha, [log(p.alpha / p.sigma) for p in points[:-1]]
    seen, states = [], [y * points[0].alpha]
    for n, (here, there) in enumerate(pairwise(lambdas)):
        seen.insert(0, estimate(y, np.exp(-here)))
        h, whole = there - here, (there - here) * (1 + eta)
        y = np.exp(-whole) * y - expm1(-whole) * seen[0]
        phi_2 = expm1(-whole) / whole + 1
        if n == 1 or (n and order == 2):
            slope_ = (seen[0] - seen[1]) * h / (here - lambdas[n - 1])
            y += (phi_2 if order == 3 else -expm1(-whole) / 2) * slope_
        elif n:
            late, early = (here - lambdas[n - 1]) / h, (lambdas[n - 1] - lambdas[n - 2]) / h
            d_late, d_early = (seen[0] - seen[1]) / late, (seen[1] - seen[2]) / early
            d_1 = d_late + (d_late - d_early) * late / (late + early)
            d_2 = (d_late - d_early) / (late + early)
            y += phi_2 * d_1 - (phi_2 / whole - 0.5) * d_2
        y += np.exp(-there) * sqrt(-expm1(-2 * eta * h)) * z[n]
        states.append(y * points[n + 1].alpha)
    ours = states_by_hand(sampler(points, eta=eta), X, z, best_clean)
    np.testing.assert_allclose(ours[:-1], states, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours[-1], estimate(y, np.exp(-lambdas[-1])), rtol=1e-9, atol=1e-9)


# ---- the real loop --------------------------------------------------------------------------------------------------


def said(x, t, o):
    """A network in plain arithmetic that knows the timestep alone."""
    return x * o.cos(t / 300.0) - 0.5 * o.tanh(2.0 * x) * o.sin(t / 200.0 + 0.3)


class Said(layers.Layer):
    def call(self, x, t):
        return said(x, t[:, None, None, None], ops)


@pytest.fixture(scope="module")
def step():
    """One compiled step, whose rows are arguments: it serves every sampler."""
    inputs = {"image": keras.Input((4, 4, 1), name="image"), "timestep": keras.Input((), name="timestep")}
    network = keras.Model(inputs, Said(autocast=False)(*inputs.values()))
    return make_step(network, velocity, classifier_free, unclipped)


@pytest.mark.parametrize("name", ALL)
def test_loop_gives_what_the_rows_say(step, name):
    schedule = flow() if name in FLOW else LINEAR
    rows = ALL[name](schedule.points(trailing(1000, 8)))
    x, z = normal(2, 4, 4, 1, seed=6), normal(len(rows), 2, 4, 4, 1, seed=7)

    def clean(x, point):
        t, alpha, sigma = point
        return (alpha * x - sigma * said(x, np.float64(t), np)) / (alpha**2 + sigma**2)

    expected = by_hand(rows, x, z, clean)
    assert len(rows) > 7 and np.abs(expected).max() > 0.1
    got = last([run(step, rows, x, lambda n: z[n])])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# ---- what is refused ------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    "sampler, name, values",
    [
        *[(s, "eta", (-0.1, 1.1, NAN)) for s in (euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde)],
        *[(s, "eta", (-0.1, 1.1, NAN)) for s in (dpmpp_2m_sde, dpmpp_3m_sde)],
        *[(s, "order", (0, 5, 1.5, "2", None)) for s in (lms, deis)],
        (unipc, "order", (0, 4, 2.5)),
        *[(s, "churn", (-1, NAN, float("inf"))) for s in (euler, heun)],
        *[(s, "churn_noise", (-1, NAN)) for s in (euler, heun)],
        *[(s, "churn_min", (-1, NAN)) for s in (euler, heun)],
        *[(s, "churn_max", (-1, NAN)) for s in (euler, heun)],
        (lcm, "timestep_scaling", (0, -1, NAN)),
        (lcm, "sigma_data", (0, -1, NAN)),
    ],
)
def test_samplers_refuse_options_outside(sampler, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must"):
            sampler(LINEAR.points([999, 500]), **{name: value})


@pytest.mark.parametrize("sampler", [dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, partial(heun, churn=1.0)])
def test_calls_between_the_points_need_the_schedule(sampler):
    with pytest.raises(ValueError, match="points must be what Schedule.points gives"):
        sampler(list(LINEAR.points([999, 500, 100])))


@pytest.mark.parametrize("sampler", FLOW.values())
def test_flow_samplers_refuse_other_schedules(sampler):
    with pytest.raises(ValueError, match="points must have alpha"):
        sampler(LINEAR.points([999, 500]))
    assert sampler([Point(0, 0.5, 0.5), CLEAN])


def test_inversion_refuses_to_leap_from_the_image_to_pure_noise():
    with pytest.raises(ValueError, match="points must be three or more"):
        ddim_inversion(SCHEDULES["zero_snr"].points([999]))


def test_spacings_serve_any_sampler():
    for spacing in (karras, exponential):
        points = LINEAR.points(spacing(1000, 12, schedule=LINEAR))
        assert np.isfinite(by_hand(dpmpp_2m(points), X, None, best_clean)).all()
