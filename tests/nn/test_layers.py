"""The layers, each against an independent formula or another library's."""

import keras
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from helpers import normal, numpy_of, output_of, randomized

from unet_keras.nn.attention import Attention
from unet_keras.nn.group_norm import GroupNorm
from unet_keras.nn.layers import (
    CropLike,
    FiLM,
    PixelsToSequence,
    SequenceToPixels,
    TimestepEmbedding,
)

TIMESTEPS = np.array([0, 1, 17, 256, 257, 500.25, 998.5, 999], "float32")
MIXED = ("mixed_bfloat16", "mixed_float16")
ROUNDING = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}  # of numbers up to one


# ---- timestep embedding ---------------------------------------------------------------------------------------------


def sinusoids(t, width, shift, cosine_first):
    half = width // 2
    angle = np.float64(t)[:, None] / 10000 ** (np.arange(half) / (half - shift))
    sine_cosine = [np.sin(angle), np.cos(angle)]
    return np.concatenate([*sine_cosine[:: -1 if cosine_first else 1], np.zeros((len(t), width % 2))], axis=1)


variants = pytest.mark.parametrize(
    ("width", "shift", "cosine_first"), [(8, 0, True), (8, 1, False), (8, 1, True), (8, 0, False), (9, 0, True)]
)


@variants
def test_timestep_embedding_is_the_formula(width, shift, cosine_first):
    y = output_of(TimestepEmbedding(width, shift=shift, cosine_first=cosine_first), TIMESTEPS)
    np.testing.assert_allclose(y, sinusoids(TIMESTEPS, width, shift, cosine_first), atol=2e-4)


@variants
def test_timestep_embedding_is_that_of_diffusers(width, shift, cosine_first):
    y = output_of(TimestepEmbedding(width, shift=shift, cosine_first=cosine_first), TIMESTEPS)
    options = {"flip_sin_to_cos": cosine_first, "downscale_freq_shift": shift}
    np.testing.assert_allclose(y, get_timestep_embedding(torch.tensor(TIMESTEPS), width, **options), atol=2e-4)


@pytest.mark.parametrize("policy", MIXED)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_timestep_embedding_does_not_round_the_timestep(policy, dtype):
    t = np.array([257, 999, 998], dtype)
    y = keras.ops.convert_to_tensor(t)
    y = TimestepEmbedding(16, dtype=policy)(y)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(numpy_of(y), sinusoids(t, 16, 0, True), atol=ROUNDING[policy])


def test_timestep_embedding_takes_several_numbers_an_example():
    t = TIMESTEPS.reshape(2, 4)
    y = output_of(TimestepEmbedding(8), t)
    assert y.shape == TimestepEmbedding(8).compute_output_shape(t.shape) == (2, 4, 8)
    np.testing.assert_array_equal(y[1], output_of(TimestepEmbedding(8), t[1]))


@pytest.mark.parametrize(("width", "shift"), [(3, 0), (2, 1), (4, 2)])
def test_timestep_embedding_refuses_a_width_without_frequencies(width, shift):
    with pytest.raises(ValueError, match=f"width={width} .*shift={shift}"):
        TimestepEmbedding(width, shift=shift)


# ---- modulation -----------------------------------------------------------------------------------------------------


def test_film_scales_and_shifts_each_channel():
    x, modulation = normal(2, 3, 4, 5), normal(2, 10, seed=1)
    scale, shift = modulation[:, None, None, :5], modulation[:, None, None, 5:]
    np.testing.assert_allclose(output_of(FiLM(), x, modulation=modulation), x * (1 + scale) + shift, atol=1e-6)


def test_film_of_zeros_changes_nothing():
    x = normal(2, 3, 4, 5)
    np.testing.assert_array_equal(output_of(FiLM(), x, modulation=np.zeros((2, 10), "float32")), x)


def test_film_refuses_a_vector_of_another_width():
    with pytest.raises(ValueError, match="5 channels takes twice as many numbers, not 5"):
        FiLM()(keras.Input((3, 4, 5)), keras.Input((5,)))


# ---- attention ------------------------------------------------------------------------------------------------------


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(layer, x, context, mask=None):
    """softmax(Q K' / sqrt(d)) V with a layer's weights, in NumPy."""

    def dense(part, y):
        return y @ numpy_of(part.kernel) + (numpy_of(part.bias) if part.use_bias else 0)

    def heads(y):
        return y.reshape(*y.shape[:2], layer.heads, layer.head_dim).transpose(0, 2, 1, 3)

    q, k, v = heads(dense(layer.query, x)), heads(dense(layer.key, context)), heads(dense(layer.value, context))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(layer.head_dim)
    if mask is not None:
        scores = np.where(mask[:, None, None, :], scores, -np.inf)
    y = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    return dense(layer.out, y)


def built_attention(heads, head_dim, width=6, context_width=5, **options):
    layer = Attention(heads, head_dim, **options)
    layer.build((None, None, width), (None, None, context_width))
    return randomized(layer)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 6), (2, 3), (3, 4)])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("queries", [7, 600])  # so many are taken in pieces where there is no fused kernel
