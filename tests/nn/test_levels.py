"""Levels with parts of their own, a way up of its own, and feature maps beside the image."""

from functools import partial

import keras
import numpy as np
import pytest
import torch
from helpers import (
    model_of,
    normal,
    output_of,
    random_inputs,
    randomized,
    tiny_residual_unet,
    tiny_self_attention,
    tiny_unet,
)

from unet_keras import Level, nearest_conv, res_down, res_up, self_attention, strided_conv
from unet_keras.nn.layers import NearestLike


def names_of(model, part):
    return sorted(layer.name for layer in model.layers if part in layer.name)


def test_a_level_may_have_its_own_resampling_and_the_way_up_its_own_levels():
    up = partial(res_up, groups=2)
    levels = [Level(4, down=partial(res_down, groups=2)), Level(8), Level(8)]
    model = tiny_residual_unet(levels=levels, up_levels=[Level(4, 1), Level(8, 1, tiny_self_attention, up=up), 8])
    assert names_of(model, "down0_down_conv1") and names_of(model, "down1_down") == ["down1_down"]
    assert names_of(model, "up1_up_conv1") and not names_of(model, "up0_up_conv1")
    attending = names_of(model, "attend")
    assert {name.rsplit("_", 1)[0] for name in attending} == {"bridge_attend0", "up1_attend0", "up1_attend1"}
    assert output_of(randomized(model), random_inputs(model)).shape == (2, 8, 8, 3)


def test_refuses_a_way_up_of_another_length():
    with pytest.raises(ValueError, match="up_levels must be as many as levels, 2, got 1"):
        tiny_unet((4, 8), up_levels=[4])


def test_further_maps_go_beside_the_image():
    model = randomized(tiny_residual_unet(maps={"mask": 1, "masked": 3}))
    assert sorted(x.name for x in model.inputs) == ["image", "mask", "masked", "timestep"]
    assert model.get_layer("stem").kernel.shape == (3, 3, 7, 4) and model.output_shape == (None, 8, 8, 3)
    inputs = {**random_inputs(model), "mask": normal(2, 8, 8, 1), "masked": normal(2, 8, 8, 3, seed=1)}
    stem = keras.Model(model.inputs, model.get_layer("stem").output)
    together = np.concatenate([inputs[name] for name in ("image", "mask", "masked")], axis=-1)
    np.testing.assert_allclose(output_of(stem, inputs), output_of(model.get_layer("stem"), together), atol=1e-5)


def test_refuses_a_map_of_a_name_that_is_taken():
    with pytest.raises(ValueError, match=r"declare the input \['image'\] twice"):
        tiny_unet(maps={"image": 1})


@pytest.mark.parametrize(("size", "wanted"), [((4, 6), (9, 13)), ((4, 6), (7, 11)), ((5, 3), (8, 8))])
def test_nearest_like_is_interpolate(size, wanted):
    x, like = normal(2, *size, 3), normal(2, *wanted, 1)
    expected = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), size=wanted, mode="nearest")
    np.testing.assert_array_equal(output_of(NearestLike(), x, like=like), expected.permute(0, 2, 3, 1).numpy())


def test_nearest_conv_meets_sizes_more_than_doubled():
    x, like = normal(2, 4, 6, 3), normal(2, 9, 13, 1)
    model = randomized(model_of(lambda x, like: nearest_conv(x, 3, like=like, name="part"), x, like))
    near = x[:, np.arange(9) * 4 // 9][:, :, np.arange(13) * 6 // 13]
    conv = keras.Model(model.get_layer("part").input, model.get_layer("part").output)
    np.testing.assert_allclose(output_of(model, [x, like]), output_of(conv, near), atol=1e-5)


def test_strided_conv_may_round_odd_sizes_down():
    x = normal(2, 7, 6, 3)
    model = randomized(model_of(partial(strided_conv, filters=4, padding="end", name="part"), x))
    kernel = torch.tensor(np.array(keras.ops.convert_to_numpy(model.get_layer("part").kernel))).permute(3, 2, 0, 1)
    bias = torch.tensor(np.array(keras.ops.convert_to_numpy(model.get_layer("part").bias)))
    padded = torch.nn.functional.pad(torch.tensor(x).permute(0, 3, 1, 2), (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, kernel, bias, stride=2).permute(0, 2, 3, 1).numpy()
    assert expected.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(output_of(model, x), expected, atol=1e-5)


def test_self_attention_may_go_without_a_norm():
    x = normal(2, 4, 4, 6)
    model = randomized(model_of(partial(self_attention, groups=None, name="part"), x))
    attention = model.get_layer("part_attention")
    expected = x + output_of(attention, x.reshape(2, 16, 6)).reshape(x.shape)
    np.testing.assert_allclose(output_of(model, x), expected, atol=1e-5)
