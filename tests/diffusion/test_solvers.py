"""What samplers must keep without any reference: their order, and the law of the data."""

from functools import partial
from math import sqrt

import numpy as np
import pytest

from unet_keras import (
    Point,
    Points,
    beta,
    ddim,
    ddim_inversion,
    ddpm,
    deis,
    dpm2,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    euler,
    euler_ancestral,
    flow,
    flow_heun,
    karras,
    lcm,
    lms,
    plms,
    trailing,
    unipc,
    zero_terminal_snr,
)
from unet_keras.diffusion.samplers import HISTORY

from .helpers import by_hand, normal
from .mixture import best_clean
from .solvers import ALL, DETERMINISTIC, FLOW, LINEAR, SCHEDULES, STOCHASTIC, X
from .test_mixture import COVARIANCE, MEAN, standard_errors


def geometric(steps, most=1000.0, least=0.1, extra=0):
    """Points whose sigma / alpha falls by one factor, from where all is noise, and ``extra`` steps more."""
    ratios = most * (least / most) ** (np.arange(steps + 1 + extra) / steps)
    return Points([LINEAR.at_ratio(ratio) for ratio in ratios], LINEAR)


def straight(steps):
    return [Point(0, 1 - s, s) for s in np.linspace(0.999, 0.1, steps + 1)]


def slope(errors, steps):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


# ---- orders ---------------------------------------------------------------------------------------------------------

