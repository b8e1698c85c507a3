"""Surgery on finished networks: what trains, channels in and out, sizes, skips as outputs."""

import keras
import numpy as np
import pytest
from helpers import (
    TINY_UNETS,
    normal,
    output_of,
    random_inputs,
    randomized,
    tiny_residual_unet,
    tiny_text_unet,
    tiny_unet,
)

from unet_keras import DiffusionModel, enable_lora, freeze, patch_unet, skip_taps, with_channels, with_dtype, with_size


def arrays(network):
    return {v.path: keras.ops.convert_to_numpy(v).copy() for v in network.weights}


# ---- freezing -------------------------------------------------------------------------------------------------------


def test_frozen_layers_keep_their_weights_and_the_others_learn():
    network = randomized(tiny_residual_unet())
    model = DiffusionModel(network, seed=0)
    names = freeze(model.network, r"down.*|bridge.*|timestep.*")
    assert "down0_block0_conv1" in names and "up0_block0_conv1" not in names
    before = arrays(network)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(np.zeros((2, 8, 8, 3), "uint8"), verbose=0)
    after = arrays(network)
    still = {path for path in before if np.array_equal(before[path], after[path])}
    frozen = {path for path in before if path.startswith(("down", "bridge", "timestep"))}
    # A key's bias moves all of a query's scores alike: its gradient is rounding.
    assert frozen <= still and all(path.endswith("key/bias") for path in still - frozen)


def test_freezing_nothing_or_everything_is_refused():
    with pytest.raises(ValueError, match="pattern='dwon.' matches no layer with weights"):
        freeze(tiny_unet(), "dwon.")
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(tiny_unet(), ".*")


# ---- channels -------------------------------------------------------------------------------------------------------


def test_more_channels_in_change_nothing_at_first():
    network = randomized(tiny_residual_unet())
    inputs = random_inputs(network)
    wider = with_channels(network, image=5)
    assert wider.input["image"].shape == (None, 8, 8, 5)
    more = np.concatenate([inputs["image"], normal(2, 8, 8, 2, seed=9)], axis=-1)
    np.testing.assert_allclose(output_of(wider, {**inputs, "image": more}), output_of(network, inputs), atol=1e-6)
    np.testing.assert_array_equal(arrays(wider)["stem/kernel"][:, :, :3], arrays(network)["stem/kernel"])
    fewer = with_channels(network, image=2)
    without = inputs["image"] * [1, 1, 0]
    y = output_of(fewer, {**inputs, "image": inputs["image"][..., :2]})
    np.testing.assert_allclose(y, output_of(network, {**inputs, "image": without.astype("float32")}), atol=1e-5)


def test_maps_beside_the_image_change_nothing_at_first_and_then_count():
    network = randomized(tiny_text_unet())
    inputs = random_inputs(network)
    wider = with_channels(network, maps={"mask": 1, "masked": 3})
    assert set(wider.input) == {*network.input, "mask", "masked"}
    more = {"mask": normal(2, 8, 8, 1), "masked": normal(2, 8, 8, 3)}
    np.testing.assert_allclose(output_of(wider, inputs | more), output_of(network, inputs), atol=1e-6)
    kernel = wider.get_layer("stem").kernel
    kernel.assign(kernel + 0.1)
    assert (
        np.abs(output_of(wider, inputs | more) - output_of(wider, inputs | more | {"mask": 2 * more["mask"]})).max() > 0
    )


def test_the_image_widens_before_the_maps_it_has():
    network = randomized(tiny_residual_unet(maps={"mask": 1}))
    inputs = random_inputs(network) | {"mask": normal(2, 8, 8, 1)}
    wider = with_channels(network, image=4, maps={"depth": 2})
    more = {"image": np.concatenate([inputs["image"], normal(2, 8, 8, 1)], axis=-1), "depth": normal(2, 8, 8, 2)}
    np.testing.assert_allclose(output_of(wider, inputs | more), output_of(network, inputs), atol=1e-6)


def test_a_network_of_the_image_alone_gets_a_name_for_it():
    network = randomized(tiny_residual_unet(conditions=()))
    image = normal(2, 8, 8, 3)
    wider = with_channels(network, maps={"mask": 1})
    y = output_of(wider, {"image": image, "mask": normal(2, 8, 8, 1)})
    np.testing.assert_allclose(y, output_of(network, image), atol=1e-6)


def test_more_channels_out_begin_with_those_before():
    network = randomized(tiny_residual_unet())
    wider = with_channels(network, out=6)
    inputs = random_inputs(network)
    y = output_of(wider, inputs)
    assert y.shape == (2, 8, 8, 6) and np.abs(y[..., 3:]).max() > 0
    np.testing.assert_allclose(y[..., :3], output_of(network, inputs), atol=1e-6)


def test_what_was_frozen_stays_so():
    network = tiny_residual_unet()
    freeze(network, "down.*")
    assert not with_channels(network, image=4).get_layer("down0_block0_conv1").trainable


def test_what_trains_of_a_network_with_lora_stays_so():
    network = tiny_residual_unet()
    enable_lora(network, rank=2, layers="/query$")
    expected = {v.path for v in network.trainable_variables}
    assert expected and all("query" in path and "lora" in path for path in expected)
    for changed in (with_channels(network, image=4), with_size(network, None), with_dtype(network, "mixed_bfloat16")):
        assert {v.path for v in changed.trainable_variables} == expected


