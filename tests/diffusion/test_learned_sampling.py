"""Sampling with the learned variance: step by step as diffusers, by every path that an output takes."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import (
    DiffusionModel,
    Level,
    Row,
    TokenEncoder,
    attention,
    build_unet,
    classifier_free,
    clean,
    clipped,
    cosine,
    cross_attention,
    ddim,
    ddpm,
    ddpm_learned,
    dpmpp_2m,
    flow,
    flow_velocity,
    leading,
    linear,
    linspace,
    noise,
    rescaled,
    trailing,
    unclipped,
    velocity,
    zero_terminal_snr,
)

from .helpers import SHAPE, Closed, network, normal, trainer, wide
from .helpers import pixels as random_images

LINEAR = linear()
numpy = ops.convert_to_numpy


def eps(x, alpha, sigma):
    """What a Gaussian around 0.4 asks for, and a bend."""
    return sigma * (x - 0.4 * alpha) / (0.64 * alpha**2 + sigma**2) + 0.3 * alpha * x / (1 + x * x)


def v(x, alpha):
    """Where the variance lies, in [-1, 1]."""
    return 2 * (x + alpha) / (1 + (x + alpha) ** 2)


def said(prediction, x, alpha, sigma):
    """The noise of ``eps`` as what a prediction says."""
    noise = eps(x, alpha, sigma)
    return prediction.target((x - sigma * noise) / alpha, noise, alpha, sigma)


class Both(Closed):
    """A network known in closed form, of twice the image's channels."""

    def compute_output_shape(self, x_shape, *shapes):
        return (*x_shape[:-1], 2 * x_shape[-1])


def known(prediction=noise, where=v, schedule=LINEAR, shape=(1, 1, 3), **options):
    """A model that says ``eps``, and v by the function ``where``."""

    def function(x, alpha, sigma):
        return ops.concatenate([said(prediction, x, alpha, sigma), where(x, alpha)], axis=-1)

    inputs = {"image": keras.Input(shape, name="image"), "timestep": keras.Input((), name="timestep")}
    net = keras.Model(inputs, Both(function, schedule)(*inputs.values()))
    return DiffusionModel(net, schedule, prediction, ema=None, **options)


def states(model, given, conditions=None, **options):
    """Every state of sampling with the noise ``given``, (1 + steps, N, H, W, C)."""
    options = {"steps": len(given) - 1, "threshold": unclipped, "noise": given, **options}
    asked = given.shape[1] if conditions is None else conditions
    return [numpy(frame.x) for frame in model.denoising(asked, **options)]


