"""Wide 3x3 convolutions in half the products, on TensorFlow's CPUs: as the plain ones, and only where it pays."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras.nn import winograd
from unet_keras.nn.convolution import Conv

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for TensorFlow's CPUs")
WIDE, KERNEL = (16, 16, 16, 192), (3, 3, 192, 192)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def exact(x, kernel, bias):
    """Sum in float64: each of the nine shifts of the zero-padded map times its part of the kernel, and the bias."""
    padded, (h, w) = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), x.shape[1:3]
    return bias + sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


@on_tensorflow
@pytest.mark.parametrize("size", [(4, 5), (8, 1), (16, 16), (20, 7)], ids=str)
def test_is_the_convolution(size):
    given = normal(2, *size, 6), normal(3, 3, 6, 5, seed=1), normal(5, seed=2)
    y = winograd.convolve(*(ops.convert_to_tensor(v, "float32") for v in given))
    expected = exact(*given)
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected, atol=1e-5 * np.abs(expected).max())


@on_tensorflow
def test_gradients_are_those_of_the_convolution():
    """The sum of y * c is linear in each of the three: its gradients are what it grows by for each of their numbers."""
    import tensorflow as tf

    given, c = [normal(2, 8, 3, 2), normal(3, 3, 2, 3, seed=1), normal(3, seed=2)], normal(2, 8, 3, 3, seed=3)
    inputs = [tf.constant(v, "float32") for v in given]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = winograd.convolve(*inputs) * tf.constant(c, "float32")
    for i, gradient in enumerate(tape.gradient(y, inputs)):
        units, base = np.eye(given[i].size).reshape(-1, *given[i].shape), (exact(*given) * c).sum()
        moved = [[*given[:i], given[i] + unit, *given[i + 1 :]] for unit in units]
        expected = np.reshape([(exact(*m) * c).sum() - base for m in moved], given[i].shape)
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


@on_tensorflow
def test_a_wide_layer_takes_it_with_and_without_gradients(monkeypatch):
    counted = []

    def counting(x, *rest):
        counted.append(tuple(x.shape))
        return plain(x, *rest)

    plain = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", counting)
    layer = Conv(192, bias_initializer="random_normal")
    layer.build((None, None, None, 192))
    x = ops.convert_to_tensor(normal(*WIDE), "float32")
    y = layer(x)
    assert counted == [WIDE]
    expected = exact(normal(*WIDE), *(ops.convert_to_numpy(v).astype("float64") for v in (layer.kernel, layer.bias)))
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected, atol=1e-5 * np.abs(expected).max())
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    counted.clear()
    model.train_on_batch(normal(*WIDE), normal(*WIDE, seed=1))
    assert WIDE in counted


class Tensor:
    """A tensor's shape and type."""

    def __init__(self, shape, dtype="float32"):
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize(
    "x, kernel",
    [
        (Tensor((None, *WIDE[1:])), KERNEL),
        (Tensor(WIDE, "bfloat16"), KERNEL),
        (Tensor(WIDE), (1, 1, 192, 192)),
        (Tensor((16, 18, 16, 192)), KERNEL),
        (Tensor((64, 8, 16, 192)), KERNEL),
        (Tensor((16, 128, 16, 192)), KERNEL),
        (Tensor((64, 64, 64, 128)), (3, 3, 128, 128)),
        (Tensor((2, *WIDE[1:])), KERNEL),
    ],
    ids=["images unknown", "half precision", "1x1", "height 18", "height 8", "height 128", "narrow", "small"],
)
def test_does_not_pay(x, kernel):
    assert winograd.pays(Tensor(WIDE), Tensor(KERNEL)) == (keras.backend.backend() == "tensorflow")
    assert not winograd.pays(x, Tensor(kernel))


@on_tensorflow
@pytest.mark.parametrize("device", ["gpu:0", "tpu:0"])
def test_is_for_cpus(device, monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [device])
    assert not winograd.pays(Tensor(WIDE), Tensor(KERNEL))
