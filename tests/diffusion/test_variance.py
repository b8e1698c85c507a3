"""The loss of a network that learns the variance: the bound by hand and by torch's distributions; what it teaches."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import (
    DiffusionModel,
    Schedule,
    clean,
    cosine,
    ddpm_learned,
    flow,
    flow_velocity,
    latents,
    linear,
    min_snr,
    noise,
    velocity,
    zero_terminal_snr,
)
from unet_keras import pixels as bytes_of_images
from unet_keras.diffusion.variance import VLB_WEIGHT, bound, log_tail

from .helpers import check_alike, losses, normal, pixels, standing, trainer, weights, wide

IMAGES = pixels(8)
SCALED = IMAGES.astype("float32") / 127.5 - 1
WEIGHT = np.array([0, 1, 2, 0, 5, 0.5, 0, 1], "float32")
TIMES = [0, 1, 2, 10, 60, 99]
SCHEDULES = {
    "linear": linear(100, 1e-3, 0.2),
    "cosine": cosine(100),
    "flow": flow(100),
    "pure noise": zero_terminal_snr(linear(100, 1e-3, 0.2)),
}
CASES = [(name, prediction) for name in SCHEDULES for prediction in (noise, velocity, clean, flow_velocity)]
CASES = [(name, p) for name, p in CASES if p != noise or name in ("linear", "cosine")]
numpy = ops.convert_to_numpy


def backend_gradient(function, x):
    """The gradient of a number with respect to an array, by the present backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    x = ops.convert_to_tensor(x)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x).numpy()
    import torch

    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0].numpy()


# ---- the bound ------------------------------------------------------------------------------------------------------


def batch(schedule, prediction, t, seed=0):
    """Images of bytes, 0 and 255 among them, corrupted at timesteps t; (x_0, inputs, target, output), NumPy float32."""
    rng = np.random.default_rng(seed)
    t = np.asarray(t)
    x0 = rng.integers(0, 256, (len(t), 2, 2, 3)) / 127.5 - 1
    x0[:, 0, 0] = [-1, 1, 1 - 2 / 255]
    eps, error, v = rng.standard_normal((3, *x0.shape))
    alpha, sigma = (table[t][:, None, None, None] for table in (schedule.alpha, schedule.sigma))
    target = prediction.target(x0, eps, alpha, sigma)
    output = np.concatenate([target + 0.05 * error, np.tanh(v)], axis=-1)
    inputs = {"image": alpha * x0 + sigma * eps, "timestep": t}
    inputs = {name: value.astype("float32") for name, value in inputs.items()}
    return x0, inputs, target.astype("float32"), output.astype("float32")


def found_bound(schedule, prediction, values, inputs, target, output):
    tensors = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
    terms = bound(schedule, prediction, values.bounded)
    return numpy(terms(tensors, ops.convert_to_tensor(target), ops.convert_to_tensor(output)))


def gaussians(schedule, prediction, x0, inputs, output):
    """For each example, in float64: the true step's mean and variance, or None at t = 0, and the network's."""
    alpha_bar = np.append(schedule.alpha, 1.0)  # index -1: the image itself
    sigma = np.append(schedule.sigma, 0.0)

    def beta(t):
        return sigma[t] ** 2 - (alpha_bar[t] / alpha_bar[t - 1] * sigma[t - 1]) ** 2

    def small(t):
        return beta(t) * sigma[t - 1] ** 2 / sigma[t] ** 2

    for n, t in enumerate(inputs["timestep"].astype(int)):
        x = inputs["image"][n].astype("float64")
        said, v = np.split(output[n].astype("float64"), 2, axis=-1)
        estimate = prediction.estimate(x, said, alpha_bar[t], sigma[t])
        before = alpha_bar[t] / alpha_bar[t - 1] * sigma[t - 1] ** 2 / sigma[t] ** 2
        image = alpha_bar[t - 1] * beta(t) / sigma[t] ** 2
        f = (v + 1) / 2
        log_variance = f * np.log(beta(t)) + (1 - f) * np.log(small(t) if t else small(1))
        truth = (before * x + image * x0[n], small(t)) if t else None
        yield truth, (before * x + image * estimate, np.exp(log_variance))


def probability(z):
    """P(Z < z) where it is small, exactly."""
    return np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2)(z)