def diffusers_states(monkeypatch, prediction, spacing, given, clip):
    """The same by diffusers' DDPMScheduler, as it comes."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    import torch

    kinds = {noise: "epsilon", velocity: "v_prediction", clean: "sample"}
    scheduler = module.DDPMScheduler(
        variance_type="learned_range",
        prediction_type=kinds[prediction],
        timestep_spacing=spacing.__name__,
        clip_sample=clip,
    )
    # Where the last timestep is above 0 it adds noise to the finished image; we never do.
    first, *fresh = torch.tensor(np.concatenate([given[:-1], 0 * given[-1:]]).transpose(0, 1, 4, 2, 3))
    fresh = iter(fresh)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: next(fresh))
    scheduler.set_timesteps(len(given) - 1)
    x, found = first, []
    for t in scheduler.timesteps:
        alpha, sigma = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
        output = torch.cat([said(prediction, x, alpha, sigma), v(x, alpha)], dim=1)
        x = scheduler.step(output, t, x).prev_sample
        found.append(x.numpy().transpose(0, 2, 3, 1))
    return found


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("prediction", [noise, velocity, clean], ids=["noise", "velocity", "clean"])
@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_every_state_is_that_of_diffusers(monkeypatch, prediction, spacing, steps):
    given = normal(1 + steps, 8, 1, 1, 3)
    model = known(prediction)
    for threshold in (unclipped, clipped):
        expected = diffusers_states(monkeypatch, prediction, spacing, given, threshold is clipped)
        found = states(model, given, sampler=ddpm_learned, spacing=spacing, threshold=threshold)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    fixed = states(model, given, sampler=ddpm, spacing=spacing)
    assert np.abs(np.subtract(found, fixed)).max() > 0.1  # the variance was felt


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 1.2])
@pytest.mark.parametrize("schedule", [LINEAR, cosine(), zero_terminal_snr(LINEAR), flow()])
def test_one_v_for_all_is_that_variance(share, schedule):
    """Also beyond the bounds, where nothing holds a network back."""
    options = {"prediction": flow_velocity, "schedule": schedule}
    model = DiffusionModel(wide(), ema=None, **options)
    given, spacing = normal(11, 2, *SHAPE), trailing
    points = schedule.points(spacing(1000, 10))
    told = ddpm_learned(points)
    for row, low, high in zip(told[:-1], ddpm(points), ddpm(points, variance=1.0), strict=False):
        np.testing.assert_allclose([row.c, row.c * row.spread], [low.c, high.c], rtol=1e-12)
    assert (told[-1].c, told[-1].spread) == (0, 1)

    def fixed(points):  # what the network says is what the row holds
        return [row._replace(c=row.c * row.spread**share, spread=1.0) for row in ddpm_learned(points)]

    tell = layers.Lambda(lambda y: ops.concatenate([y[..., :3], 0 * y[..., 3:] + 2 * share - 1], axis=-1))
    net = keras.Model(model.network.input, tell(model.network.output))
    ours = states(DiffusionModel(net, ema=None, **options), given, sampler=ddpm_learned)
    expected = states(model, given, sampler=fixed)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("sampler", [ddim, ddpm, partial(ddim, eta=0.5), dpmpp_2m])
def test_other_samplers_do_not_look_at_v(sampler):
    given = normal(11, 2, 1, 1, 3)
    found = states(known(), given, sampler=sampler)
    np.testing.assert_array_equal(found, states(known(where=lambda x, alpha: 9 * x), given, sampler=sampler))
    assert found[0].shape == (2, 1, 1, 3)


def labelled():
    """A model that says and varies by its label: 2 is none."""

    def function(x, alpha, sigma, label):
        y = ops.cast(label, "float32")[:, None, None, None]
        return ops.concatenate([eps(x, alpha, sigma) + 0.2 * y, v(x, alpha) * (1 - 0.4 * y)], axis=-1)

    shapes = {"image": (2, 2, 3), "timestep": ()}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    inputs["label"] = keras.Input((), dtype="int32", name="label")
    net = keras.Model(inputs, Both(function, LINEAR)(*inputs.values()))
    return DiffusionModel(net, null={"label": 2}, drop=0.1, ema=None, seed=1)


@pytest.mark.parametrize("combine", [classifier_free, rescaled(0.7)])
def test_guidance_leads_the_prediction_and_leaves_the_variance_to_the_conditions(combine):
    given, labels, timesteps = normal(3, 2, 2, 2, 3), np.array([0, 1]), [500, 300]
    options = {"spacing": lambda total, steps: timesteps, "guidance": 3.0, "combine": combine}
    found, _ = states(labelled(), given, labels, sampler=ddpm_learned, **options)
    row, (_, alpha, sigma) = ddpm_learned(LINEAR.points(timesteps))[0], LINEAR.at(500)
    x, y = given[0], labels[:, None, None, None]
    both = eps(x, alpha, sigma) + 0.2 * y, eps(x, alpha, sigma) + 0.4
    guided = numpy(combine(*(ops.convert_to_tensor(output, "float32") for output in both), 3.0))
    share = (v(x, alpha) * (1 - 0.4 * y) + 1) / 2
    expected = row.a[0] * x + row.b[0] * (x - sigma * guided) / alpha + row.c * row.spread**share * given[1]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gap_of_guidance_is_the_predictions():
    model, labels = labelled(), np.arange(8) % 2
    model.compile("sgd")
    images = random_images(8, shape=(2, 2, 3))
    inputs, _, _ = model.corrupted((images, labels), model.val_noise)
    t = numpy(inputs["timestep"]).astype(int)
    alpha, sigma = (table[t][:, None, None, None] for table in (LINEAR.alpha, LINEAR.sigma))
    given = eps(numpy(inputs["image"]), alpha, sigma) + 0.2 * labels[:, None, None, None]
    expected = np.sqrt(np.mean((given - eps(numpy(inputs["image"]), alpha, sigma) - 0.4) ** 2) / np.mean(given**2))
    _, gap = model.evaluate(images, labels, verbose=0)
    np.testing.assert_allclose(gap, expected, rtol=1e-4)


def test_attention_of_a_network_that_learned_the_variance():
    encoder = TokenEncoder(["red", "blue"], length=3, width=8, depth=0)
    levels = (4, Level(4, 1, partial(cross_attention, heads=2)))
    net = build_unet((8, 8, 3), levels, context=encoder.context, out_channels=6)
    model = DiffusionModel(net, encoder=encoder, drop=0.1, ema=None, seed=0)
    options = {"steps": 3, "guidance": 2.0, "seed": 2, "sampler": ddpm_learned}
    found = attention(model, ["red", "blue"], **options)
    np.testing.assert_array_equal(found.images, model.generate(["red", "blue"], progress=False, **options))
    assert found.maps.shape == (2, 8, 8, 3)


def test_channels_may_come_first():
    keras.config.set_image_data_format("channels_first")

    def function(x, alpha, sigma):
        return ops.concatenate([eps(x, alpha, sigma), v(x, alpha)], axis=1)

    class First(Closed):
        def compute_output_shape(self, x_shape, *shapes):
            return (x_shape[0], 2 * x_shape[1], *x_shape[2:])

    inputs = {"image": keras.Input((3, 1, 1), name="image"), "timestep": keras.Input((), name="timestep")}
    first = DiffusionModel(keras.Model(inputs, First(function, LINEAR)(*inputs.values())), ema=None)
    given = normal(6, 2, 1, 1, 3)
    found = states(first, given.transpose(0, 1, 4, 2, 3), sampler=ddpm_learned)
    keras.config.set_image_data_format("channels_last")
    expected = states(known(), given, sampler=ddpm_learned)
    np.testing.assert_allclose(np.transpose(found, (0, 1, 3, 4, 2)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_samples_close_to_float32(dtype):
    def made(policy):
        keras.config.set_dtype_policy(policy)
        net = build_unet((8, 8, 3), (4, 8), out_channels=6)
        return DiffusionModel(net, ema=None, seed=1)

    half, plain = made(dtype), made("float32")
    half.network.set_weights(plain.network.get_weights())
    given = normal(6, 2, *SHAPE)
    found, expected = (states(model, given, sampler=ddpm_learned, threshold=clipped)[-1] for model in (half, plain))
    assert found.dtype == "float32" and 0 < np.abs(found - expected).max() < 0.2


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_variance_that_was_not_learned_cannot_be_asked_for():
    with pytest.raises(
        ValueError, match="asks the network for the variance, and this one has not learned it: use ddpm"
    ):
        trainer().generate(1, steps=2, sampler=ddpm_learned)
    rows = [Row(LINEAR.at(5), (1.0,), (0.0,), 0.1, 2.0)]
    with pytest.raises(ValueError, match="has not learned it"):
        next(trainer().denoising(1, sampler=lambda points: rows))
    with pytest.raises(ValueError, match="row at timestep 5 is not finite"):
        DiffusionModel(wide()).generate(1, sampler=lambda points: [rows[0]._replace(spread=float("inf"))])


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7, 12])
def test_channels_that_mean_nothing(channels):
    """Such a network can be loaded and run, but neither trained nor sampled."""
    model = DiffusionModel(build_unet((8, 8, 3), (4, 8), out_channels=channels))
    for use in (model.compile, lambda: model.generate(1)):
        with pytest.raises(ValueError, match=rf"learn the variance: 3 or 6; got an output of shape .*{channels}\)"):
            use()


def test_outputs_that_are_no_images():
    net = network()
    model = DiffusionModel(keras.Model(net.input, layers.GlobalAveragePooling2D()(net.output)))
    with pytest.raises(ValueError, match=r"3 or 6; got an output of shape \(None, 3\)"):
        model.compile()
