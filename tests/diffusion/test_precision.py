"""Half precision: what stays in float32, that losses follow float32's, and that float16's losses are scaled."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import ddpm

from .helpers import losses, network, pixels, trainer, weights

IMAGES = pixels(8)
HALF = pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])


def half(policy, **options):
    """A trainer of a network in half precision, and with it everything that is made later in float32 again."""
    keras.config.set_dtype_policy(policy)
    net = network()
    keras.config.set_dtype_policy("float32")
    return trainer(net=net, **options)


@HALF
def test_the_losses_follow_those_of_float32(policy):
    model = half(policy)
    found, expected = losses(model, IMAGES, 20), losses(trainer(), IMAGES, 20)
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert found != expected and expected[-1] < 0.9 * expected[0]
    assert model.dtype_policy.name == policy and int(model.ema_step) == 20
    assert {str(v.dtype) for v in model.trainable_variables} == {"float32"}


@HALF
def test_all_around_the_network_is_float32(policy):
    model = half(policy)
    inputs, target, _ = model.corrupted((IMAGES,), model.train_noise)
    loss = model.compute_loss(inputs, target, model(inputs, training=True))
    *_, frame = model.denoising(2, steps=2, sampler=ddpm, seed=0)
    found = (inputs["image"], inputs["timestep"], target, loss, frame.x, frame.clean)
    assert {keras.backend.standardize_dtype(v.dtype) for v in found} == {"float32"}


def test_small_losses_reach_float16_weights_because_they_are_scaled():
    """A millionth of the loss, and a million times the step: gradients that float16 rounds to nothing."""

    def moved(model):
        before = weights(model)[0]
        losses(model, IMAGES, 1)
        return weights(model)[0] - before

    options = {"weight": np.full(1000, 1e-6), "ema": None}
    expected = moved(trainer(optimizer=keras.optimizers.SGD(1e5), **options))
    scaled = half("mixed_float16", optimizer=keras.optimizers.SGD(1e5), **options)
    bare = half("mixed_float16", optimizer=keras.optimizers.SGD(1e5), compiled={"auto_scale_loss": False}, **options)
    error = [np.linalg.norm(moved(model) - expected) / np.linalg.norm(expected) for model in (scaled, bare)]
    assert isinstance(scaled.optimizer, keras.optimizers.LossScaleOptimizer)
    assert error[0] < 0.02 < 0.1 < error[1]


def test_steps_that_overflow_are_left_out_and_the_scale_falls():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**26)
    model = half("mixed_float16", optimizer=optimizer)
    before = weights(model)[0]
    losses(model, IMAGES, 1)
    np.testing.assert_array_equal(weights(model)[0], before)
    losses(model, IMAGES, 14)
    done, scale = int(optimizer.iterations), float(ops.convert_to_numpy(optimizer.dynamic_scale))
    assert 0 < done < 14 and scale == 2.0 ** (26 - (15 - done)) and int(model.ema_step) == done
    assert np.isfinite(weights(model)).all() and (weights(model)[0] != before).any()


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_weights_in_half_precision_are_not_trained(policy):
    with pytest.raises(ValueError, match=f"The weights are {policy}, .* dtype='mixed_{policy}'"):
        half(policy)
