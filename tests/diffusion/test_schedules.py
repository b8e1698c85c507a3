"""Schedules against the papers' formulas, written out here once more, and against diffusers'."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from unet_keras import (
    CLEAN,
    Schedule,
    beta,
    cosine,
    exponential,
    flow,
    karras,
    leading,
    linear,
    linspace,
    scaled_linear,
    sigmoid,
    trailing,
    zero_terminal_snr,
)

ALL = {
    "linear": linear(),
    "scaled_linear": scaled_linear(),
    "cosine": cosine(),
    "sigmoid": sigmoid(),
    "flow": flow(),
    "zero_snr": zero_terminal_snr(linear()),
}
DIFFUSERS = {
    "linear": (linear(), {"beta_schedule": "linear"}),
    "scaled_linear": (scaled_linear(), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": (cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
    "sigmoid": (sigmoid(), {"beta_schedule": "sigmoid"}),
    "linear-50": (linear(50, 0.001, 0.3), {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.3}),
}


def falling(beta):
    """alpha_bar_t = prod_{s <= t} (1 - beta_s) over t = 0 ... 999, in plain Python."""
    bars, bar = [], 1.0
    for t in range(1000):
        bar *= 1 - beta(t)
        bars.append(bar)
    return bars


def cosine_bar():
    """f(t) / f(0), of Nichol & Dhariwal 2021, equation 17; the last beta is capped at 0.999."""
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    return [f[t] / f[0] for t in range(1, 1000)] + [f[999] / f[0] * 0.001]


PAPERS = {
    "linear": falling(lambda t: 1e-4 + (0.02 - 1e-4) * t / 999),
    "scaled_linear": falling(lambda t: (math.sqrt(0.00085) * (1 - t / 999) + math.sqrt(0.012) * t / 999) ** 2),
    "cosine": cosine_bar(),
    "sigmoid": falling(lambda t: 1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * t / 999))),
}


@pytest.mark.parametrize("name", PAPERS)
def test_alpha_bar_is_the_papers(name):
    np.testing.assert_allclose(ALL[name].alpha ** 2, PAPERS[name], rtol=1e-10)
    np.testing.assert_allclose(ALL[name].sigma ** 2, 1 - np.array(PAPERS[name]), rtol=1e-9)


@pytest.mark.parametrize("name, least, most", [("linear", 0.0100, 157.407), ("scaled_linear", 0.0292, 14.6146)])
def test_noise_range_is_the_published_one(name, least, most):
    ratio = ALL[name].sigma / ALL[name].alpha
    np.testing.assert_allclose([ratio[0], ratio[-1]], [least, most], rtol=2e-3)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_alpha_bar_is_that_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    schedule, options = DIFFUSERS[name]
    # Its betas are float32; so is its product of 1 - beta, which costs 1e-6: multiply them again in float64.
    betas = diffusers.DDPMScheduler(**options).betas.double().numpy()
    np.testing.assert_allclose(schedule.alpha**2, np.cumprod(1 - betas), rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", [linear(), scaled_linear(), cosine(100)], ids=["linear", "scaled", "cosine"])
def test_zero_terminal_snr_is_that_of_diffusers(schedule):
    torch = pytest.importorskip("torch")
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    bar = schedule.alpha**2
    betas = torch.tensor(1 - bar / np.concatenate([[1.0], bar[:-1]]))
    expected = np.cumprod(1 - ddim.rescale_zero_terminal_snr(betas).numpy())
    ours = zero_terminal_snr(schedule)
    np.testing.assert_allclose(ours.alpha**2, expected, rtol=0, atol=1e-12)
    assert ours.alpha[-1] == 0 and ours.sigma[-1] == 1
    assert math.isclose(ours.alpha[0], schedule.alpha[0], rel_tol=1e-12)


def test_zero_terminal_snr_leaves_what_ends_in_noise_and_refuses_what_has_another_spread():
    ended, straight = zero_terminal_snr(linear()), flow()
    assert zero_terminal_snr(ended) is ended and zero_terminal_snr(straight) is straight
    with pytest.raises(ValueError, match=r"alpha\^2 \+ sigma\^2 = 1 unless it ends in pure noise"):
        zero_terminal_snr(Schedule(straight.alpha[:-1], straight.sigma[:-1]))


def test_between_timesteps_flow_stays_straight():
    for steps in (10, 1000):
        schedule = flow(steps)
        for timestep in (0.3, 4.5, steps - 1.25):
            _, alpha, sigma = schedule.at(timestep)
            assert alpha == pytest.approx(1 - sigma, abs=1e-12) and sigma == pytest.approx((timestep + 1) / steps)
            assert schedule.at_ratio(sigma / alpha).timestep == pytest.approx(timestep)


def test_flow_goes_straight():
    schedule = flow(4)
    np.testing.assert_array_equal(schedule.sigma, [0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(schedule.alpha, [0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("name", ALL)
def test_signal_to_noise_falls_from_image_to_noise(name):
    snr = ALL[name].snr
    assert len(ALL[name]) == 1000 and (np.diff(snr) < 0).all() and snr[0] > 100 and snr[-1] < 0.01


# ---- between the timesteps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_at_whole_timesteps_gives_the_tables(name):
    schedule = ALL[name]
    for t in (0, 1, 500, 999):
        assert schedule.at(t) == (t, schedule.alpha[t], schedule.sigma[t])


@pytest.mark.parametrize("name", sorted(set(ALL) - {"flow"}))
def test_at_between_timesteps_divides_the_logarithm(name):
    schedule, t = ALL[name], 700.25
    (_, alpha0, sigma0), (_, alpha1, sigma1) = schedule.at(700), schedule.at(701)
    point = schedule.at(t)
    assert math.isclose(point.alpha**2 + point.sigma**2, 1, rel_tol=1e-12)
    expected = 0.75 * math.log(sigma0 / alpha0) + 0.25 * math.log(sigma1 / alpha1)
    assert point.timestep == t and math.isclose(math.log(point.sigma / point.alpha), expected, rel_tol=1e-12)


def test_at_divides_the_angle_where_alpha_falls_to_0():
    schedule = ALL["zero_snr"]
    (_, alpha0, sigma0), point = schedule.at(998), schedule.at(998.25)
    expected = 0.75 * math.atan(sigma0 / alpha0) + 0.25 * math.pi / 2
    assert math.isclose(math.atan(point.sigma / point.alpha), expected, rel_tol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_at_ratio_is_the_inverse_of_at(name):
    schedule = ALL[name]
    for t in (0, 0.3, 500, 997.9, 998, 998.6):
        point = schedule.at(t)
        np.testing.assert_allclose(schedule.at_ratio(point.sigma / point.alpha), point, rtol=1e-9, atol=1e-9)


def test_at_ratio_keeps_to_the_ends_timesteps():
    schedule = ALL["linear"]
    for ratio, timestep in [(1e-3, 0), (1e4, 999)]:
        point = schedule.at_ratio(ratio)
        assert point.timestep == timestep
        np.testing.assert_allclose([point.sigma / point.alpha, math.hypot(*point[1:])], [ratio, 1], rtol=1e-12)
    assert Schedule([0.8], [0.6]).at_ratio(2.0).timestep == 0


@pytest.mark.parametrize("ratio", [0, -1, float("inf"), float("nan")])
def test_at_ratio_refuses_what_is_no_ratio(ratio):
    with pytest.raises(ValueError, match="ratio must be positive and finite"):
        linear().at_ratio(ratio)


@pytest.mark.parametrize("name", ALL)
def test_at_between_timesteps_lies_between_them(name):
    schedule = ALL[name]
    for t in (0.5, 499.999, 998.1):
        before, point, after = schedule.at(int(t)), schedule.at(t), schedule.at(int(t) + 1)
        assert before.alpha > point.alpha > after.alpha and before.sigma < point.sigma < after.sigma


def test_points_end_at_the_clean_image_unless_told():
    schedule = linear()
    assert schedule.points([999, 3.5]) == [schedule.at(999), schedule.at(3.5), CLEAN]
    assert schedule.points([999], end=schedule.at(5))[-1].timestep == 5
    assert CLEAN == (-1, 1, 0)


# ---- spacings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 7, 10, 20, 50, 999, 1000])
@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_spacing_is_that_of_diffusers(scheduler, spacing, steps):
    diffusers = pytest.importorskip("diffusers")
    if (spacing, steps) == (linspace, 1):
        pytest.skip("diffusers' single timestep is 0, the least noisy; ours is the noisiest")
    reference = getattr(diffusers, scheduler)(timestep_spacing=spacing.__name__)
    reference.set_timesteps(steps)
    np.testing.assert_array_equal(spacing(1000, steps), reference.timesteps.numpy())


@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
@pytest.mark.parametrize("total, steps", [(1000, 3), (1000, 17), (1000, 333), (40, 39), (7, 7), (1, 1)])
def test_spacing_falls_within_the_schedule(spacing, total, steps):
    timesteps = spacing(total, steps)
    assert len(timesteps) == steps and (np.diff(timesteps) < 0).all()
    assert timesteps.max() <= total - 1 and timesteps.min() >= 0 and (timesteps == np.round(timesteps)).all()


def test_trailing_and_linspace_begin_at_the_noisiest():
    for spacing in (trailing, linspace):
        assert [spacing(1000, steps)[0] for steps in (1, 2, 30, 1000)] == [999] * 4


NAMED = {name: schedule for name, schedule in ALL.items() if name != "flow"}


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
@pytest.mark.parametrize("name", NAMED)
def test_karras_and_exponential_let_a_power_of_the_ratio_fall_evenly(name, steps):
    schedule = NAMED[name]
    pure = int(schedule.alpha[-1] == 0)  # which has no ratio, and comes first
    for spacing, scale in [(karras, lambda r: r ** (1 / 7)), (exponential, np.log)]:
        timesteps = spacing(1000, steps, schedule=schedule)
        assert len(timesteps) == steps and (np.diff(timesteps) < 0).all() and timesteps[0] == 999
        points = schedule.points(timesteps)[pure:-1]
        ratios = np.array([point.sigma / point.alpha for point in points])
        np.testing.assert_allclose(ratios[0], schedule.ratio[999 - pure], rtol=1e-9)
        if steps - pure > 1:
            np.testing.assert_allclose(ratios[-1], schedule.ratio[0], rtol=1e-9)
            np.testing.assert_allclose(np.diff(scale(ratios), 2), 0, atol=1e-8)


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("spacing", [karras, exponential])
def test_timesteps_between_are_those_of_diffusers(spacing, steps):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    reference = diffusers.EulerDiscreteScheduler(**{f"use_{spacing.__name__}_sigmas": True})
    reference.alphas_cumprod = torch.tensor(linear().alpha ** 2)  # its own is float32, which moves timesteps by 0.01
    reference.set_timesteps(steps)
    np.testing.assert_allclose(spacing(1000, steps, schedule=linear()), reference.timesteps.numpy(), atol=1e-4)


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("spacing", [karras, exponential])
def test_timesteps_between_are_those_of_diffusers_for_flow_matching(spacing, steps):
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.FlowMatchEulerDiscreteScheduler(**{f"use_{spacing.__name__}_sigmas": True})
    reference.set_timesteps(steps)
    schedule = flow()
    points = schedule.points(spacing(1000, steps, schedule=schedule))
    np.testing.assert_allclose([p.sigma for p in points], reference.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose([1000 * p.sigma for p in points[:-1]], reference.timesteps.numpy(), atol=1e-3)


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_linspace_without_rounding_is_that_of_diffusers_samplers_by_sigma(steps):
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    reference.set_timesteps(steps)
    unrounded = np.linspace(999, 0, steps)
    np.testing.assert_allclose(unrounded, reference.timesteps.numpy(), atol=1e-4)
    assert np.abs(linspace(1000, steps) - unrounded).max() <= 0.5


@pytest.mark.parametrize("a, b", [(0.6, 0.6), (1, 1), (0.5, 2), (5, 0.7), (3, 4)])
def test_beta_takes_the_distributions_quantiles(a, b):
    stats = pytest.importorskip("scipy.stats")
    for steps in (1, 2, 5, 50):
        timesteps = beta(1000, steps, a=a, b=b)
        expected = 999 * stats.beta.ppf(1 - np.arange(steps) / steps, a, b)
        np.testing.assert_allclose(timesteps, expected, atol=1e-9)
        assert timesteps[0] == 999 and (np.diff(timesteps) < 0).all() and timesteps[-1] >= 0


@pytest.mark.parametrize(
    "spacing, name, values", [(karras, "rho", (0, -1)), (beta, "a", (0, -1)), (beta, "b", (0, -1))]
)
def test_spacings_refuse_options_outside(spacing, name, values):
    for value in [*values, float("nan"), float("inf")]:
        options = {name: value, **({"schedule": linear()} if spacing is karras else {})}
        with pytest.raises(ValueError, match=rf"\b{name}\b.* must be positive"):
            spacing(1000, 10, **options)


def test_spacings_refuse_another_schedule():
    with pytest.raises(ValueError, match="schedule must have the 1000 timesteps"):
        karras(1000, 10, schedule=linear(50))


# ---- the value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha, sigma, message",
    [
        ([0.9, 0.5], [0.1], "one length"),
        ([], [], "one length"),
        ([[0.9]], [[0.1]], "one length"),
        ([1.1, 0.5], [0.1, 0.5], "timestep 0"),
        ([0.9, -0.1], [0.1, 0.5], "timestep 1"),
        ([0.9, 0.5], [0.0, 0.5], "timestep 0"),
        ([0.9, float("nan")], [0.1, 0.5], "timestep 1"),
        ([0.9, 0.5], [0.1, float("inf")], "timestep 1"),
        ([0.9, 0.9], [0.1, 0.1], "timestep 0"),
        ([0.9, 0.5, 0.6], [0.1, 0.5, 0.5], "timestep 1"),
    ],
)
def test_schedule_refuses_what_is_none(alpha, sigma, message):
    with pytest.raises(ValueError, match=message):
        Schedule(alpha, sigma)


@pytest.mark.parametrize("timestep", [-1, -0.001, 999.001, 1000, float("nan")])
def test_at_refuses_timesteps_outside(timestep):
    with pytest.raises(ValueError, match="timestep must lie in"):
        linear().at(timestep)


@pytest.mark.parametrize("name", ALL)
def test_configuration_comes_back_to_the_last_bit(name):
    written = json.dumps(keras.saving.serialize_keras_object(ALL[name]))
    read = keras.saving.deserialize_keras_object(json.loads(written))
    assert isinstance(read, Schedule)
    np.testing.assert_array_equal(read.alpha, ALL[name].alpha)
    np.testing.assert_array_equal(read.sigma, ALL[name].sigma)


def test_schedule_cannot_be_changed():
    alpha = np.array([0.9, 0.5])
    schedule = Schedule(alpha, [0.1, 0.5])
    alpha[:] = 0
    assert schedule.alpha.tolist() == [0.9, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.alpha = alpha
