"""Conditions and contexts, each against its formula in NumPy."""

import keras
import numpy as np
import pytest
from helpers import normal, output_of, random_inputs, randomized, tiny_text_unet, tiny_unet

from unet_keras import (
    class_label,
    masked_sequence,
    mean_pool,
    pooled_and_sizes,
    position,
    projected,
    sequence,
    side_by_side,
    timestep,
    vector,
)
from unet_keras.nn.layers import TimestepEmbedding


def made_by(condition, width=12):
    """A condition alone, as a model with random weights."""
    inputs, vector = condition(width)
    return randomized(keras.Model(inputs, vector))


def dense(model, name, x):
    kernel, *bias = model.get_layer(name).get_weights()
    return x @ kernel + (bias[0] if bias else 0)


def two_dense(model, name, x):
    y = dense(model, f"{name}_dense1", x)
    return dense(model, f"{name}_dense2", y / (1 + np.exp(-y)))


def test_a_vector_is_projected_or_added_as_it_is():
    x = normal(2, 5)
    model = made_by(vector(5, name="camera"))
    np.testing.assert_allclose(output_of(model, {"camera": x}), two_dense(model, "camera", x), atol=1e-5)
    plain = keras.Model(*vector(5, project=None)(5))
    np.testing.assert_array_equal(output_of(plain, {"vector": x}), x)
    with pytest.raises(ValueError, match="vector has 5 numbers, and the embedding is 12 wide: give a project"):
        vector(5, project=None)(12)


def test_a_position_is_embedded_as_the_timestep_is():
    model = made_by(position(8, name="noise_level", shift=1, cosine_first=False))
    t = np.array([0.5, 700], "float32")
    embedded = output_of(TimestepEmbedding(8, shift=1, cosine_first=False), t)
    expected = two_dense(model, "noise_level", embedded)
    np.testing.assert_allclose(output_of(model, {"noise_level": t}), expected, atol=1e-5)


def test_pooled_text_and_sizes_go_together():
    model = made_by(pooled_and_sizes(5, 6, 8))
    pooled, sizes = normal(2, 5), np.array([[1024, 768, 0, 3, 512, 512], [64, 64, 1, 1, 64, 64]], "float32")
    embedded = np.concatenate([output_of(TimestepEmbedding(8), column) for column in sizes.T], axis=1)
    expected = two_dense(model, "pooled", np.concatenate([pooled, embedded], axis=1))
    np.testing.assert_allclose(output_of(model, {"pooled": pooled, "sizes": sizes}), expected, atol=1e-4)


def test_conditions_side_by_side_make_a_wider_embedding():
    model = randomized(tiny_unet(conditions=(side_by_side(timestep(), class_label(3)),), emb_width=8))
    assert sorted(x.name for x in model.inputs) == ["image", "label", "timestep"]
    assert model.get_layer("down0_block0_emb_act").input.shape == (None, 16)
    inputs = random_inputs(model)
    other = output_of(model, {**inputs, "label": 2 - inputs["label"]})
    assert np.abs(other - output_of(model, inputs))[0].max() > 1e-3


def test_a_context_is_projected_with_its_mask():
    inputs, tokens, mask = projected(masked_sequence(5, 6), 4)()
    model = randomized(keras.Model(inputs, [tokens, mask]))
    x, kept = normal(2, 5, 6), np.arange(5) < np.array([[3], [5]])
    y, back = (keras.ops.convert_to_numpy(v) for v in model({"context": x, "context_mask": kept}))
    np.testing.assert_allclose(y, dense(model, "context_dense", x), atol=1e-5)
    np.testing.assert_array_equal(back, kept)


@pytest.mark.parametrize("masked", [True, False])
def test_mean_pool_is_the_mean_of_the_tokens_that_count(masked):
    inputs, tokens, mask = (masked_sequence if masked else sequence)(5, 6)()
    model = randomized(keras.Model(inputs, mean_pool(tokens, 4, mask=mask)))
    x, kept = normal(3, 5, 6), np.arange(5) < np.array([[3], [5], [0]])  # of the last none
    counts = kept if masked else np.ones((3, 5), bool)
    mean = (x * counts[..., None]).sum(1) / np.maximum(counts.sum(1, keepdims=True), 1)
    given = {"context": x, **({"context_mask": kept} if masked else {})}
    np.testing.assert_allclose(output_of(model, given), two_dense(model, "pool", mean), atol=1e-5)


def test_the_pooled_context_joins_the_embedding():
    model = randomized(tiny_text_unet(pool=mean_pool))
    inputs = random_inputs(model)
    emb = keras.Model(model.inputs, model.get_layer("down0_block0_emb_act").input)
    names = ("timestep_dense2", "label_embedding", "pool_dense2")
    parts = [output_of(keras.Model(model.inputs, model.get_layer(name).output), inputs) for name in names]
    np.testing.assert_allclose(output_of(emb, inputs), sum(parts), atol=1e-6)


def test_pool_needs_a_context():
    with pytest.raises(ValueError, match="pool sums up a context, and there is none"):
        tiny_unet(pool=mean_pool)
