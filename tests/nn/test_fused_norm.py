"""Group norm with what is folded into it, and in few passes on TensorFlow's CPUs, against torch's in float64."""

import keras
import numpy as np
import pytest
import torch
from helpers import normal, numpy_of, randomized, taped_gradients, torch_gradients
from keras import ops

from unet_keras.nn import one_pass
from unet_keras.nn.group_norm import GroupNorm

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow's CPUs")
X, V = 2 * normal(2, 4, 6, 6) + 1, normal(2, 4, 6, 6, seed=2)
MORE = {"modulation": normal(2, 12, seed=1), "added": normal(2, 6, seed=5)}
MORE_OR_LESS = [(), ("modulation",), ("added",), ("modulation", "added")]


def layer_of(activation, **options):
    layer = GroupNorm(3, epsilon=0.1, activation=activation, **options)
    layer.build((None, 4, 6, 6))
    return randomized(layer)


def in_float64(layer, activation, more):
    """torch's: the output of X, channels last, and all that it came from: x, gamma, beta, and what ``more`` names."""
    given = [X, *(numpy_of(weight) for weight in layer.weights), *(MORE[name] for name in more)]
    x, gamma, beta, *rest = leaves = [torch.tensor(v).double().requires_grad_(True) for v in given]
    rest = dict(zip(more, rest, strict=True))
    y = x + rest["added"][:, None, None] if "added" in rest else x
    y = torch.nn.functional.group_norm(y.permute(0, 3, 1, 2), layer.groups, gamma, beta, layer.epsilon)
    if "modulation" in rest:
        scale, shift = rest["modulation"][:, :, None, None].chunk(2, dim=1)
        y = y * (1 + scale) + shift
    y = torch.nn.functional.silu(y) if activation == "silu" else y
    return y.permute(0, 2, 3, 1), leaves


@pytest.fixture(params=[pytest.param(True, marks=on_tensorflow), False], ids=["fused", "plain"])
def fused(request, monkeypatch):
    monkeypatch.setattr(one_pass, "NUMBERS", 0 if request.param else 10**12)
    return request.param


named = pytest.mark.parametrize("more", MORE_OR_LESS, ids="-".join)


@pytest.mark.parametrize("activation", [None, "silu", "relu"])
@named
def test_modulation_addition_and_activation_are_those_of_torch(fused, activation, more):
    layer = layer_of(activation)
    y = layer(ops.convert_to_tensor(X), **{name: ops.convert_to_tensor(MORE[name]) for name in more})
    expected, _ = in_float64(layer, activation, more)
    expected = torch.relu(expected) if activation == "relu" else expected
    np.testing.assert_allclose(numpy_of(y), expected.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize("size", [(4, 8), (3, 11), (6, 6), (8, 8), (5, 13), (9, 9), (16, 16)], ids=str)
def test_sums_over_maps_of_every_size(fused, size):
    """They are cut into pieces, or not, by how many pixels there are."""
    layer, x = layer_of("silu"), 2 * normal(2, *size, 6) + 1
    gamma, beta = (torch.tensor(numpy_of(weight)).double() for weight in layer.weights)
    y = torch.nn.functional.group_norm(torch.tensor(x).double().permute(0, 3, 1, 2), 3, gamma, beta, layer.epsilon)
    expected = torch.nn.functional.silu(y).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(numpy_of(layer(ops.convert_to_tensor(x))), expected, atol=2e-5)


@on_tensorflow
@pytest.mark.parametrize("activation", [None, "silu"])
@named
@pytest.mark.parametrize("count", ["eager", 2, None])
@pytest.mark.parametrize("order", [1, 2])
def test_the_gradients_are_those_of_torch(fused, activation, more, count, order):
    """Eagerly, and compiled for a known or an open number of images; the second through the statistics as well, which
    the first, by hand, takes as given.
    """
    layer, given = layer_of(activation), [X, *(MORE[name] for name in more)]
    found = taped_gradients(
        lambda x, *rest: layer(x, **dict(zip(more, rest, strict=True))),
        given,
        layer.weights,
        V,
        order=order,
        count=count,
    )
    y, (x, gamma, beta, *rest) = in_float64(layer, activation, more)
    expected = torch_gradients(y, [x, *rest, gamma, beta], V, order=order)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5 * max(1, np.abs(theirs).max()))


@on_tensorflow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_in_half_precision_only_what_comes_out_is_rounded(fused, policy):
    """The activation too is computed in float32 where it is fused."""
    layer = layer_of("silu", dtype=policy)
    y = layer(ops.cast(X, layer.compute_dtype))
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    rounded = numpy_of(ops.cast(ops.cast(X, layer.compute_dtype), "float32"))
    whole = layer_of("silu")
    whole.set_weights(layer.get_weights())
    error = numpy_of(ops.cast(y, "float32")) - numpy_of(whole(ops.convert_to_tensor(rounded)))
    step = 2**-8 if policy == "mixed_bfloat16" else 2**-11
    assert np.abs(error).max() < (1.01 if fused else 4) * step * np.abs(numpy_of(whole(rounded))).max()


@on_tensorflow
def test_a_network_that_is_compiled_whole_trains_alike(fused):
    """XLA cannot compile all that TensorFlow computes, such as lengths."""
    x, y = normal(5, 4, 6, 6, seed=3), normal(5, 4, 6, 2, seed=4)
    losses = []
    for jit_compile in (False, True):
        image = keras.Input((4, 6, 6))
        model = keras.Model(image, keras.layers.Conv2D(2, 1)(layer_of("silu")(image)))
        randomized(model).compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        losses.append(model.fit(x, y, batch_size=2, shuffle=False, epochs=3, verbose=0).history["loss"])
    assert losses[0][2] < losses[0][0] - 0.1
    np.testing.assert_allclose(*losses, rtol=1e-5)


@on_tensorflow
def test_it_is_used_for_maps_of_known_size_on_cpus(monkeypatch):
    import tensorflow as tf

    large = tf.TensorSpec((2, 64, 64, 16))
    assert one_pass.pays(large)
    assert one_pass.pays(tf.TensorSpec((None, 64, 64, 16)))
    assert not one_pass.pays(tf.TensorSpec((2, None, 64, 16)))
    assert one_pass.pays(tf.TensorSpec((64, 8, 8, 16)))
    assert not one_pass.pays(tf.TensorSpec((2, 8, 8, 16)))
    assert not one_pass.pays(tf.TensorSpec((None, 8, 8, 16)))
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    assert not one_pass.pays(large)


def test_a_modulation_of_another_width_is_refused():
    with pytest.raises(ValueError, match="6 channels takes twice as many numbers, not 6"):
        GroupNorm(3)(keras.Input((4, 6, 6)), keras.Input((6,)))
