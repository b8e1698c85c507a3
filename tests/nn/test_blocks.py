"""The parts, each on its own: blocks, attention, down- and upsampling."""

import math
from functools import partial

import keras
import numpy as np
import pytest
import torch
from helpers import model_of, normal, numpy_of, on_arrays, output_of, randomized, tiny_cross_attention, tiny_transformer

from unet_keras import (
    conv_block,
    conv_transpose,
    cross_attention,
    keep_filters,
    max_pool,
    nearest_conv,
    norm_add,
    norm_film,
    res_block,
    res_down,
    res_up,
    self_attention,
    spatial_transformer,
    strided_conv,
)

X, EMB = normal(2, 4, 6, 8), normal(2, 5, seed=1)
CONTEXT = normal(2, 3, 5, seed=2)
MASK = np.array([[True, False, True], [True, False, False]])

block_of_2_groups = partial(res_block, groups=2)


def silu(x):
    return x / (1 + np.exp(-x))


def normalised(layer, x):
    """What a group norm does before its activation."""
    grouped = x.reshape(len(x), -1, layer.groups, x.shape[-1] // layer.groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    whole = ((grouped - mean) / np.sqrt(variance + layer.epsilon)).reshape(x.shape)
    return whole * numpy_of(layer.gamma) + numpy_of(layer.beta)


def layer_by_layer(model):
    """Call a model's layers on NumPy arrays, by the last part of their names."""
    return lambda role, x: output_of(model.get_layer(f"part_{role}"), x)


# ---- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulate", [norm_add, norm_film])
@pytest.mark.parametrize("filters", [8, 4])
def test_res_block_is_the_formula(modulate, filters):
    model = randomized(
        model_of(lambda x, emb: block_of_2_groups(x, filters, emb, modulate=modulate, name="part"), X, EMB)
    )
    run = layer_by_layer(model)
    norm1, norm2 = (partial(normalised, model.get_layer(f"part_norm{n}")) for n in (1, 2))
    h, emb = run("conv1", silu(norm1(X))), run("emb", silu(EMB))[:, None, None]
    if modulate is norm_add:
        h = norm2(h + emb)
    else:
        h = norm2(h) * (1 + emb[..., :filters]) + emb[..., filters:]
    shortcut = X if filters == 8 else run("shortcut", X)
    np.testing.assert_allclose(output_of(model, [X, EMB]), shortcut + run("conv2", silu(h)), atol=1e-5)


@pytest.mark.parametrize("modulate", [norm_add, norm_film])
@pytest.mark.parametrize("block", [conv_block, block_of_2_groups], ids=["conv", "res"])
def test_blocks_without_emb_have_no_weights_for_it(block, modulate):
    options = {"modulate": modulate} if block is block_of_2_groups else {}
    model = model_of(lambda x: block(x, 4, name="part", **options), X)
    assert not [layer.name for layer in model.layers if "emb" in layer.name or "film" in layer.name]


def test_conv_block_has_the_activation_asked_for():
    assert (on_arrays(lambda x: conv_block(x, 4), X) >= 0).all()
    assert (on_arrays(lambda x: conv_block(x, 4, activation="silu"), X) < 0).any()


def test_res_block_drops_out_in_training_only():
    model = randomized(model_of(lambda x: block_of_2_groups(x, 8, dropout=0.5), X))
    without = on_arrays(lambda x: block_of_2_groups(x, 8), X)
    np.testing.assert_allclose(output_of(model, X, training=False), without, atol=1e-6)
    first, second = (output_of(model, X, training=True) for _ in range(2))
    assert (first != without).any() and (first != second).any()


def test_res_block_starts_near_the_identity():
    y = output_of(model_of(lambda x: block_of_2_groups(x, 8), X), X)
    assert 1e-3 < np.abs(y - X).max() < 1


@pytest.mark.parametrize("groups", [3, 16])
def test_res_block_refuses_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=f"8 channels do not divide into groups={groups}"):
        res_block(keras.Input((4, 4, 8)), 8, groups=groups)


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head_dim", "heads"), [(None, 1), (4, 2), (3, 2), (8, 1)])
def test_self_attention_has_as_many_heads_as_fit(head_dim, heads):
    model = randomized(model_of(lambda x: self_attention(x, head_dim=head_dim, groups=2, name="part"), X))
    run, layer = layer_by_layer(model), model.get_layer("part_attention")
    assert (layer.heads, layer.head_dim) == (heads, head_dim or 8)
    y = run("attention", run("norm", X).reshape(2, 24, 8)).reshape(X.shape)
    np.testing.assert_allclose(output_of(model, X), X + y, atol=1e-5)


