"""Conv: Keras's Conv2D, and the same of a doubled map at less work."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import build_unet, enable_lora, merge_lora, nearest_conv
from unet_keras.nn.convolution import Conv


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pair(doubled, channels=3, filters=5, **options):
    """Give our layer and Keras's own, as models with the same weights."""
    x = keras.Input((None, None, channels))
    ours = keras.Model(x, Conv(filters, doubled=doubled, **options)(x))
    repeated = layers.UpSampling2D(2)(x) if doubled else x
    theirs = keras.Model(x, layers.Conv2D(filters, 3, padding="same", **options)(repeated))
    weights = [normal(*v.shape, seed=i) for i, v in enumerate(ours.weights)]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"activation": "relu"}], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (1, 1, 5, 3)], ids=str)
@pytest.mark.parametrize("doubled", [False, True])
def test_is_keras_convolution(doubled, shape, options):
    ours, theirs = pair(doubled, **options)
    x = normal(*shape, seed=9)
    expected = ops.convert_to_numpy(theirs(x))
    assert expected.shape[1:3] == tuple((1 + doubled) * n for n in shape[1:3])
    np.testing.assert_allclose(ops.convert_to_numpy(ours(x)), expected, atol=1e-5)


@pytest.mark.parametrize("doubled", [False, True])
def test_gradients_are_those_of_keras_convolution(doubled):
    """One step of SGD at rate 1 subtracts the gradient."""
    x, y = normal(2, 5, 3, 3, seed=1), normal(2, *((10, 6) if doubled else (5, 3)), 5, seed=2)
    moved = []
    for model in pair(doubled):
        before = model.get_weights()
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
        model.train_on_batch(x, y)
        moved.append([a - b for a, b in zip(before, model.get_weights(), strict=True)])
    assert all(np.abs(gradient).max() > 1e-2 for gradient in moved[0])
    for ours, theirs in zip(*moved, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has no channels-first kernels on CPUs")
def test_channels_first():
    ours, _ = pair(True)
    x = normal(2, 4, 3, 3)
    first = Conv(5, doubled=True, data_format="channels_first")
    assert first.compute_output_shape((2, 3, None, 3)) == (2, 5, None, 6)
    first.build((2, 3, 4, 3))
    first.set_weights(ours.get_weights())
    y = ops.transpose(first(ops.transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1))
    np.testing.assert_allclose(ops.convert_to_numpy(y), ops.convert_to_numpy(ours(x)), atol=1e-5)


def test_half_precision_is_near():
    ours, _ = pair(True)
    half = Conv(5, doubled=True, dtype="mixed_bfloat16")
    half.build((None, None, None, 3))
    half.set_weights(ours.get_weights())
    x = normal(2, 4, 4, 3)
    y, expected = (ops.convert_to_numpy(ops.cast(f(x), "float32")) for f in (half, ours))
    assert half(x).dtype == ops.cast(x, "bfloat16").dtype
    assert 0 < np.abs(y - expected).max() < 0.02 * np.abs(expected).max()


def test_configuration_and_file(tmp_path):
    ours, _ = pair(True)
    ours.save(tmp_path / "conv.keras")
    loaded = keras.saving.load_model(tmp_path / "conv.keras")
    assert loaded.layers[1].doubled and type(loaded.layers[1]) is Conv
    x = normal(1, 4, 4, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded(x)), ops.convert_to_numpy(ours(x)))


@pytest.mark.parametrize(
    "options", [{"strides": 2}, {"dilation_rate": 2}, {"padding": "valid"}, {"kernel_size": 5}, {"groups": 3}], ids=str
)
def test_refuses_to_double_what_it_cannot(options):
    with pytest.raises(ValueError, match="doubled=True is for a plain 3x3 convolution.*put an UpSampling2D before it"):
        Conv(3, doubled=True, **options)


def test_lora_of_a_doubled_map_is_merged_to_the_same():
    network = build_unet((8, 8, 3), (4,), conditions=(), up=nearest_conv)
    x = normal(2, 8, 8, 3)
    plain = ops.convert_to_numpy(network(x))
    (up,) = [layer for layer in network.layers if getattr(layer, "doubled", False)]
    enable_lora(network, rank=2, layers=up.name)
    up.lora_kernel_b.assign(normal(*up.lora_kernel_b.shape))
    adapted = ops.convert_to_numpy(network(x))
    assert np.abs(adapted - plain).max() > 1e-3
    merge_lora(network)
    assert type(up) is Conv
    np.testing.assert_allclose(ops.convert_to_numpy(network(x)), adapted, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of torch.compile")
def test_torch_compile_meets_no_views():
    """Its compiler fails on views of maps whose batch size is open."""
    import torch

    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ours, _ = pair(True)
    x = torch.tensor(normal(2, 4, 3, 3))
    expected = ours(x).detach().numpy()
    with torch.no_grad():
        found = torch.compile(ours.layers[1].convolution_op, backend=kept)(x, ours.layers[1].kernel.value)
    np.testing.assert_allclose(found.numpy() + ours.layers[1].bias.numpy(), expected, atol=1e-5)
    assert "contiguous" in "".join(graph.code for graph in graphs)
