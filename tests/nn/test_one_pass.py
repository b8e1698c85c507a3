"""Linear maps and gates, and how they are computed on TensorFlow's CPUs, against torch's in float64."""

import keras
import numpy as np
import pytest
import torch
from helpers import normal, numpy_of, randomized, taped_gradients, torch_gradients
from keras import ops

from unet_keras.nn import linear, one_pass
from unet_keras.nn.gated import GeluGate
from unet_keras.nn.linear import Linear

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow's CPUs")
X, VALUE, GATE = (normal(2, 5, 6, seed=seed) for seed in range(3))
EDGES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]


@pytest.fixture(params=[pytest.param(True, marks=on_tensorflow), False], ids=["one pass", "plain"])
def fused(request, monkeypatch):
    for module in (one_pass, linear):
        monkeypatch.setattr(module, "NUMBERS", 0 if request.param else 10**12)
    return request.param


def made(kind, dtype="float32", **options):
    layer = kind(**options, dtype=dtype)
    if kind is GeluGate:
        return layer
    layer.build(X.shape)
    return randomized(layer)


def linear_in_float64(layer):
    """torch's: the output of X, and all that it came from: x, kernel, bias."""
    leaves = [torch.tensor(v).double().requires_grad_(True) for v in (X, *map(numpy_of, layer.weights))]
    return leaves[0] @ leaves[1] + leaves[2], leaves


def gate_in_float64(layer):
    leaves = [torch.tensor(v).double().requires_grad_(True) for v in (VALUE, GATE)]
    return leaves[0] * torch.nn.functional.gelu(leaves[1]), leaves


CASES = {
    "linear": (Linear, {"units": 7}, (X,), linear_in_float64),
    "gate": (GeluGate, {}, (VALUE, GATE), gate_in_float64),
}
cases = pytest.mark.parametrize(("kind", "options", "given", "reference"), CASES.values(), ids=CASES)


@cases
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-5), ("mixed_bfloat16", 0.1)])
def test_the_output_is_that_of_torch(kind, options, given, reference, dtype, atol, fused):
    layer = made(kind, dtype, **options)
    y = layer(*map(ops.convert_to_tensor, given))
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    expected = reference(layer)[0].detach().numpy()
    np.testing.assert_allclose(numpy_of(ops.cast(y, "float32")), expected, atol=atol)
    assert layer.compute_output_shape(*[v.shape for v in given]) == expected.shape == tuple(y.shape)


@on_tensorflow
@cases
@pytest.mark.parametrize("count", ["eager", 2, None])
@pytest.mark.parametrize("order", [1, 2])
def test_the_gradients_are_those_of_torch(kind, options, given, reference, count, order, fused):
    """Eagerly, and compiled for a known or an open number of sequences; and the gradients' own."""
    layer, v = made(kind, **options), normal(2, 5, options.get("units", 6), seed=4)
    found = taped_gradients(layer, given, layer.weights, v, order=order, count=count)
    expected = torch_gradients(*reference(layer), v, order=order)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))


@on_tensorflow
def test_bits_are_rounded_as_tensorflow_rounds():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        wide = (rng.normal(size=10_000) * np.exp(30 * rng.normal(size=10_000))).astype("float32")
    wide, like = np.append(wide, np.array(EDGES, "float32")), tf.zeros((), tf.bfloat16)
    for narrow in (one_pass.narrowed, one_pass.compiled(lambda _, x, like: one_pass.narrowed(x, like))):
        found, expected = (tf.bitcast(v, tf.uint16).numpy() for v in (narrow(wide, like), tf.cast(wide, tf.bfloat16)))
        np.testing.assert_array_equal(found, expected)
    every = tf.bitcast(tf.range(2**16, dtype=tf.int32), tf.uint16)[:, 0]  # the lower half of each
    back = tf.bitcast(one_pass.widened(tf.bitcast(every, tf.bfloat16)), tf.uint32)
    np.testing.assert_array_equal(back, np.arange(2**16, dtype="uint32") << 16)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_linear_layer_is_keras_own(activation, fused):
    mine = Linear(4, activation=activation)
    theirs = keras.layers.Dense(4, activation=activation)
    for layer in (mine, theirs):
        layer.build(X.shape)
    theirs.set_weights([v + 0.1 for v in mine.get_weights()])
    mine.set_weights(theirs.get_weights())
    for x in (X, X[:, 0]):
        np.testing.assert_allclose(numpy_of(mine(x)), numpy_of(theirs(x)), atol=1e-5)
        if activation is None:
            np.testing.assert_allclose(numpy_of(mine(x, scale=0.3)), 0.3 * numpy_of(theirs(x)), atol=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(mine))
    assert type(again) is Linear and again.get_config() == mine.get_config()


@on_tensorflow
def test_they_are_used_for_what_is_large_and_of_known_size(monkeypatch):
    import tensorflow as tf

    large = tf.TensorSpec((16, 256, 64))
    assert linear.pays(large, 64) and not linear.pays(large, 63)
    assert linear.pays(tf.TensorSpec((None, 256, 64)), 64)
    assert not linear.pays(tf.TensorSpec((16, None, 64)), 64)
    assert not linear.pays(tf.TensorSpec((16, 16, 16, 64)), 64)
    assert not linear.pays(tf.TensorSpec((16, 256, 64), "float16"), 64)
    assert one_pass.pays(tf.TensorSpec((4, 256, 64))) and not one_pass.pays(tf.TensorSpec((4, 256, 63)))
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    assert not linear.pays(large, 64) and not one_pass.pays(large)


@on_tensorflow
@pytest.mark.parametrize("layer", [Linear(8), keras.Sequential([Linear(8), Linear(8, use_bias=False)])])
def test_what_is_used_shows_in_the_graph(layer, fused):
    import tensorflow as tf

    graph = tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec((2, 5, 6))).graph
    assert sum(op.type == "Conv2D" for op in graph.get_operations()) == (1 if fused else 0)
