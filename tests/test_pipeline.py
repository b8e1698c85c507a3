"""Attention maps: those of the pass that made the image, which is the one that generate makes."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import DiffusionModel, Level, TokenEncoder, attention, build_unet, cross_attention, spatial_transformer
from unet_keras.nn.attention import Attention
from unet_keras.nn.taps import attention_taps
from unet_keras.pipeline import _upsampled

WORDS = ["red", "green", "blue"]
PROMPTS = ["red blue", "green"]


def network(encoder):
    keras.utils.set_random_seed(0)
    levels = (8, Level(8, 1, partial(cross_attention, heads=2)))
    return build_unet((10, 6, 3), levels, context=encoder.context)


@pytest.fixture(scope="module")
def model():
    """Maps at 5 x 3, twice, and at the bridge; weights that look at some words more than at others."""
    encoder = TokenEncoder(WORDS, length=4, width=8, depth=0)
    trained = DiffusionModel(network(encoder), encoder=encoder, drop=0.1, ema=None, seed=0)
    rng = np.random.default_rng(0)
    trained.network.set_weights([w + 0.2 * rng.standard_normal(w.shape) for w in trained.network.get_weights()])
    return trained


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_images_are_those_of_generate(model, guidance):
    options = {"steps": 3, "guidance": guidance, "seed": 2}
    found = attention(model, PROMPTS, **options)
    np.testing.assert_array_equal(found.images, model.generate(PROMPTS, progress=False, **options))


def test_the_maps_are_shares_of_the_words_that_are_there(model):
    found = attention(model, PROMPTS, steps=2, seed=0)
    assert found.words == [["", "red", "blue", ""], ["", "green", "", ""]]
    assert found.maps.shape == (2, 10, 6, 4) and found.maps.dtype == "float32"
    np.testing.assert_allclose(found.maps.sum(axis=-1), 1, atol=1e-5)
    assert (found.maps[0, ..., 3] == 0).all() and (found.maps[1, ..., 2:] == 0).all()
    assert found.maps[0, ..., :3].std(axis=(0, 1)).max() > 1e-3


def test_the_maps_are_those_of_the_calls_that_made_the_image(model):
    """Against the softmax by hand, from the layers' own inputs, at each state on the way."""
    states = [ops.convert_to_numpy(frame.x) for frame in model.denoising(["red blue"], steps=2, seed=0, guidance=2.0)]
    rows = model._request(["red blue"], steps=2, seed=0)
    taken = [layer for layer in model.network.layers if isinstance(layer, Attention)]
    probe = keras.Model(model.network.input, [layer.input for layer in taken])
    start = next(iter(rows.frames(lambda *args: (args[0], args[1], [args[0][0]])))).extras[0]
    expected = 0
    for x, row in zip([ops.convert_to_numpy(start), states[0]], rows.rows, strict=True):
        t = np.array([row.point.timestep], "float32")
        given = {"image": x, "timestep": t, **model.encoder(["red blue"])}
        for layer, (pixels, context, *_) in zip(taken, probe(given), strict=True):
            q, k = (ops.convert_to_numpy(f(v)) for f, v in ((layer.query, pixels), (layer.key, context)))
            q, k = (v.reshape(*v.shape[:2], layer.heads, layer.head_dim).transpose(0, 2, 1, 3) for v in (q, k))
            scores = (q @ k.swapaxes(-1, -2) / np.sqrt(layer.head_dim))[..., :3]  # the fourth is padding
            weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
            weights = np.pad(weights.mean(axis=1), ((0, 0), (0, 0), (0, 1))).astype("float32")
            expected = expected + _upsampled(ops.convert_to_tensor(weights), 10, 6)
    found = attention(model, ["red blue"], steps=2, seed=0, guidance=2.0)
    np.testing.assert_allclose(found.maps, expected / (2 * len(taken)), atol=1e-4)


def test_small_maps_are_brought_to_the_images_size_in_place():
    weights = np.zeros((1, 15, 2), "float32")
    weights[0, 2, 0] = weights[0, 12, 1] = 1.0  # the right end of the first row, the left end of the last, of 5 x 3
    large = _upsampled(ops.convert_to_tensor(weights), 10, 6)
    assert large.shape == (1, 10, 6, 2)
    assert large[0, 0, 5].tolist() == [1, 0] and large[0, 9, 0].tolist() == [0, 1] and large[0, 0, 0].tolist() == [0, 0]


def test_taps_give_the_networks_output_and_a_map_for_each_cross_attention():
    encoder = TokenEncoder(WORDS, length=4, width=8, depth=0)
    inputs, context, mask = encoder.context()
    image = keras.Input((4, 4, 8), name="image")
    y = spatial_transformer(image, context, mask=mask, heads=2, groups=4, depth=2, name="a")
    network = keras.Model({"image": image, **inputs}, layers.Conv2D(2, 1)(y))
    tapped = attention_taps(network)
    given = {"image": np.ones((2, 4, 4, 8), "float32"), **encoder(PROMPTS)}
    output, *maps = (ops.convert_to_numpy(v) for v in tapped(given))
    np.testing.assert_array_equal(output, ops.convert_to_numpy(network(given)))
    assert [m.shape for m in maps] == [(2, 16, 4)] * 2  # the two self-attentions are not asked
    assert {id(v) for v in tapped.weights} == {id(v) for v in network.weights}


def test_what_has_no_words_or_no_cross_attention_is_refused(model):
    bare = build_unet((4, 4, 3), (4,))
    with pytest.raises(ValueError, match="no cross-attention"):
        attention_taps(bare)
    with pytest.raises(ValueError, match="encoder=..."):
        attention(DiffusionModel(bare), 2)
    with pytest.raises(ValueError, match="none"):
        attention(model, [])
    for asked in (2, {"tokens": [[1, 2, 0, 0]]}, "red"):
        with pytest.raises(ValueError, match="attention needs prompts: a list of texts"):
            attention(model, asked)
    silent = DiffusionModel(model.network, encoder=lambda prompts: model.encoder(prompts), drop=0.1, ema=None)
    with pytest.raises(ValueError, match="function has none"):
        attention(silent, ["red"])


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="its CPUs have no such convolutions")
def test_channels_may_come_first(model):
    options = {"steps": 2, "guidance": 2.0}
    noise = np.random.default_rng(0).standard_normal((1, 10, 6, 3)).astype("float32")
    last = attention(model, ["red blue"], noise=noise, **options)
    keras.config.set_image_data_format("channels_first")
    levels = (8, Level(8, 1, partial(cross_attention, heads=2)))
    network = build_unet((3, 10, 6), levels, context=model.encoder.context)
    network.set_weights(model.network.get_weights())
    first = DiffusionModel(network, encoder=model.encoder, drop=0.1, ema=None, seed=0)
    found = attention(first, ["red blue"], noise=noise.transpose(0, 3, 1, 2), **options)
    np.testing.assert_allclose(found.maps, last.maps, atol=1e-5)
    assert np.abs(found.images.transpose(0, 2, 3, 1).astype(int) - last.images).max() <= 1
