"""The listing that this package grows from, as its slides print it, against ours."""

from functools import partial

import keras
import numpy as np
import pytest
from helpers import normal, output_of, randomized
from keras import Model
from keras.layers import Activation, Concatenate, Conv2D, Conv2DTranspose, Input, MaxPool2D

import unet_keras

# ---- the listing ----------------------------------------------------------------------------------------------------


def conv_block(input, num_filters):
    x = Conv2D(num_filters, 3, padding="same")(input)
    x = Activation("relu")(x)
    # RESNET BLOCK: Add time embedding
    x = Conv2D(num_filters, 3, padding="same")(x)
    x = Activation("relu")(x)
    return x


def encoder_block(input, num_filters):
    x = conv_block(input, num_filters)
    p = MaxPool2D((2, 2))(x)
    return x, p


def decoder_block(input, skip_features, num_filters):
    x = Conv2DTranspose(num_filters, (2, 2), strides=2, padding="same")(input)
    x = Concatenate()([x, skip_features])
    x = conv_block(x, num_filters)
    return x


def build_unet(input_shape, width=64, encoder_block=encoder_block, decoder_block=decoder_block, conv_block=conv_block):
    """The slides' ``build_unet``; ``width`` stands for their 64, and the blocks may be another library's."""
    inputs = Input(input_shape)

    s1, p1 = encoder_block(inputs, width)
    s2, p2 = encoder_block(p1, 2 * width)
    s3, p3 = encoder_block(p2, 4 * width)
    s4, p4 = encoder_block(p3, 8 * width)

    b1 = conv_block(p4, 16 * width)  # Bridge

    d1 = decoder_block(b1, s4, 8 * width)
    d2 = decoder_block(d1, s3, 4 * width)
    d3 = decoder_block(d2, s2, 2 * width)
    d4 = decoder_block(d3, s1, width)

    outputs = Conv2D(3, 1, padding="same")(d4)  # Same shape of original image (supposed rgb)

    return Model(inputs, outputs, name="U-Net")


# ---- ours -----------------------------------------------------------------------------------------------------------

narrow_unet = partial(unet_keras.build_unet, (32, 32, 3), (4, 8, 16, 32))


@pytest.fixture(scope="module")
def slides():
    return randomized(build_unet((32, 32, 3)))


@pytest.fixture(scope="module")
def ours():
    return unet_keras.build_unet((32, 32, 3), conditions=())


def test_has_the_slides_parameters(slides, ours):
    assert slides.count_params() == ours.count_params() == 31_031_875
    assert len(ours.get_weights()) == 46
    assert [w.shape for w in ours.weights] == [w.shape for w in slides.weights]


def test_takes_the_slides_weights_and_gives_the_same_output(slides, ours):
    ours.set_weights(slides.get_weights())
    x = normal(1, 32, 32, 3)
    expected = output_of(slides, x)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(output_of(ours, x), expected, atol=1e-6)


def test_has_the_slides_layers_in_their_order(slides, ours):
    assert len(ours.layers) == len(slides.layers)
    assert all(isinstance(a, type(b)) for a, b in zip(ours.layers, slides.layers, strict=True))


def test_the_slides_code_runs_over_our_blocks():
    slides = randomized(build_unet((32, 32, 3), 4))
    parts = {part.__name__: part for part in (unet_keras.encoder_block, unet_keras.decoder_block)}
    ours = build_unet((32, 32, 3), 4, conv_block=unet_keras.conv_block, **parts)
    ours.set_weights(slides.get_weights())
    x = normal(1, 32, 32, 3)
    np.testing.assert_allclose(output_of(ours, x), output_of(slides, x), atol=1e-6)


# ---- the timestep, which their text asks for ------------------------------------------------------------------------


def with_the_convolutions_of(plain, model):
    """Copy the plain network's weights into the layers of the same names."""
    for layer in plain.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    return model


def test_starts_from_the_plain_network_whatever_the_timestep():
    plain = randomized(narrow_unet(conditions=()))
    timed = with_the_convolutions_of(plain, narrow_unet())
    x = normal(2, 32, 32, 3)
    y = output_of(timed, {"image": x, "timestep": np.array([1.0, 999.0])})
    np.testing.assert_allclose(y, output_of(plain, x), atol=1e-6)


def test_the_timestep_enters_every_block():
    model = narrow_unet()
    for layer in model.layers:
        if not layer.name.endswith("_emb"):
            randomized(layer)
    doors = [layer for layer in model.layers if layer.name.endswith("_emb")]
    blocks = {layer.name.removesuffix("_conv1") for layer in model.layers if layer.name.endswith("_conv1")}
    assert {door.name.removesuffix("_emb") for door in doors} == blocks and len(blocks) == 9
    inputs = {"image": normal(1, 32, 32, 3), "timestep": np.array([500.0])}
    shut = output_of(model, inputs)
    for door in doors:
        closed = door.get_weights()
        randomized(door)
        assert np.abs(output_of(model, inputs) - shut).max() > 1e-3, door.name
        door.set_weights(closed)


def test_the_timestep_modulates_between_the_two_convolutions():
    """h' = gamma(t) h + beta(t), after the first activation and before the second convolution."""
    x, emb = keras.Input((4, 4, 3)), keras.Input((5,))
    block = randomized(keras.Model([x, emb], unet_keras.conv_block(x, 4, emb, name="block")))
    image, vector = normal(2, 4, 4, 3), normal(2, 5)
    h = np.maximum(output_of(block.get_layer("block_conv1"), image), 0)
    gamma_minus_1, beta = np.split(output_of(block.get_layer("block_emb"), vector / (1 + np.exp(-vector))), 2, -1)
    h = (1 + gamma_minus_1)[:, None, None] * h + beta[:, None, None]
    expected = np.maximum(output_of(block.get_layer("block_conv2"), h), 0)
    np.testing.assert_allclose(output_of(block, [image, vector]), expected, atol=1e-5)