def bits_by_hand(x0, truth, told, bounded):
    (mean, variance), size = told, 1 / 255
    if truth is not None:
        nats = 0.5 * (np.log(variance / truth[1]) + (truth[1] + (truth[0] - mean) ** 2) / variance - 1)
    elif bounded:
        low, high = ((x0 + side * size - mean) / np.sqrt(variance) for side in (-1, 1))
        low, high = np.where(x0 < -1 + size, -np.inf, low), np.where(x0 > 1 - size, np.inf, high)
        nats = -np.log(np.where(low > 0, probability(-low) - probability(-high), probability(high) - probability(low)))
    else:
        nats = 0.5 * (np.log(2 * np.pi * variance) + (x0 - mean) ** 2 / variance)
    return nats.mean() / np.log(2)


def bits_by_torch(x0, truth, told, bounded):
    """The same from the distributions of torch."""
    torch = pytest.importorskip("torch")
    from torch.distributions import Normal, kl_divergence

    def normal(mean, variance):
        mean = torch.tensor(mean)
        return Normal(mean, torch.tensor(variance).sqrt().expand(mean.shape))

    x0, told = torch.tensor(x0), normal(*told)
    if truth is not None:
        nats = kl_divergence(normal(*truth), told)
    elif bounded:
        above = torch.where(x0 > 1 - 1 / 255, 1.0, told.cdf(x0 + 1 / 255))
        below = torch.where(x0 < -1 + 1 / 255, 0.0, told.cdf(x0 - 1 / 255))
        nats = -torch.log(above - below)
    else:
        nats = -told.log_prob(x0)
    return nats.mean().item() / math.log(2)


@pytest.mark.parametrize("values", [bytes_of_images, latents], ids=["pixels", "latents"])
@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_bound_is_that_by_hand(name, prediction, values):
    schedule = SCHEDULES[name]
    x0, *given = batch(schedule, prediction, TIMES)
    found = found_bound(schedule, prediction, values, *given)
    pairs = zip(x0, gaussians(schedule, prediction, x0, given[0], given[2]), strict=True)
    pairs = [(image, truth, told, values.bounded) for image, (truth, told) in pairs]
    assert found.shape == (len(TIMES),) and found.dtype == "float32"
    np.testing.assert_allclose(found, [100 * bits_by_hand(*pair) for pair in pairs], rtol=2e-4, atol=1e-4)
    if prediction == noise:  # the others' errors at t = 0 are out of reach of a plain difference of probabilities
        np.testing.assert_allclose(found, [100 * bits_by_torch(*pair) for pair in pairs], rtol=2e-4, atol=1e-4)


def test_bound_of_a_schedule_of_one_timestep():
    schedule = Schedule([0.9], [0.3])
    x0, inputs, target, output = batch(schedule, noise, [0])
    estimate = noise.estimate(inputs["image"], output[..., :3], 0.9, 0.3)
    for values in (bytes_of_images, latents):
        found = found_bound(schedule, noise, values, inputs, target, output)
        np.testing.assert_allclose(found, bits_by_hand(x0, None, (estimate, 0.09), values.bounded), rtol=1e-4)


@pytest.mark.parametrize("z", [-9, -2, 0, 1.9, 1.999999, 2.000001, 3, 6, 12, 35])
def test_tail_of_the_normal_distribution(z):
    expected = math.log(math.erfc(z / math.sqrt(2)) / 2)
    np.testing.assert_allclose(numpy(log_tail(ops.convert_to_tensor(np.float32(z)))), expected, rtol=3e-6)
    slope = backend_gradient(log_tail, np.float32(z))
    expected = -math.exp(-(z**2) / 2 - expected) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(slope, expected, rtol=2e-5, atol=1e-7)


def test_bound_is_finite_however_wrong_the_network():
    schedule = SCHEDULES["linear"]
    _, inputs, target, output = batch(schedule, velocity, TIMES)
    for size in (1.0, 100.0):
        output[..., :3] = size * normal(*target.shape)

        def total(y, target=target):
            tensors = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
            return ops.sum(bound(schedule, velocity, True)(tensors, ops.convert_to_tensor(target), y))

        assert np.isfinite(numpy(total(ops.convert_to_tensor(output))))
        slope = backend_gradient(total, output)
        assert np.isfinite(slope).all() and (slope[..., :3] == 0).all() and (slope[..., 3:] != 0).any()


# ---- the loss -------------------------------------------------------------------------------------------------------


