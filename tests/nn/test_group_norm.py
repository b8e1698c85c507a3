"""Group norm, against torch's in float64."""

import keras
import numpy as np
import pytest
import torch
from helpers import normal, numpy_of, output_of, randomized

from unet_keras.diffusion.gradients import with_product
from unet_keras.nn.group_norm import GroupNorm

MIXED = ("mixed_bfloat16", "mixed_float16")
ROUNDING = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}  # of numbers up to one


def in_float64(x, layer):
    """torch's tensors: the output for channels-last NumPy arrays, and the input it came from."""
    gamma, beta = (torch.tensor(numpy_of(weight)).double() for weight in layer.weights)
    x = torch.tensor(x).double().requires_grad_(True)
    y = torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), layer.groups, gamma, beta, layer.epsilon)
    return y.permute(0, 2, 3, 1), x


def group_norm(x, layer):
    return in_float64(x, layer)[0].detach().numpy()


def built_group_norm(channels, groups, **options):
    layer = GroupNorm(groups, **options)
    layer.build((None, None, None, channels))
    return randomized(layer)


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (8, 2), (8, 8), (9, 3), (15, 5)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_group_norm_is_that_of_torch(channels, groups, epsilon):
    x, layer = 2 * normal(2, 5, 7, channels) + 1, built_group_norm(channels, groups, epsilon=epsilon)
    np.testing.assert_allclose(output_of(layer, x), group_norm(x, layer), atol=1e-5)


@pytest.mark.parametrize(("mean", "atol"), [(3, 1e-4), (10, 1e-3), (30, 5e-3)])
@pytest.mark.parametrize("size", [16, 64])
def test_group_norm_stands_a_large_mean(mean, atol, size):
    """In one pass the variance is a difference of squares: the error grows with (mean / deviation) squared."""
    x, layer = normal(1, size, size, 4) + np.float32(mean), built_group_norm(4, 2)
    np.testing.assert_allclose(output_of(layer, x), group_norm(x, layer), atol=atol)


@pytest.mark.parametrize("x", [2 * normal(2, 5, 7, 6) + 1, np.zeros((2, 5, 7, 6), "float32")], ids=["normal", "zero"])
def test_the_gradient_is_that_of_torch(x):
    """Of zeros too."""
    layer, v = built_group_norm(6, 3, epsilon=0.1), normal(2, 5, 7, 6, seed=1)
    _, found = with_product(layer, keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(v))
    y, given = in_float64(x, layer)
    (expected,) = torch.autograd.grad(y, given, torch.tensor(v).double())
    np.testing.assert_allclose(numpy_of(found), expected, atol=1e-5)


def test_group_norm_of_a_constant_is_beta():
    layer = built_group_norm(8, 2)
    y = output_of(layer, np.full((1, 4, 4, 8), 10, "float32"))
    np.testing.assert_allclose(y, np.broadcast_to(numpy_of(layer.beta), y.shape), atol=1e-3)


@pytest.mark.parametrize("policy", MIXED)
def test_group_norm_has_float32_statistics(policy):
    """Of 2048 numbers of mean 10, rounded as the layer gets them: 16-bit sums or squares would be far off."""
    layer = built_group_norm(4, 2, dtype=policy)
    x = keras.ops.cast(normal(1, 32, 32, 4) + 10, layer.compute_dtype)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    np.testing.assert_allclose(numpy_of(y), group_norm(numpy_of(x), layer), atol=1e-3, rtol=ROUNDING[policy])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch alone has a kernel of its own")
@pytest.mark.parametrize("policy", ["float32", *MIXED])
@pytest.mark.parametrize("axis", [-1, 1])
def test_group_norm_is_the_same_by_torchs_kernel_and_by_operations(policy, axis, monkeypatch):
    layer = GroupNorm(3, epsilon=0.1, axis=axis, dtype=policy)
    layer.build((None, 6, 6, 6))
    randomized(layer)
    x = keras.ops.cast(2 * normal(2, 6, 6, 6) + 1, layer.compute_dtype)
    found = []
    for kernel in (True, False):
        monkeypatch.setattr("unet_keras.nn.group_norm.has_kernel", lambda kernel=kernel: kernel)
        found.append(numpy_of(layer(x)))
    np.testing.assert_allclose(*found, atol=1e-5 if policy == "float32" else 0.02)


def test_group_norm_trains_where_its_input_needs_no_gradient():
    """On the image itself, and behind a frozen stem: torch's kernel ends the process there."""
    image = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(4, 1, trainable=False)(GroupNorm(2)(image))
    x = keras.layers.Conv2D(4, 1, name="frozen")(x)
    frozen = keras.Model(image, GroupNorm(2)(x))
    frozen.get_layer("frozen").trainable = False
    for model in (frozen, keras.Model(image, GroupNorm(2)(image))):
        before = [numpy_of(v).copy() for v in model.trainable_variables]
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(normal(4, 6, 6, 4), normal(4, 6, 6, 4), verbose=0)
        assert all((numpy_of(v) != old).any() for v, old in zip(model.trainable_variables, before, strict=True))


def test_group_norm_names_a_group_count_that_divides():
    with pytest.raises(ValueError, match=r"48 channels do not divide into groups=32: .*groups=16\)"):
        GroupNorm(32)(keras.Input((8, 8, 48)))