ORDERS = {"ddim": 1, "euler": 1, "plms": 2, "unipc_1": 2, "unipc_2": 3, "unipc_3": 4, "flow_euler": 1}
ORDERS |= {f"{name}_{order}": order for name in ("lms", "deis") for order in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def exact():
    """Where the fine solutions end, on the two paths."""
    return by_hand(lms(geometric(1500)), X, None, best_clean), by_hand(flow_heun(straight(2000)), X, None, best_clean)


@pytest.mark.parametrize("name", [*DETERMINISTIC, *FLOW])
def test_error_falls_with_the_samplers_order(exact, name):
    """A constant estimate is every method's exact case, so that starting with a first order step costs nothing here.

    UniPC lowers its order over the last steps, and is looked at before. DPM-Solver++(3M) is second order as published:
    its d_2 is half the second derivative that phi_3 goes with; so is PLMS, whose weights are those of even steps.
    """
    counts, errors = [40, 80, 160, 320, 640], []
    for steps in counts:
        if name in FLOW:
            x, true = by_hand(FLOW[name](straight(steps)), X, None, best_clean), exact[1]
        else:
            extra = 3 if name.startswith("unipc") else 0
            rows = DETERMINISTIC[name](geometric(steps, extra=extra))
            x, true = by_hand(rows[: len(rows) - extra], X, None, best_clean), exact[0]
        errors.append(np.sqrt(np.mean((x - true) ** 2)))
    order = ORDERS.get(name, 2)
    assert order - 0.5 < slope(errors, counts) < order + 0.5, (slope(errors, counts), errors)
    assert errors[-1] < 3e-3


def test_plms_is_of_fourth_order_where_steps_are_even():
    def ending(sampler, steps):
        ratios = np.linspace(10, 1, steps + 1)
        return by_hand(sampler([LINEAR.at_ratio(ratio) for ratio in ratios]), X, None, best_clean)

    true, counts = ending(lms, 2000), [80, 160, 320]
    errors = [np.sqrt(np.mean((ending(plms, steps) - true) ** 2)) for steps in counts]
    assert 3.5 < slope(errors, counts) < 4.5, errors


def test_inversion_comes_back_as_the_steps_grow_finer():
    image = by_hand(dpm2(LINEAR.points(trailing(1000, 100))), X, None, best_clean)  # as likely as the data are
    counts, errors = [50, 100, 200], []
    for steps in counts:
        points = LINEAR.points(trailing(1000, steps))
        noise = by_hand(ddim_inversion(points), image, None, best_clean)
        errors.append(np.sqrt(np.mean((by_hand(ddim(points), noise, None, best_clean) - image) ** 2)))
    assert 0.7 < slope(errors, counts) < 1.3, errors


def gaussian_after(rows, points, mean=0.4, spread=0.3):
    """How far rows, begun at the true law, end from it in mean and spread, with the best network for a Gaussian.

    Everything is linear: the last four states are Gaussian together.
    """
    (_, alpha, sigma), (_, last_alpha, last_sigma) = points[0], points[-1]
    m, cov, estimates = np.zeros(4), np.zeros((4, 4)), []
    m[0], cov[0, 0] = alpha * mean, (alpha * spread) ** 2 + sigma**2
    for row in rows:
        _, alpha, sigma = row.point
        gain = alpha * spread**2 / ((alpha * spread) ** 2 + sigma**2)  # D = mean + gain (x - alpha mean)
        estimates = [(gain, mean - gain * alpha * mean), *estimates]
        step, shift = np.eye(4, k=-1), 0.0
        step[0, : len(row.a)] += row.a
        for k, (b, (gain, constant)) in enumerate(zip(row.b, estimates, strict=False)):
            step[0, k] += b * gain
            shift += b * constant
        m, cov = step @ m, step @ cov @ step.T
        m[0], cov[0, 0] = m[0] + shift, cov[0, 0] + row.c**2
    return m[0] - last_alpha * mean, sqrt(cov[0, 0]) - sqrt((last_alpha * spread) ** 2 + last_sigma**2)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_law_of_a_gaussian_is_met_with_the_samplers_order(name):
    counts, errors = [160, 320, 640], []
    for steps in counts:
        points = geometric(steps)
        off_mean, off_spread = gaussian_after(STOCHASTIC[name](points), points)
        assert abs(off_mean) < 1e-12
        errors.append(abs(off_spread))
    order = 1 if name.startswith(("dd", "euler")) else 2
    assert order - 0.25 < slope(errors, counts) < order + 0.25, (slope(errors, counts), errors)


def test_lcm_meets_a_gaussian_with_its_consistency_function():
    mean, spread, m, v = 0.4, 0.3, 0.0, 1.0
    for row in lcm(LINEAR.points(trailing(1000, 4))):
        _, alpha, sigma = row.point
        gain = spread / sqrt((alpha * spread) ** 2 + sigma**2)  # f = mean + gain (x - alpha mean)
        factor = row.a[0] + row.b[0] * gain
        m, v = factor * m + row.b[0] * (mean - gain * alpha * mean), factor**2 * v + row.c**2
    assert abs(m - mean) < 0.01 and abs(sqrt(v) - spread) < 0.005


# ---- the data's law -------------------------------------------------------------------------------------------------

COUNT = 2500


@pytest.fixture(scope="module")
def fresh():
    """Noise for 200 rows."""
    return np.random.default_rng(5).standard_normal((200, COUNT, 1, 1, 2))


LAWS = [(name, "zero_snr") for name in [*DETERMINISTIC, *STOCHASTIC]] + [(name, "flow") for name in FLOW]


@pytest.mark.parametrize("name, schedule", LAWS)
def test_mixture_comes_out_with_its_mean_and_covariance(fresh, name, schedule):
    rows = ALL[name](SCHEDULES[schedule].points(trailing(1000, 100)))
    assert all(np.isfinite([*row.point, *row.a, *row.b, row.c]).all() for row in rows)
    x = by_hand(rows, normal(COUNT, 1, 1, 2, seed=4), fresh, best_clean)[:, 0, 0]
    of_mean, of_covariance = standard_errors(x)
    # 4.5 standard errors, and what 100 steps cost: most with methods of first order.
    assert (np.abs(x.mean(axis=0) - MEAN) < 4.5 * of_mean + 0.005).all()
    assert (np.abs(np.cov(x.T) - COVARIANCE) < 4.5 * of_covariance + 0.005).all()


@pytest.mark.parametrize("schedule", ["linear", "zero_snr"])
@pytest.mark.parametrize("name", sorted(set(ALL) - set(FLOW)))
def test_any_number_of_steps_has_rows(name, schedule):
    schedule = SCHEDULES[schedule]
    for steps in range(1 + (name == "ddim_inversion"), 6):
        for timesteps in (trailing(1000, steps), beta(1000, steps), karras(1000, steps, schedule=schedule)):
            rows = ALL[name](schedule.points(timesteps))
            assert len(rows) >= steps and max(max(len(row.a), len(row.b)) for row in rows) <= HISTORY
            assert np.isfinite(by_hand(rows, X, normal(20, 16, 1, 1, 2), best_clean)).all()


NOT_AT_THE_ESTIMATE = {"ddim_inversion", "lcm", "plms", "lms_2", "lms_3", "lms_4"}


@pytest.mark.parametrize("name", sorted(set(ALL) - set(FLOW) - NOT_AT_THE_ESTIMATE))
def test_samplers_end_at_the_estimate(name):
    last = ALL[name](LINEAR.points(trailing(1000, 10)))[-1]
    np.testing.assert_allclose([*last.a, *last.b[1:], last.c], 0, atol=1e-12)
    np.testing.assert_allclose(last.b[0], 1, atol=1e-12)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_ask_for_no_noise(name):
    assert all(row.c == 0 for row in DETERMINISTIC[name](LINEAR.points(trailing(1000, 20))))


@pytest.mark.parametrize("one, other", [(euler, ddim), (euler_ancestral, ddpm), (partial(lms, order=1), ddim)])
def test_samplers_that_are_the_same(one, other):
    points = LINEAR.points(trailing(1000, 20))
    for mine, theirs in zip(one(points), other(points), strict=True):
        np.testing.assert_allclose([*mine.a, *mine.b, mine.c], [*theirs.a, *theirs.b, theirs.c], atol=1e-12)


@pytest.mark.parametrize("name", FLOW)
def test_flow_samplers_are_exact_where_the_estimate_stands_still(name):
    points = flow().points(trailing(1000, 7))
    x = by_hand(FLOW[name](points), X, None, lambda x, point: np.full_like(x, 0.3))
    np.testing.assert_allclose(x, 0.3, atol=1e-12)


@pytest.mark.parametrize("schedule", [LINEAR, zero_terminal_snr(LINEAR)], ids=["linear", "pure noise"])
@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (lms, {"order": 9}, "order must be a whole number from 1 to 4, got 9"),
        (lms, {"order": 2.0}, "got 2.0"),
        (deis, {"order": 0}, "got 0"),
        (unipc, {"order": True}, "got True"),
        (dpmpp_2m_sde, {"eta": -1.0}, "eta"),
        (dpmpp_3m_sde, {"eta": 2.0}, "eta"),
    ],
)
def test_options_are_checked_whatever_the_points(sampler, options, message, schedule, steps):
    points = schedule.points(trailing(1000, steps))
    assert len(sampler(points)) == steps
    with pytest.raises(ValueError, match=message):
        sampler(points, **options)
