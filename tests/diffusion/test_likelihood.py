"""Likelihoods of Gaussian data under the exact denoiser: the data's entropy, and what is lost by a wrong variance."""

from functools import partial

import keras
import numpy as np
import pytest
from helpers import normal, numpy_of, randomized, tiny_unet
from keras import ops
from scipy import stats

from unet_keras import (
    DiffusionModel,
    Schedule,
    class_label,
    clean,
    cosine,
    flow,
    latents,
    linear,
    nll_bound,
    nll_ode,
    pixels,
    timestep,
    velocity,
)
from unet_keras import zero_terminal_snr as to_zero
from unet_keras.diffusion.gradients import with_product

MEAN, STD = 0.3, 0.5
LINEAR, COSINE = linear(), cosine(50)
EXPLODING = Schedule(np.ones(200), np.geomspace(0.01, 50, 200))  # alpha^2 + sigma^2 is not 1


def between(table, timestep):
    """A table's entries at any timesteps, (B, 1, 1, 1), on a line between two."""
    low = ops.floor(timestep)
    entries = [ops.take(table, ops.cast(ops.minimum(t, len(table) - 1.0), "int32")) for t in (low, low + 1.0)]
    return ops.reshape(entries[0] + (timestep - low) * (entries[1] - entries[0]), (-1, 1, 1, 1))


class Exact(keras.layers.Layer):
    """The mean of x_0 given x, for x_0 ~ N(mean, std^2); with a table ``share``, and of the variance."""

    def __init__(self, schedule, mean, std, share=None):
        super().__init__(autocast=False)
        # Quarters of a timestep, so that the line between two is as good as the curve.
        points = [schedule.at(t / 4) for t in range(4 * len(schedule) - 3)]
        self.alpha, self.sigma = (np.array([point[i] for point in points], "float32") for i in (1, 2))
        self.mean, self.variance, self.share = mean, std**2, share

    def call(self, image, timestep):
        alpha, sigma = (between(table, timestep * 4.0) for table in (self.alpha, self.sigma))
        said = (alpha * self.variance * image + sigma**2 * self.mean) / (alpha**2 * self.variance + sigma**2)
        if self.share is None:
            return said
        share = between(self.share.astype("float32"), timestep)
        return ops.concatenate([said, ops.zeros_like(said) + 2 * share - 1], axis=-1)


def exact(schedule, mean=MEAN, std=STD, *, values=latents, shape=(16, 16, 1), share=None):
    inputs = {"image": keras.Input(shape, name="image"), "timestep": keras.Input((), name="timestep")}
    network = keras.Model(inputs, Exact(schedule, mean, std, share)(inputs["image"], inputs["timestep"]))
    return DiffusionModel(network, schedule, clean, values=values, ema=None, seed=0)


def entropy(std):
    return 0.5 * np.log2(2 * np.pi * np.e * std**2)


def gaussian(mean=MEAN, std=STD, count=32, shape=(16, 16, 1)):
    """Images of which mean and deviation are exact, so that chance has little part in an average over them."""
    x = normal(count, *shape).astype("float64")
    return (mean + std * (x - x.mean()) / x.std()).astype("float32")


# ---- the ordinary differential equation -----------------------------------------------------------------------------


GAUSSIANS = {
    "linear": (LINEAR, 0.5),
    "cosine": (cosine(), 2.0),
    "flow": (flow(), 0.5),
    "zero": (to_zero(LINEAR), 2.0),
    "exploding": (EXPLODING, 0.5),
}


@pytest.mark.parametrize("name", GAUSSIANS)
def test_the_ode_gives_a_gaussian_its_entropy(name):
    schedule, std = GAUSSIANS[name]
    found = nll_ode(exact(schedule, MEAN, std), gaussian(MEAN, std), steps=16)
    np.testing.assert_allclose(found.mean(), entropy(std), rtol=0.01)


def test_the_ode_gives_each_image_its_density_whatever_the_batch():
    model, images = exact(cosine()), gaussian(count=3)
    found = nll_ode(model, images, steps=16, probes=2)
    wanted = -stats.norm(MEAN, STD).logpdf(images.astype("float64")).reshape(3, -1).mean(1) / np.log(2)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    whole, parts = (nll_ode(model, images, steps=2, batch_size=size) for size in (3, 2))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_product_with_the_jacobian_equals_finite_differences():
    conv = keras.layers.Conv2D(4, 3, padding="same", activation="silu")
    function = randomized(keras.Sequential([keras.Input((4, 4, 3)), conv, keras.layers.Dense(3, activation="tanh")]))
    x, v, u = (normal(2, 4, 4, 3, seed=seed) for seed in range(3))
    value, product = with_product(function, *map(ops.convert_to_tensor, (x, v)))
    np.testing.assert_allclose(numpy_of(value), numpy_of(function(ops.convert_to_tensor(x))), atol=1e-5)
    ahead, back = (numpy_of(function(ops.convert_to_tensor(x + h * u))) for h in (1e-2, -1e-2))
    np.testing.assert_allclose((numpy_of(product) * u).sum(), (v * (ahead - back) / 2e-2).sum(), rtol=1e-3)


# ---- the bound ------------------------------------------------------------------------------------------------------


def steps_of(schedule, std=STD):
    """beta, beta-tilde, and the variance of x_{t-1} given x_t for data of deviation std; and without x_0's own."""
    a, s = schedule.alpha, schedule.sigma
    before_a, before_s = np.append(1.0, a[:-1]), np.append(0.0, s[:-1])
    beta = s**2 - (a / before_a * before_s) ** 2
    tilde = beta * before_s**2 / s**2
    tilde[0] = tilde[1]
    left = std**2 * s**2 / (a**2 * std**2 + s**2)  # of x_0 given x_t
    own = np.append(0.0, (beta * before_s**2 / s**2)[1:])
    return beta, tilde, own + (before_a * beta / s**2) ** 2 * left, own