def test_attention_to_a_context_is_the_formula(heads, head_dim, qkv_bias, queries):
    layer = built_attention(heads, head_dim, qkv_bias=qkv_bias)
    assert len(layer.weights) == (8 if qkv_bias else 5)
    x, context = normal(2, queries, 6), normal(2, 4, 5, seed=1)
    np.testing.assert_allclose(output_of(layer, x, context=context), attention(layer, x, context), atol=1e-5)


def test_attention_without_a_context_is_that_of_torch_to_itself():
    layer, theirs = built_attention(2, 3, context_width=6), torch.nn.MultiheadAttention(6, 2, batch_first=True)
    kernels = [torch.tensor(numpy_of(part.kernel)).T for part in (layer.query, layer.key, layer.value)]
    biases = [torch.tensor(numpy_of(part.bias)) for part in (layer.query, layer.key, layer.value)]
    out = {"out_proj.weight": numpy_of(layer.out.kernel).T, "out_proj.bias": numpy_of(layer.out.bias)}
    state = {"in_proj_weight": torch.cat(kernels), "in_proj_bias": torch.cat(biases)}
    theirs.load_state_dict({**state, **{name: torch.tensor(value) for name, value in out.items()}})
    x = normal(2, 7, 6)
    expected = theirs(*3 * [torch.tensor(x)])[0].detach().numpy()
    np.testing.assert_allclose(output_of(layer, x), expected, atol=1e-5)


MASK = np.array([[True, True, False, True], [False, True, False, False]])


@pytest.mark.parametrize(("dtype", "queries"), [("bool", 7), ("int32", 7), ("float32", 600)])
def test_attention_leaves_masked_tokens_out(dtype, queries):
    layer, x, context = built_attention(2, 3), normal(2, queries, 6), normal(2, 4, 5, seed=1)
    y = output_of(layer, x, context=context, context_mask=MASK.astype(dtype))
    np.testing.assert_allclose(y, attention(layer, x, context, MASK), atol=1e-5)
    changed = np.where(MASK[..., None], context, 100 * normal(2, 4, 5, seed=2))
    np.testing.assert_array_equal(output_of(layer, x, context=changed, context_mask=MASK.astype(dtype)), y)


@pytest.mark.parametrize("policy", ["float32", *MIXED])
def test_attention_to_nothing_is_the_bias(policy):
    layer, x, context = built_attention(2, 3, dtype=policy), normal(2, 7, 6), normal(2, 4, 5, seed=1)
    mask = np.array([[False] * 4, [True] * 4])
    y = output_of(layer, x, context=context, context_mask=mask)
    np.testing.assert_allclose(y[0], np.broadcast_to(numpy_of(layer.out.bias), y[0].shape), atol=2e-3)
    np.testing.assert_allclose(y[1], attention(layer, x, context)[1], atol=1e-5 if policy == "float32" else 0.05)


@pytest.mark.parametrize("policy", ["float32", *MIXED])
def test_attention_can_be_trained_past_an_example_without_tokens(policy):
    """The gradient of a softmax of nothing is NaN; one such example would spoil every weight."""
    x, context, mask = keras.Input((7, 6)), keras.Input((4, 5)), keras.Input((4,), dtype="bool")
    model = keras.Model([x, context, mask], built_attention(2, 3, dtype=policy)(x, context, context_mask=mask))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    model.train_on_batch([normal(2, 7, 6), normal(2, 4, 5), np.array([[False] * 4, [True] * 4])], normal(2, 7, 6))
    for weight, old in zip(model.weights, before, strict=True):
        assert np.isfinite(numpy_of(weight)).all()
        assert (numpy_of(weight) != old).any() or weight is model.layers[-1].key.bias  # which moves no softmax


# ---- layout ---------------------------------------------------------------------------------------------------------


def test_a_sequence_holds_the_pixels_row_by_row():
    x = normal(2, 3, 4, 5)
    sequence = output_of(PixelsToSequence(), x)
    np.testing.assert_array_equal(sequence, x.reshape(2, 12, 5))
    np.testing.assert_array_equal(output_of(SequenceToPixels(), sequence, like=x[..., :1]), x)


def test_crop_like_cuts_at_the_bottom_and_the_right():
    x = normal(2, 4, 6, 3)
    np.testing.assert_array_equal(output_of(CropLike(), x, like=normal(2, 3, 5, 1)), x[:, :3, :5])


@pytest.mark.parametrize("sizes", [(6, 4), (None, None), (6, None)])
def test_layout_layers_tell_their_output_shapes(sizes):
    x, like = keras.Input((*sizes, 3)), keras.Input((5, 3, 2))
    sequence = PixelsToSequence()(x)
    assert sequence.shape == (None, 24 if sizes == (6, 4) else None, 3)
    assert SequenceToPixels()(sequence, x).shape == (None, *sizes, 3)
    assert CropLike()(x, like).shape == (None, 5, 3, 3)


# ---- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        TimestepEmbedding(8, shift=1, cosine_first=False),
        GroupNorm(3, epsilon=1e-3, axis=1, activation="silu"),
        Attention(3, 2, qkv_bias=False),
        FiLM(axis=1),
        CropLike(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_come_back_from_their_config(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    own = set(vars(layer)) & {"width", "shift", "cosine_first", "groups", "epsilon", "axis", "heads", "qkv_bias"}
    assert own and all(getattr(copy, name) == getattr(layer, name) for name in own)
