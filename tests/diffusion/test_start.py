"""From an image: noised part of the way and back, as diffusers' image-to-image does; and to its noise and back."""

import numpy as np
import pytest

from unet_keras import (
    DiffusionModel,
    ddim,
    ddim_inversion,
    ddpm,
    euler,
    flow_velocity,
    heun,
    karras,
    latents,
    linear,
    trailing,
    zero_terminal_snr,
)

from .helpers import closed_form, network, normal, pixels, trainer

SHAPE = (4, 4, 3)


def eps(x, alpha, sigma):
    """The best prediction of noise for data of N(0.1, 0.3^2)."""
    return sigma * (x - alpha * 0.1) / (0.09 * alpha**2 + sigma**2)


def model(schedule=None, **options):
    schedule = schedule or linear()
    net = closed_form(eps, schedule, SHAPE)
    return DiffusionModel(net, schedule, values=latents, ema=None, **options)


def of_diffusers(start, noise, steps, strength):
    """What diffusers' image-to-image pipelines do, with the same network."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - int(steps * strength) :]
    x = scheduler.add_noise(torch.tensor(start), torch.tensor(noise), timesteps[:1])
    for t in timesteps:
        bar = scheduler.alphas_cumprod[t]
        x = scheduler.step(eps(x, bar**0.5, (1 - bar) ** 0.5), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_image_to_image_is_that_of_diffusers(strength):
    start, noise = 0.1 + 0.3 * normal(2, *SHAPE), normal(2, *SHAPE, seed=1)
    ours = model().generate(2, start=start, strength=strength, steps=10, noise=noise)
    np.testing.assert_allclose(ours, of_diffusers(start, noise, 10, strength), atol=1e-5)


def test_bytes_begin_where_floats_do():
    one, images = trainer(), pixels(2)
    options = {"strength": 0.5, "steps": 4, "seed": 3}
    floats = images.astype("float32") / 127.5 - 1
    assert (one.generate(2, start=images, **options) == one.generate(2, start=floats, **options)).all()
    assert (one.generate(2, start=images, **options) != one.generate(2, steps=4, seed=3)).any()


def test_starts_follow_their_images_through_batches():
    one, images = trainer(3), pixels(3)
    asked = {"label": np.array([0, 1, 0])}
    options = {"start": images, "strength": 0.5, "steps": 4, "seed": 3, "sampler": ddpm}
    whole, parts = (one.generate(asked, batch_size=size, **options).astype(int) for size in (None, 2))
    assert np.abs(whole - parts).max() <= 1


def test_pure_noise_keeps_nothing_of_the_start():
    schedule = zero_terminal_snr(linear())
    net = DiffusionModel(closed_form(lambda x, a, s: 0.3 * x, schedule, SHAPE), schedule, flow_velocity, ema=None)
    one, other = (net.generate(2, start=pixels(2, seed, SHAPE), steps=3, seed=0) for seed in (0, 1))
    assert (one == other).all()


def test_a_network_of_open_size_takes_the_starts():
    net = DiffusionModel(network(shape=(None, None, 3)), ema=None)
    assert net.generate(1, start=pixels(1, shape=(6, 10, 3)), steps=2, seed=0).shape == (1, 6, 10, 3)


@pytest.mark.parametrize("sampler", [ddim, euler])
def test_inversion_leads_back_to_the_image(sampler):
    net, start, errors = model(), 0.1 + 0.3 * normal(2, *SHAPE), []
    for steps in (25, 100):
        noise = net.invert(start, steps=steps)
        errors.append(np.abs(net.generate(2, noise=noise, steps=steps, sampler=sampler) - start).max())
    assert 3 < errors[0] / errors[1] < 5, errors  # first order


def test_inversion_finds_the_noise_of_a_gaussian():
    """There the path is known: x keeps its place among the quantiles of N(0.1 alpha, 0.09 alpha^2 + sigma^2)."""
    start, point = 0.1 + 0.3 * normal(2, *SHAPE), linear().at(999)
    expected = 0.1 * point.alpha + np.hypot(0.3 * point.alpha, point.sigma) * (start - 0.1) / 0.3
    np.testing.assert_allclose(model().invert(start, steps=500), expected, atol=0.02)


def test_inversion_looks_at_the_conditions():
    one, images = trainer(3), pixels(2)
    found = [one.invert(images, np.full(2, label), steps=4) for label in (0, 1)]
    assert found[0].shape == images.shape and np.abs(found[0] - found[1]).max() > 1e-3


REFUSED = {
    "strength must be above 0": {"start": pixels(2), "strength": 0.0},
    "at most 1": {"start": pixels(2), "strength": 1.2},
    "give start, or leave strength at 1": {"strength": 0.5},
    "start holds 3 images and 2 are asked for": {"start": pixels(3)},
    "leave size out": {"start": pixels(2), "size": (8, 8)},
    "images must have the shape": {"start": pixels(2, shape=(8, 9, 3))},
    "must lie in": {"start": 3.0 * pixels(2).astype("float32")},
    r"noise must be of shape \(1 \+ network calls": {"noise": normal(2, 8, 8, 3), "sampler": ddpm},
    "noise must be finite": {"noise": np.full((2, 8, 8, 3), np.nan)},
}


@pytest.fixture(scope="module")
def small():
    return trainer()


@pytest.mark.parametrize("message", REFUSED)
def test_bad_starts_are_refused(small, message):
    with pytest.raises(ValueError, match=message):
        small.generate(2, steps=4, **REFUSED[message])


@pytest.mark.parametrize("steps", [1, 4])
def test_samplers_that_lead_the_other_way_are_refused(small, steps):
    with pytest.raises(ValueError, match="sampler leads from the image to noise.*ddim_inversion is for invert"):
        small.generate(2, steps=steps, sampler=ddim_inversion)
    for sampler in (ddim, heun):
        with pytest.raises(ValueError, match="sampler leads from noise to the image.*invert takes ddim_inversion"):
            small.invert(pixels(2), steps=steps, sampler=sampler)


def test_noise_is_not_given_to_inversion(small):
    with pytest.raises(ValueError, match="noise is what inversion finds"):
        small.invert(pixels(2), steps=4, noise=normal(2, 8, 8, 3))


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (lambda total, steps: np.linspace(0, total - 1, steps), "4 timesteps that fall"),
        (lambda total, steps: trailing(total, steps + 1), "4 timesteps that fall"),
        (lambda total, steps: trailing(total, steps // 2), "4 timesteps that fall"),
        (lambda total, steps: [999, 500, 500, 0], "4 timesteps that fall"),
        (lambda total, steps: [999, 500, np.nan, 0], "4 timesteps that fall"),
        (lambda total, steps: [1001, 500, 20, 0], r"timestep must lie in \[0, 999\]"),
        (karras, "spacing must take .T, steps. alone.*bind"),
    ],
)
def test_spacings_that_give_no_falling_timesteps_are_refused(small, spacing, message):
    with pytest.raises(ValueError, match=message):
        small.generate(2, steps=4, spacing=spacing)


def test_a_start_of_another_scale_is_warned_of(small):
    with pytest.warns(UserWarning, match="0"):
        small.generate(2, steps=2, start=pixels(2).astype("float32") / 255)