def test_self_attention_moves_every_pixel_with_every_other():
    changed = X.copy()
    changed[:, 0, 0] += 1
    part = partial(self_attention, groups=2)
    assert (np.abs(on_arrays(part, changed) - on_arrays(part, X)).max(-1) > 1e-6).all()


def test_self_attention_does_not_look_at_context_or_mask():
    part = partial(self_attention, groups=2)
    given = on_arrays(
        lambda x, context, mask: part(x, context, mask=mask) + 0 * context[:, :1, :1, None], X, CONTEXT, MASK
    )
    np.testing.assert_allclose(given, on_arrays(part, X), atol=1e-6)


def test_cross_attention_is_the_formula():
    model = randomized(model_of(partial(cross_attention, heads=2, name="part"), X, CONTEXT))
    run, layer = layer_by_layer(model), model.get_layer("part_attention")
    y = output_of(layer, run("norm", X.reshape(2, 24, 8)), context=CONTEXT).reshape(X.shape)
    np.testing.assert_allclose(output_of(model, [X, CONTEXT]), X + y, atol=1e-5)


READERS = {"cross_attention": tiny_cross_attention, "spatial_transformer": tiny_transformer}
readers = pytest.mark.parametrize("attend", READERS.values(), ids=READERS.keys())


@readers
def test_attends_read_every_token_of_their_context(attend):
    y = on_arrays(attend, X, CONTEXT)
    for token in range(3):
        changed = CONTEXT.copy()
        changed[:, token] += 1
        assert (np.abs(on_arrays(attend, X, changed) - y).max((1, 2, 3)) > 1e-4).all()


@readers
def test_attends_honour_the_mask(attend):
    def masked(context, mask=MASK):
        return on_arrays(lambda x, context, mask: attend(x, context, mask=mask), X, context, mask)

    y = masked(CONTEXT)
    np.testing.assert_array_equal(masked(np.where(MASK[..., None], CONTEXT, 99)), y)
    assert (np.abs(masked(np.where(MASK[..., None], 2 * CONTEXT, 99)) - y).max((1, 2, 3)) > 1e-4).all()
    np.testing.assert_allclose(masked(CONTEXT, np.ones_like(MASK)), on_arrays(attend, X, CONTEXT), atol=1e-5)
    assert np.isfinite(masked(CONTEXT, np.zeros_like(MASK))).all()


@readers
def test_attends_need_a_context(attend):
    with pytest.raises(ValueError, match=f"{attend.func.__name__} needs a context, got None"):
        attend(keras.Input((4, 4, 8)), None)


def transformer(x, context, *, layers, heads):
    """The blocks of a spatial transformer by hand, with the layers of ``layers`` (a model) on NumPy arrays."""
    run = layer_by_layer(layers)
    y = run("proj_in", run("norm", x).reshape(2, 24, 8))
    for i in range(2):
        y = y + run(f"layer{i}_self", run(f"layer{i}_norm1", y))
        y = y + output_of(layers.get_layer(f"part_layer{i}_cross"), run(f"layer{i}_norm2", y), context=context)
        h = run(f"layer{i}_norm3", y)
        gate = run(f"layer{i}_feed_gate", h)
        gelu = gate * (0.5 + 0.5 * np.vectorize(math.erf)(gate / math.sqrt(2)))  # by erf, not its approximation by tanh
        y = y + run(f"layer{i}_feed_out", run(f"layer{i}_feed_value", h) * gelu)
    return x + run("proj_out", y).reshape(x.shape)