def test_maps_may_be_added_twice():
    network = randomized(tiny_residual_unet())
    wider = with_channels(with_channels(network, maps={"mask": 1}), maps={"depth": 2})
    inputs = random_inputs(wider)
    assert (inputs["mask"].shape[-1], inputs["depth"].shape[-1]) == (1, 2)
    plain = {name: inputs[name] for name in ("image", "timestep")}
    np.testing.assert_allclose(output_of(wider, inputs), output_of(network, plain), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (tiny_residual_unet, {"image": 0}, "image: 0 is no number of channels"),
        (tiny_residual_unet, {"out": 2.5}, "out: 2.5 is no number of channels"),
        (tiny_residual_unet, {"maps": {"mask": 0}}, "mask: 0 is no number of channels"),
        (lambda: DiffusionModel(tiny_residual_unet()), {"out": 6}, "got a DiffusionModel: give model.network"),
        (tiny_residual_unet, {}, "Nothing to change: give image, out or maps"),
        (tiny_residual_unet, {"maps": {"timestep": 1}}, "has the inputs .'image', 'timestep'. already"),
        (tiny_unet, {"image": 4}, "has no convolution named stem: build it with stem= and head="),
    ],
)
def test_changes_that_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        with_channels(network(), **options)


def test_what_is_no_network_or_pattern_is_refused():
    model = DiffusionModel(tiny_residual_unet())
    with pytest.raises(ValueError, match="give model.network"):
        with_size(model, 16)
    with pytest.raises(ValueError, match="give model.network"):
        with_dtype(model, "mixed_bfloat16")
    with pytest.raises(ValueError, match="pattern='.' is no regular expression"):
        freeze(model.network, "(")
    with pytest.raises(ValueError, match="layers='.' is no regular expression"):
        enable_lora(model.network, layers="(")


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", TINY_UNETS.values(), ids=TINY_UNETS)
def test_another_size_with_the_same_weights(network):
    fixed, opened = randomized(network()), network(size=(None, None))
    changed = with_size(fixed, (16, 12))
    assert changed.input["image"].shape == (None, 16, 12, 3)
    opened.set_weights(fixed.get_weights())
    inputs = random_inputs(fixed, size=(16, 12))
    np.testing.assert_allclose(output_of(changed, inputs), output_of(opened, inputs), atol=1e-5)
    back = with_size(changed, 8)
    np.testing.assert_allclose(output_of(back, random_inputs(fixed)), output_of(fixed, random_inputs(fixed)), atol=1e-6)


def test_a_size_that_needs_cutting_is_refused_where_nothing_cuts():
    with pytest.raises(ValueError, match=r"does not work at the size \(7, 8\): build it anew"):
        with_size(tiny_residual_unet(), (7, 8))


# ---- precision ------------------------------------------------------------------------------------------------------


@pytest.fixture
def under():
    """Build under another policy."""
    before = keras.config.dtype_policy()

    def build(policy, make, **options):
        keras.config.set_dtype_policy(policy)
        try:
            return make(**options)
        finally:
            keras.config.set_dtype_policy(before)

    return build


@pytest.mark.parametrize(
    "options",
    [
        {"make": tiny_unet, "size": (None, None)},
        {"make": tiny_unet, "activation": "tanh"},
        {"make": tiny_text_unet},
        {"make": patch_unet, "input_shape": (8, 8, 3), "width": 16},
    ],
    ids=["cropped", "activated", "text", "patches"],
)
def test_a_network_of_another_dtype_is_the_one_built_with_it(under, options):
    network = randomized(under("float32", **options))
    inputs = random_inputs(network)
    changed, built = with_dtype(network, "mixed_bfloat16"), under("mixed_bfloat16", **options)
    policies = [
        {v.name: v.compute_dtype for v in n.layers if not isinstance(v, keras.layers.InputLayer)}
        for n in (changed, built)
    ]
    assert policies[0] == policies[1] and changed.dtype_policy == built.dtype_policy
    assert set(policies[0].values()) == {"float32", "bfloat16"}
    built.set_weights(network.get_weights())
    found, expected = output_of(changed, inputs), output_of(network, inputs)
    np.testing.assert_array_equal(found, output_of(built, inputs))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert all(v.dtype == "float32" for v in changed.weights)
    np.testing.assert_array_equal(output_of(with_dtype(changed, "float32"), inputs), expected)


def test_bare_operations_follow_what_they_are_given():
    image = keras.Input((8, 8, 3), name="image")
    y = 2.0 * keras.ops.silu(keras.layers.Conv2D(4, 3)(image))
    changed = with_dtype(keras.Model(image, keras.layers.Conv2D(3, 1)(y)), "mixed_bfloat16")
    assert [operation.output.dtype for operation in changed.operations[-3:]] == ["bfloat16", "bfloat16", "float32"]


def test_what_names_no_policy_is_refused():
    for dtype in ("mixed", 3):
        with pytest.raises(ValueError, match=f"dtype={dtype!r} is no Keras dtype policy"):
            with_dtype(tiny_unet(), dtype)


# ---- skips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [tiny_unet, tiny_text_unet])
def test_skips_are_what_goes_across(network):
    network = randomized(network())
    inputs = random_inputs(network)
    found = {name: keras.ops.convert_to_numpy(value) for name, value in skip_taps(network)(inputs).items()}
    np.testing.assert_array_equal(found.pop("output"), keras.ops.convert_to_numpy(network(inputs)))
    concatenations = [layer for layer in network.layers if "_skip" in layer.name]
    assert len(found) == len(concatenations) > 1
    for layer in concatenations:
        name = layer.input[1]._keras_history.operation.name
        direct = keras.Model(network.inputs, network.get_layer(name).output)
        # Not by output_of: what JAX compiles rounds otherwise than one operation after the other, by some 1e-6.
        np.testing.assert_array_equal(found[name], keras.ops.convert_to_numpy(direct(inputs)))


def test_a_network_without_skips_is_refused():
    x = keras.Input((8,))
    with pytest.raises(ValueError, match="has no skips"):
        skip_taps(keras.Model(x, keras.layers.Dense(2)(x)))