def both_losses(model, data):
    """L_simple and lambda L_vlb by hand, of the noise that a model of this seed draws first."""
    inputs, target, weight = model.corrupted(data, model.train_noise)
    output = numpy(model.network(inputs))
    table = 1 if model.weight is None else model.weight[numpy(inputs["timestep"]).astype(int)]
    errors = ((numpy(target) - output[..., :3]) ** 2).mean(axis=(1, 2, 3)) * table
    inputs, target = {name: numpy(value) for name, value in inputs.items()}, numpy(target)
    bits = found_bound(model.schedule, model.prediction, model.values, inputs, target, output)
    return [(v * (1 if weight is None else numpy(weight))).mean() for v in (errors, VLB_WEIGHT * bits)]


@pytest.mark.parametrize("weight", [None, min_snr(linear(), noise, 0.1)], ids=["plain", "min_snr"])
@pytest.mark.parametrize("sample_weight", [None, WEIGHT], ids=["alike", "weighted"])
def test_loss_is_the_sum_of_both(weight, sample_weight):
    """The table of timesteps weighs L_simple alone."""
    simple, vlb = both_losses(standing(net=wide(), weight=weight), (IMAGES, None, sample_weight))
    assert vlb > 1e-3 and simple > 1e-2
    (found,) = losses(standing(net=wide(), weight=weight), IMAGES, 1, sample_weight=sample_weight)
    np.testing.assert_allclose(found, simple + vlb, rtol=1e-5)


def test_bound_does_not_reach_the_prediction():
    model, alone = (trainer(net=wide(), schedule=linear(6, 0.1, 0.7)) for _ in range(2))
    inputs, target, _ = model.corrupted((IMAGES,), model.train_noise)
    output = normal(8, 8, 8, 6)
    alone.bound = None

    def simple(y):
        return alone.compute_loss(inputs, target, y[..., :3])

    def hybrid(y):
        return model.compute_loss(inputs, target, y)

    both, first = (backend_gradient(function, output) for function in (hybrid, simple))
    np.testing.assert_allclose(both[..., :3], first[..., :3], rtol=1e-5, atol=1e-9)
    # And reaches v as it should, by differences, where the loss rises most for float32 is coarse.
    assert (first[..., 3:] == 0).all()
    along = np.sign(both) * np.repeat([0, 1], 3)
    ends = (float(hybrid(ops.convert_to_tensor((output + 0.05 * side * along).astype("float32")))) for side in (1, -1))
    slope = (next(ends) - next(ends)) / 0.1
    np.testing.assert_allclose(np.abs(both[..., 3:]).sum(), slope, rtol=0.01)


def test_examples_of_weight_zero_teach_nothing():
    model = trainer(net=wide())
    before = weights(model)
    assert losses(model, IMAGES, 2, sample_weight=np.zeros(8)) == [0, 0]
    assert all((a == b).all() for a, b in zip(weights(model), before, strict=True))