def test_spatial_transformer_is_the_formula():
    model = randomized(model_of(partial(tiny_transformer, depth=2, name="part"), X, CONTEXT))
    gate = model.get_layer("part_layer0_feed_gate")
    assert gate.units == 32
    expected = transformer(X, CONTEXT, layers=model, heads=2)
    np.testing.assert_allclose(output_of(model, [X, CONTEXT]), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "heads", "head_dim"), [({"heads": 4}, 4, 2), ({"heads": 3}, 3, 2), ({"head_dim": 4}, 2, 4)]
)
def test_spatial_transformer_takes_heads_or_their_width(options, heads, head_dim):
    model = model_of(partial(spatial_transformer, groups=2, name="part", **options), X, CONTEXT)
    layer = model.get_layer("part_layer0_cross")
    assert (layer.heads, layer.head_dim) == (heads, head_dim)


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (partial(spatial_transformer, groups=2), "one of heads and head_dim, got heads=None, head_dim=None"),
        (partial(spatial_transformer, groups=2, heads=2, head_dim=4), "got heads=2, head_dim=4"),
        (partial(spatial_transformer, groups=2, heads=16), "heads=16, head_dim=None do not fit 8 channels"),
        (partial(spatial_transformer, groups=2, heads=0), "heads must be a whole number of 1 or more, got 0"),
        (partial(spatial_transformer, groups=2, heads=2, depth=0), "depth must be a whole number of 1 or more, got 0"),
        (partial(cross_attention, heads=-1), "heads must be a whole number of 1 or more, got -1"),
        (partial(self_attention, groups=0), "groups must be a whole number of 1 or more, got 0"),
        (partial(self_attention, groups=2, head_dim=-4), "head_dim must be a whole number of 1 or more, got -4"),
        (partial(spatial_transformer, groups=2, head_dim=16), "head_dim=16 do not fit 8 channels"),
        (partial(cross_attention, heads=3), "heads=3 does not divide the 8 channels"),
        (partial(self_attention, groups=2, head_dim=9), "head_dim=9 is wider than the 8 channels"),
    ],
)
def test_attends_refuse_heads_that_do_not_fit(part, match):
    with pytest.raises(ValueError, match=match):
        part(keras.Input((4, 4, 8)), keras.Input((3, 5)))


# ---- down- and upsampling -------------------------------------------------------------------------------------------


def torch_conv(x, layer, **options):
    """torch's 2-D convolution of a channels-last NumPy array with a Keras layer's weights."""
    kernel = torch.tensor(numpy_of(layer.kernel)).permute(3, 2, 0, 1)
    bias, x = torch.tensor(numpy_of(layer.bias)), torch.tensor(x).permute(0, 3, 1, 2)
    return torch.nn.functional.conv2d(x, kernel, bias, **options).permute(0, 2, 3, 1).numpy()


def built(part, x, filters):
    return randomized(model_of(lambda x: part(x, filters, name="part"), x))


def test_strided_conv_pads_even_sizes_at_the_bottom_and_the_right():
    model = built(strided_conv, X, 3)
    padded = np.pad(X, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_allclose(output_of(model, X), torch_conv(padded, model.get_layer("part"), stride=2), atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 6), (5, 7)])
def test_strided_conv_can_pad_all_sides(sizes):
    x = normal(2, *sizes, 8)
    model = built(partial(strided_conv, padding="symmetric"), x, 3)
    expected = torch_conv(x, model.get_layer("part"), stride=2, padding=1)
    np.testing.assert_allclose(output_of(model, x), expected, atol=1e-5)


def test_strided_conv_knows_three_paddings():
    with pytest.raises(ValueError, match="padding must be one of same, symmetric, end, got 'valid'"):
        strided_conv(keras.Input((4, 4, 8)), padding="valid")


def test_nearest_conv_is_interpolate_and_conv():
    model = built(nearest_conv, X, 3)
    big = torch.nn.functional.interpolate(torch.tensor(X).permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    expected = torch_conv(big.permute(0, 2, 3, 1).numpy(), model.get_layer("part"), padding=1)
    np.testing.assert_allclose(output_of(model, X), expected, atol=1e-5)


def test_nearest_conv_cuts_before_it_convolves():
    model = randomized(model_of(lambda x, like: nearest_conv(x, 3, like=like, name="part"), X, normal(2, 7, 11, 1)))
    cut = X.repeat(2, 1).repeat(2, 2)[:, :7, :11]
    y = output_of(model, [X, normal(2, 7, 11, 1)])
    np.testing.assert_allclose(y, torch_conv(cut, model.get_layer("part"), padding=1), atol=1e-5)


def test_conv_transpose_gives_each_pixel_four():
    """y[2i+m, 2j+n] = W[m, n] x[i, j]"""
    model = built(conv_transpose, X, 3)
    layer = model.get_layer("part")
    y = np.einsum("bijc,mnoc->bimjno", X, numpy_of(layer.kernel)).reshape(2, 8, 12, 3) + numpy_of(layer.bias)
    np.testing.assert_allclose(output_of(model, X), y, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 6), (5, 7)])
