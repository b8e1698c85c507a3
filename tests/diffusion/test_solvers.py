"""What the solvers must keep without diffusers: their order, the data's law, k-diffusion's formulas, the real loop."""

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
    Points,
    beta,
    classifier_free,
    ddim,
    ddim_inversion,
    ddpm,
    deis,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    exponential,
    flow,
    flow_euler,
    flow_heun,
    heun,
    karras,
    lcm,
    linear,
    lms,
    plms,
    trailing,
    unclipped,
    unipc,
    velocity,
    zero_terminal_snr,
)
from unet_keras.diffusion.loop import last, make_step, run
from unet_keras.diffusion.samplers import HISTORY

from .helpers import by_hand, normal, states_by_hand
from .mixture import best_clean
from .test_mixture import COVARIANCE, MEAN, standard_errors

LINEAR = linear()
DETERMINISTIC = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm2": dpm2,
    "dpmpp_2s": partial(dpmpp_2s_ancestral, eta=0.0),
    "dpmpp_sde_0": partial(dpmpp_sde, eta=0.0),
    **{f"lms_{order}": partial(lms, order=order) for order in (1, 2, 3, 4)},
    **{f"deis_{order}": partial(deis, order=order) for order in (1, 2, 3, 4)},
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    **{f"unipc_{order}": partial(unipc, order=order) for order in (1, 2, 3)},
}
STOCHASTIC = {
    "ddpm": ddpm,
    "ddim_half": partial(ddim, eta=0.5),
    "euler_churn": partial(euler, churn=40.0, churn_max=50.0),
    "euler_ancestral": euler_ancestral,
    "heun_churn": partial(heun, churn=40.0, churn_max=50.0),
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_half": partial(dpmpp_2m_sde, eta=0.5),
    "dpmpp_3m_sde": dpmpp_3m_sde,
}
FLOW = {"flow_euler": flow_euler, "flow_heun": flow_heun}
ALL = {**DETERMINISTIC, **STOCHASTIC, "lcm": lcm, "ddim_inversion": ddim_inversion, **FLOW}


def geometric(steps, most=1000.0, least=0.1, extra=0):
    """Points whose sigma / alpha falls by one factor, from where all is noise, and ``extra`` steps more."""
    ratios = most * (least / most) ** (np.arange(steps + 1 + extra) / steps)
    return Points([LINEAR.at_ratio(ratio) for ratio in ratios], LINEAR)


def straight(steps):
    return [Point(0, 1 - s, s) for s in np.linspace(0.999, 0.1, steps + 1)]


def slope(errors, steps):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


# ---- orders ---------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((16, 1, 1, 2))
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


SCHEDULES = {"linear": LINEAR, "zero_snr": zero_terminal_snr(LINEAR), "flow": flow()}
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
    got = last(run(step, rows, x, lambda n: z[n]))
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