def test_evaluation_is_the_same_each_time_and_of_the_hybrid_loss():
    model = standing(net=wide(), seed=3)
    first = model.evaluate(IMAGES, verbose=0)
    assert model.evaluate(IMAGES, verbose=0) == first
    model.train_noise = model.val_noise
    model.val_noise.state.assign(standing(net=wide(), seed=3).val_noise.state)
    np.testing.assert_allclose(sum(both_losses(model, (IMAGES,))), first, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_loss_of_half_precision_is_close(policy):
    keras.config.set_dtype_policy(policy)
    net = wide()
    keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(losses(trainer(net=net), IMAGES, 3), losses(trainer(net=wide()), IMAGES, 3), rtol=0.03)


# ---- what is learned ------------------------------------------------------------------------------------------------


class Told(layers.Layer):
    """The best estimate of Gaussian images N(0.2, spread^2), and for each timestep one v, which is learned."""

    def __init__(self, schedule, spread):
        super().__init__()
        t = np.arange(len(schedule))
        a, s = schedule.alpha[t], schedule.sigma[t]
        self.pull = (a * spread**2 / (a**2 * spread**2 + s**2)).astype("float32")
        self.alpha = a.astype("float32")

    def build(self, *shapes):
        self.v = self.add_weight(shape=(len(self.alpha),), initializer="zeros", name="v")

    def call(self, x, t):
        index = ops.cast(t, "int32")
        pull, alpha, v = (ops.take(w, index)[:, None, None, None] for w in (self.pull, self.alpha, self.v))
        return ops.concatenate([0.2 + pull * (x - 0.2 * alpha), 0 * x + v], axis=-1)


def best_share(schedule, spread):
    """The f of the true p(x_{t-1} | x_t), Gaussian as the images are."""
    alpha, sigma = schedule.alpha, schedule.sigma
    left = spread**2 * sigma**2 / (alpha**2 * spread**2 + sigma**2)  # of x_0 given x_t
    beta = sigma[1:] ** 2 - (alpha[1:] / alpha[:-1] * sigma[:-1]) ** 2
    small = beta * sigma[:-1] ** 2 / sigma[1:] ** 2
    true = small + (alpha[:-1] * beta / sigma[1:] ** 2) ** 2 * left[1:]
    first = np.log(left[0] / small[0]) / np.log(sigma[0] ** 2 / small[0])
    return np.append(first, np.log(true / small) / np.log(beta / small))


def test_the_least_bound_is_at_the_true_variance():
    """With x_0 one deviation off the estimate on both sides, the mean square is exact and so is the optimum."""
    schedule, spread = linear(6, 0.1, 0.7), 0.5
    best = best_share(schedule, spread)
    assert (0 < best[1:]).all() and (best < 1).all()
    t = np.repeat(np.arange(6), 2)
    alpha, sigma = (table[t][:, None, None, None] for table in (schedule.alpha, schedule.sigma))
    x = np.repeat(normal(6, 2, 2, 3), 2, axis=0)
    middle = 0.2 + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (x - 0.2 * alpha)
    left = np.sqrt(spread**2 * sigma**2 / (alpha**2 * spread**2 + sigma**2))
    target = middle + left * np.array([1, -1] * 6)[:, None, None, None]
    inputs = {"image": x, "timestep": t.astype("float32")}

    def total(shift):
        v = 2 * (best[t] + shift) - 1 + 0 * np.moveaxis(x, 0, -1)
        output = np.concatenate([middle, np.moveaxis(v, -1, 0)], axis=-1).astype("float32")
        return found_bound(schedule, clean, latents, inputs, target.astype("float32"), output).reshape(6, 2).mean(1)

    below, least, above = (total(shift) for shift in (-0.1, 0.0, 0.1))
    assert (least < below).all() and (least < above).all()
    # Even around the least, up to the third order.
    np.testing.assert_allclose((above - least) / (below - least), 1, atol=0.15)


def test_training_finds_the_true_variance():
    schedule, spread = linear(6, 0.1, 0.7), 0.5
    inputs = {"image": keras.Input((4, 4, 1), name="image"), "timestep": keras.Input((), name="timestep")}
    told = Told(schedule, spread)
    net = keras.Model(inputs, told(*inputs.values()))
    model = DiffusionModel(net, schedule, clean, values=latents, ema=None, seed=0)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 150)))
    images = 0.2 + spread * normal(256, 4, 4, 1)
    model.fit(images, epochs=150, batch_size=256, verbose=0)
    np.testing.assert_allclose((numpy(told.v) + 1) / 2, best_share(schedule, spread), atol=0.03)


def test_training_lowers_the_loss_and_its_bound():
    model = trainer(net=wide(), optimizer=keras.optimizers.AdamW(0.02), schedule=linear(20, 0.01, 0.5), ema=0.5)
    images = np.repeat(IMAGES[:1] // 4, 16, axis=0)
    before, parts = model.evaluate(images, verbose=0), both_losses(model, (images,))
    losses(model, images, 60)
    assert model.evaluate(images, verbose=0) < 0.7 * before
    model.train_noise.state.assign(trainer().train_noise.state)
    assert all(now < 0.8 * then for now, then in zip(both_losses(model, (images,)), parts, strict=True))


def test_saved_and_loaded_it_goes_on(tmp_path):
    model = trainer(net=wide(), optimizer=keras.optimizers.Adam(0.01))
    losses(model, IMAGES, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    options = {"steps": 4, "sampler": ddpm_learned, "seed": 0, "progress": False}
    np.testing.assert_array_equal(loaded.generate(2, **options), model.generate(2, **options))
    assert loaded.evaluate(IMAGES, verbose=0) == model.evaluate(IMAGES, verbose=0)
    assert losses(loaded, IMAGES, 2) == losses(model, IMAGES, 2)
    check_alike(loaded, model)
