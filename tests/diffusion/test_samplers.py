"""Samplers step by step against diffusers', fed with the same noise, and against what every sampler must keep."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from unet_keras import (
    CLEAN,
    clipped,
    cosine,
    ddim,
    ddpm,
    flow,
    leading,
    linear,
    linspace,
    trailing,
    unclipped,
    zero_terminal_snr,
)

from .helpers import by_hand, normal, sampled

LINEAR = linear()
SPACINGS = [leading, trailing, linspace]


def eps(x, alpha, sigma):
    """A network in plain arithmetic: what a Gaussian around 0.4 asks for, and a bend. Its estimates leave [-1, 1]."""
    return sigma * (x - 0.4 * alpha) / (0.64 * alpha**2 + sigma**2) + 0.3 * alpha * x / (1 + x * x)


def clean(x, point, threshold=lambda estimate: estimate):
    _, alpha, sigma = point
    return threshold((x - sigma * eps(x, alpha, sigma)) / alpha)


def drawn(steps):
    """Begin, and one noise a step."""
    return normal(8, 1, 1, 3, seed=1), normal(steps, 8, 1, 1, 3, seed=2)


def walk(scheduler, steps, x, z, exact, **options):
    """Sample with a scheduler of diffusers: as it comes, in float32, or with our schedule in float64."""
    import torch

    bars = torch.tensor(LINEAR.alpha**2)
    if exact:
        scheduler.alphas_cumprod, scheduler.one = bars, torch.tensor(1.0).double()
        scheduler.final_alpha_cumprod = scheduler.one
    scheduler.set_timesteps(steps)
    x, z = (torch.tensor(v, dtype=torch.float64 if exact else torch.float32) for v in (x, z))
    for n, t in enumerate(scheduler.timesteps):
        bar = scheduler.alphas_cumprod[t]
        given = {k: z[n] for k in options if k == "variance_noise"}
        output = eps(x, bar**0.5, (1 - bar) ** 0.5)
        x = scheduler.step(output, t, x, **{**options, **given}).prev_sample
    return x.numpy()


def ddim_of_diffusers(spacing, steps, x, z, *, exact, clip=False, eta=0.0):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=clip, set_alpha_to_one=True, timestep_spacing=spacing.__name__)
    # Its direction uses the noise from before the clipping, unless told; ours has one estimate and uses that.
    return walk(scheduler, steps, x, z, exact, eta=eta, variance_noise=None, use_clipped_model_output=clip)


def ddpm_of_diffusers(monkeypatch, spacing, steps, x, z, *, exact, variance="fixed_small", clip=False):
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = module.DDPMScheduler(variance_type=variance, clip_sample=clip, timestep_spacing=spacing.__name__)
    # Where the last timestep is above 0 it adds noise to the finished image; we never do.
    import torch

    numbers = iter(torch.tensor(np.concatenate([z[:-1], 0 * z[-1:]])))
    monkeypatch.setattr(module, "randn_tensor", lambda *args, dtype, **options: next(numbers).to(dtype))
    return walk(scheduler, steps, x, z, exact)


def ddim_rows(spacing, steps, eta):
    """Our rows. diffusers goes down by 1000 // steps from each timestep, also where the spacing visits another next."""
    timesteps = spacing(1000, steps)
    if spacing is not linspace:
        return ddim(LINEAR.points(timesteps), eta=eta)
    below = [t - 1000 // steps for t in timesteps]
    ends = [LINEAR.at(t) if t >= 0 else CLEAN for t in below]
    return [ddim([LINEAR.at(t), end], eta=eta)[0] for t, end in zip(timesteps, ends, strict=True)]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_rows_are_those_of_diffusers(spacing, steps, eta):
    x, z = drawn(steps)
    expected = ddim_of_diffusers(spacing, steps, x, z, exact=True, eta=eta)
    np.testing.assert_allclose(by_hand(ddim_rows(spacing, steps, eta), x, z, clean), expected, atol=1e-9)


def check_loop(ours, reference, steps):
    """The loop computes in float32. diffusers' own tables are float32 too, which costs it 3e-5 over 1000 steps."""
    np.testing.assert_allclose(ours, reference(exact=True), atol=4e-6)
    if steps <= 50:
        np.testing.assert_allclose(ours, reference(exact=False), atol=1e-5)


@pytest.mark.parametrize("spacing, steps, eta", [(leading, 10, 0.3), (trailing, 20, 0.0), (linspace, 50, 1.0)])
def test_ddim_in_the_loop_is_that_of_diffusers(spacing, steps, eta):
    x, z = drawn(steps)
    ours = sampled(ddim_rows(spacing, steps, eta), eps, LINEAR, x, z)
    check_loop(ours, partial(ddim_of_diffusers, spacing, steps, x, z, eta=eta), steps)


@pytest.mark.parametrize("variance, theirs", [(0.0, "fixed_small"), (1.0, "fixed_large")])
@pytest.mark.parametrize("steps", [5, 10, 20, 50, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_rows_are_those_of_diffusers(monkeypatch, spacing, steps, variance, theirs):
    x, z = drawn(steps)
    expected = ddpm_of_diffusers(monkeypatch, spacing, steps, x, z, exact=True, variance=theirs)
    rows = ddpm(LINEAR.points(spacing(1000, steps)), variance=variance)
    np.testing.assert_allclose(by_hand(rows, x, z, clean), expected, atol=1e-9)


@pytest.mark.parametrize("variance, theirs", [(0.0, "fixed_small"), (1.0, "fixed_large")])
@pytest.mark.parametrize("spacing, steps", [(leading, 10), (trailing, 50), (linspace, 20), (trailing, 1000)])
def test_ddpm_in_the_loop_is_that_of_diffusers(monkeypatch, spacing, steps, variance, theirs):
    x, z = drawn(steps)
    ours = sampled(ddpm(LINEAR.points(spacing(1000, steps)), variance=variance), eps, LINEAR, x, z)
    check_loop(ours, partial(ddpm_of_diffusers, monkeypatch, spacing, steps, x, z, variance=theirs), steps)


@pytest.mark.parametrize("spacing", [leading, trailing])
def test_clipped_samplers_are_those_of_diffusers(monkeypatch, spacing):
    x, z = drawn(20)
    points = LINEAR.points(spacing(1000, 20))
    for rows, reference in [
        (ddim(points, eta=0.3), ddim_of_diffusers(spacing, 20, x, z, exact=False, clip=True, eta=0.3)),
        (ddpm(points), ddpm_of_diffusers(monkeypatch, spacing, 20, x, z, exact=False, clip=True)),
    ]:
        ours = sampled(rows, eps, LINEAR, x, z, threshold=clipped)
        np.testing.assert_allclose(ours, reference, atol=1e-5)
        assert np.abs(ours - sampled(rows, eps, LINEAR, x, z, threshold=unclipped)).max() > 0.1  # the clip was felt


# ---- what holds without a reference -----------------------------------------------------------------------------

SCHEDULES = {"linear": LINEAR, "cosine": cosine(), "flow": flow(), "zero_snr": zero_terminal_snr(LINEAR)}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", [ddpm, ddim, lambda points: ddim(points, eta=0.5)], ids=["ddpm", "ddim", "half"])
def test_rows_keep_the_marginals(sampler, name):
    # Given the true image, x' = a x + b x_0 + c z must again be alpha' x_0 + sigma' eps.
    schedule = SCHEDULES[name]
    points = schedule.points(trailing(1000, 30))
    for row, (here, there) in zip(sampler(points), pairwise(points), strict=True):
        (a,), (b,) = row.a, row.b
        assert row.point is here
        np.testing.assert_allclose(a * here.alpha + b, there.alpha, atol=1e-12)
        np.testing.assert_allclose((a * here.sigma) ** 2 + row.c**2, there.sigma**2, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_ddim_with_eta_one_is_ddpm(name, steps):
    points = SCHEDULES[name].points(trailing(1000, steps))
    for one, other in zip(ddim(points, eta=1.0), ddpm(points), strict=True):
        np.testing.assert_allclose([*one.a, *one.b, one.c], [*other.a, *other.b, other.c], atol=1e-12)


def test_variance_between_the_bounds_is_between_their_logarithms():
    points = LINEAR.points(trailing(1000, 20))
    small, half, large = (ddpm(points, variance=variance) for variance in (0.0, 0.5, 1.0))
    for low, middle, high in zip(small[:-1], half[:-1], large[:-1], strict=True):
        np.testing.assert_allclose(middle.c**2, low.c * high.c, rtol=1e-12)
        assert low.c < high.c


@pytest.mark.parametrize("sampler", [ddpm, ddim])
def test_samplers_end_at_the_estimate_without_noise(sampler):
    last = sampler(LINEAR.points([999, 400]))[-1]
    assert (last.a, last.b, last.c) == ((0,), (1,), 0)


def test_deterministic_ddim_asks_for_no_noise():
    assert all(row.c == 0 for row in ddim(LINEAR.points(trailing(1000, 50))))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_samplers_refuse_options_outside(value):
    with pytest.raises(ValueError, match="eta must lie between"):
        ddim(LINEAR.points([999]), eta=value)
    with pytest.raises(ValueError, match="variance must lie between"):
        ddpm(LINEAR.points([999]), variance=value)