def test_max_pool_takes_the_greatest_of_four_and_rounds_up(sizes):
    x = normal(2, *sizes, 3)
    padded = np.pad(x, ((0, 0), (0, sizes[0] % 2), (0, sizes[1] % 2), (0, 0)), constant_values=-np.inf)
    height, width = padded.shape[1] // 2, padded.shape[2] // 2
    expected = padded.reshape(2, height, 2, width, 2, 3).max((2, 4))
    np.testing.assert_array_equal(output_of(model_of(max_pool, x), x), expected)


def average(x):
    return x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))


def repeat(x):
    return x.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize(("part", "resample"), [(res_down, average), (res_up, repeat)])
def test_residual_blocks_resample_both_branches_before_the_first_convolution(part, resample):
    model = randomized(model_of(lambda x, emb: part(x, 4, emb, groups=2, name="part"), X, EMB))
    run = layer_by_layer(model)
    h = run("conv1", resample(run("norm1", X))) + run("emb", silu(EMB))[:, None, None]
    expected = run("shortcut", resample(X)) + run("conv2", run("norm2", h))
    np.testing.assert_allclose(output_of(model, [X, EMB]), expected, atol=1e-5)


SAMPLERS = {
    "max_pool": (max_pool, "down"),
    "strided_conv": (strided_conv, "down"),
    "symmetric": (partial(strided_conv, padding="symmetric"), "down"),
    "res_down": (partial(res_down, groups=2), "down"),
    "conv_transpose": (conv_transpose, "up"),
    "nearest_conv": (nearest_conv, "up"),
    "res_up": (partial(res_up, groups=2), "up"),
}
samplers = pytest.mark.parametrize(("part", "way"), SAMPLERS.values(), ids=SAMPLERS.keys())


@samplers
@pytest.mark.parametrize("sizes", [(4, 6), (5, 7), (1, 2)])
def test_resampling_halves_rounding_up_or_doubles(part, way, sizes):
    x = normal(1, *sizes, 8)
    expected = tuple((n + 1) // 2 if way == "down" else 2 * n for n in sizes)
    model = model_of(part, x)
    assert model.output_shape[1:] == output_of(model, x).shape[1:] == (*expected, 8)


@samplers
def test_resampling_goes_to_the_filters_asked_for_or_keeps_them(part, way):
    asked = model_of(lambda x: part(x, 4), X).output_shape[-1]
    assert asked == (8 if part is max_pool else 4)
    assert model_of(lambda x: keep_filters(part)(x, 4), X).output_shape[-1] == 8


@pytest.mark.parametrize("part", [part for part, way in SAMPLERS.values() if way == "up"])
@pytest.mark.parametrize("fixed", [True, False])
def test_upsampling_is_cut_to_the_size_of_another_map(part, fixed):
    like = normal(2, 7, 11, 2)
    x, other = (
        keras.Input((4, 6, 8) if fixed else (None, None, 8)),
        keras.Input((7, 11, 2) if fixed else (None, None, 2)),
    )
    model = keras.Model([x, other], part(x, like=other, name="part"))
    assert output_of(model, [X, like]).shape == (2, 7, 11, 8)


def test_keep_filters_is_called_with_what_its_part_takes():
    """Through ``build_unet``, which gives parts of one's own the options that they name."""
    from unet_keras import build_unet

    def my_up(x, filters, emb):
        return keras.layers.UpSampling2D(2)(x)

    assert build_unet((8, 8, 3), (2, 4), up=keep_filters(my_up), conditions=()).output_shape == (None, 8, 8, 3)