def bound_by_hand(schedule, variance):
    """The expected bound in bits: KL of Gaussians, its mean over x_0 and x_t, with a share ``variance`` of log beta."""
    beta, tilde, true, own = steps_of(schedule)
    chosen = np.exp(variance * np.log(beta) + (1 - variance) * np.log(tilde))
    nats = (np.log(chosen[1:] / own[1:]) - 1 + true[1:] / chosen[1:]).sum() / 2
    nats += (np.log(2 * np.pi * chosen[0]) + true[0] / chosen[0]) / 2
    a, s, r = schedule.alpha[-1], schedule.sigma[-1], np.hypot(schedule.alpha[-1], schedule.sigma[-1])
    return (nats + ((a**2 * (STD**2 + MEAN**2) + s**2) / r**2 - 1) / 2 + np.log(r / s)) / np.log(2)


def right_share(std):
    """What a network should say of the variance of the steps of COSINE."""
    beta, tilde, true, _ = steps_of(COSINE, std)
    return np.log(true / tilde) / np.log(beta / tilde)


@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0])
def test_the_bound_with_a_fixed_variance_equals_its_formula(variance):
    check_bound(COSINE, variance)


def test_the_bound_on_a_schedule_that_explodes_begins_where_generate_does():
    """At N(0, alpha^2 + sigma^2): 50 times as wide as N(0, I), of which the bound would be 1,800 bits."""
    check_bound(EXPLODING, 1.0)
    assert nll_bound(exact(EXPLODING), gaussian(count=4), terms=1).prior.max() < 1e-3


def check_bound(schedule, variance):
    found = nll_bound(exact(schedule), gaussian(count=512), variance=variance, batch_size=512).total.mean()
    wanted = bound_by_hand(schedule, variance)
    assert wanted > entropy(STD)
    np.testing.assert_allclose(found, wanted, rtol=0.01)


def test_the_bound_with_the_right_variance_is_the_entropy():
    model = exact(COSINE, share=right_share(STD))
    found = nll_bound(model, gaussian(count=512), batch_size=512).total
    np.testing.assert_allclose(found.mean(), entropy(STD), rtol=0.01)


def test_a_thousand_steps_of_beta_come_near_the_entropy():
    assert bound_by_hand(LINEAR, 1.0) == pytest.approx(entropy(STD), rel=2e-3)
    found = nll_bound(exact(LINEAR), gaussian(count=512), terms=60, batch_size=512)
    np.testing.assert_allclose(found.total.mean(), entropy(STD), rtol=0.01)


def test_some_of_the_terms_stand_for_all():
    model, images = exact(COSINE), gaussian()
    every, some = nll_bound(model, images), nll_bound(model, images, terms=30)
    np.testing.assert_allclose(some.prior, every.prior)
    np.testing.assert_allclose(some.decoder, every.decoder, atol=1e-6)
    np.testing.assert_allclose(some.steps.mean(), every.steps.mean(), rtol=0.02)
    drawn = [nll_bound(model, images[:4], terms=3, seed=seed).steps for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).all()


# ---- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nll", [lambda *a: nll_bound(*a).total, partial(nll_ode, steps=16)], ids=["bound", "ode"])
def test_pixels_cost_what_their_256_values_do(nll):
    """The entropy of a rounded Gaussian is that of the Gaussian less the logarithm of a value's width."""
    images = np.clip(np.round((gaussian(0.0, 0.25) + 1) * 127.5), 0, 255).astype("uint8")
    model = exact(COSINE, 0.0, 0.25, values=pixels, share=right_share(0.25))
    np.testing.assert_allclose(nll(model, images).mean(), entropy(0.25) + np.log2(127.5), rtol=0.01)


def test_conditions_and_averaged_weights_count():
    network = randomized(tiny_unet((4,), conditions=(timestep(), class_label(3))))
    model = DiffusionModel(network, COSINE, velocity, null={"label": 2}, drop=0.1, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype="uint8")
    bounds = [nll_bound(model, images, labels, terms=2).total for labels in ({"label": [0, 2]}, None)]
    assert bounds[0][0] != bounds[1][0] and bounds[0][1] == bounds[1][1]
    labelled = nll_ode(model, images, [0, 1], steps=1)
    randomized(model.network, seed=1)  # which training goes on with, and nobody asks
    np.testing.assert_allclose(nll_ode(model, images, [0, 1], steps=1), labelled, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(nll_bound, terms=0), "terms"),
        (partial(nll_bound, terms=50), "terms"),
        (partial(nll_bound, terms=2.5), "terms"),
        (partial(nll_bound, variance=2.0), "variance"),
        (partial(nll_bound, variance="beta"), "variance"),
        (partial(nll_bound, batch_size=0), "batch_size"),
        (partial(nll_bound, seed=1.5), "seed"),
        (partial(nll_ode, seed=-1), "seed"),
        (partial(nll_ode, steps=0), "steps"),
        (partial(nll_ode, steps=2.5), "steps"),
        (partial(nll_ode, probes=0), "probes"),
        (partial(nll_ode, conditions={"label": [0]}), "conditions"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(exact(COSINE), gaussian(count=2))
    with pytest.raises(ValueError, match="images"):
        nll_bound(exact(COSINE), np.zeros((2, 8, 8, 1), "float32"))
