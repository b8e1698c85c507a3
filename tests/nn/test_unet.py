"""build_unet: sizes, conditions, context, parts of one's own, names, errors, saving."""

from functools import partial

import keras
import numpy as np
import pytest
from helpers import (
    TINY_UNETS,
    normal,
    output_of,
    random_inputs,
    randomized,
    tiny_cross_attention,
    tiny_film_unet,
    tiny_res_block,
    tiny_residual_unet,
    tiny_self_attention,
    tiny_text_unet,
    tiny_transformer,
    tiny_unet,
)
from keras import layers

from unet_keras import (
    Level,
    TokenEncoder,
    bridge,
    build_unet,
    class_label,
    conv_block,
    ddpm_cifar10,
    decoder_block,
    encoder_block,
    masked_sequence,
    patch_unet,
    sandwich,
    sequence,
    timestep,
)
from unet_keras.zoo.ddpm import residual_unet


def sandwich_of_blocks(x, emb, context, *, mask=None, name=None):
    return sandwich(x, emb, block=conv_block, name=name)


def blind_block(x, filters, emb=None, *, name=None):
    return conv_block(x, filters, name=name)


networks = pytest.mark.parametrize("network", TINY_UNETS.values(), ids=TINY_UNETS.keys())


def run(model, size=(8, 8), **changed):
    """The output for random inputs, some of them replaced."""
    return output_of(model, {**random_inputs(model, size=size), **changed})


def difference(one, other):
    """The greatest difference in each example's output."""
    return np.abs(one - other).reshape(len(one), -1).max(-1)


def names_of(model, part=""):
    return [layer.name for layer in model.layers if part in layer.name]


# ---- sizes ----------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("size", [(7, 9), (1, 4)])
def test_any_fixed_size_goes_in_and_comes_out(network, size):
    model = randomized(network(size=size))
    assert model.output_shape == (None, *size, 3)
    y = run(model, size)
    assert y.shape == (2, *size, 3) and np.isfinite(y).all()


@networks
def test_sizes_can_be_left_open(network):
    model = randomized(network(size=(None, None)))
    assert model.output_shape == (None, None, None, 3)
    y = run(model, (30, 45))
    assert y.shape == (2, 30, 45, 3) and np.isfinite(y).all()
    np.testing.assert_allclose(run(model, (7, 9)), run(randomized(network(size=(7, 9))), (7, 9)), atol=1e-5)


def test_four_levels_of_odd_sizes():
    assert run(randomized(tiny_unet((2, 2, 2, 2), size=(11, 5))), (11, 5)).shape == (2, 11, 5, 3)


@pytest.mark.parametrize("size", [(7, 9), (None, None)])
def test_a_stem_and_a_head_may_resample(size):
    """The head of patches gives even sizes; the output is cut to the image's, and stays float32."""
    model = randomized(patch_unet((*size, 3), width=16))
    assert model.output_shape == (None, *size, 3)
    assert run(model, (7, 9)).shape == (2, 7, 9, 3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert patch_unet((*size, 3), width=16).outputs[0].dtype == "float32"


def test_the_stem_may_be_a_keras_layer():
    stem = keras.layers.Conv2D(5, 3, padding="same")
    model = randomized(build_unet((8, 8, 3), (4,), stem=stem))
    assert model.get_layer("down0_block0_conv1").kernel.shape == (3, 3, 5, 4)
    assert run(model).shape == (2, 8, 8, 3)


def test_one_level():
    for skips in ("last", "all"):
        assert run(randomized(tiny_unet((4,), skips=skips))).shape == (2, 8, 8, 3)


def test_as_many_channels_as_asked_for_come_out():
    assert tiny_unet(out_channels=6).output_shape == (None, 8, 8, 6)


def test_the_output_is_activated_if_asked_for():
    plain, activated = randomized(tiny_unet()), randomized(tiny_unet(activation="sigmoid"))
    np.testing.assert_allclose(run(activated), 1 / (1 + np.exp(-run(plain))), atol=1e-6)


# ---- precision ------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("size", [(7, 9), (None, None)])
def test_returns_float32_under_any_policy(network, size):
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert network(size=size).outputs[0].dtype == "float32"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_runs_in_half_precision(policy):
    y = run(randomized(tiny_text_unet(size=(None, None), activation="tanh")), (7, 9))
    keras.config.set_dtype_policy(policy)
    half = randomized(tiny_text_unet(size=(None, None), activation="tanh"))
    assert half.get_layer("down0_block0_conv1").compute_dtype == policy.removeprefix("mixed_")
    tensor = half(random_inputs(half, size=(7, 9)))
    assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(tensor), y, atol=0.1)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("nested", [False, True])
def test_no_policy_rounds_the_timestep(policy, dtype, nested):
    """bfloat16 has no 999 and no 257; they would be 1000 and 256."""
    keras.config.set_dtype_policy(policy)
    model = tiny_unet()
    embedding = keras.Model(model.inputs, model.get_layer("timestep_embedding").output)
    if nested:
        inputs = {x.name: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name) for x in model.inputs}
        embedding = keras.Model(inputs, embedding(inputs))
    rows = output_of(embedding, {"image": normal(4, 8, 8, 3), "timestep": np.array([999, 1000, 257, 256], dtype)})
    assert np.abs(rows[0] - rows[1]).max() > 0.5 and np.abs(rows[2] - rows[3]).max() > 0.5


# ---- conditions -----------------------------------------------------------------------------------------------------


@networks
def test_every_input_changes_the_output(network):
    model = randomized(network())
    y, inputs = run(model), random_inputs(model, seed=1)
    inputs |= {
        "timestep": np.array([2.0, 998.5], "float32"),
        "label": np.array([1, 2]),
        "context_mask": np.ones((2, 5), bool),
    }
    for x in model.inputs:
        assert (difference(run(model, **{x.name: inputs[x.name]}), y) > 1e-4).all(), x.name


@networks
def test_the_timestep_enters_every_block(network):
    model = randomized(network())
    blocks = [name.removesuffix("_conv1") for name in names_of(model) if name.endswith("_conv1")]
    doors = [model.get_layer(f"{block}_emb") for block in blocks]
    y = run(model)
    for door in doors:
        kernel, bias = door.get_weights()
        door.set_weights([-kernel, bias])
        assert (difference(run(model), y) > 1e-4).all(), door.name
        door.set_weights([kernel, bias])


def test_a_fraction_of_a_timestep_counts():
    model = randomized(tiny_unet())
    y = run(model, timestep=np.array([500, 500], "float32"))
    assert (difference(run(model, timestep=np.array([500.5, 499.5], "float32")), y) > 1e-4).all()


def test_without_conditions_it_takes_the_image_alone():
    model = tiny_unet(conditions=())
    assert model(normal(1, 8, 8, 3)).shape == (1, 8, 8, 3) and names_of(model, "emb") == []


def test_conditions_are_added_up():
    model = randomized(tiny_unet(conditions=(timestep(), class_label(3), scale)))
    assert sorted(x.name for x in model.inputs) == ["image", "label", "scale", "timestep"]
    inputs = random_inputs(model)
    emb = keras.Model(model.inputs, model.get_layer("down0_block0_emb_act").input)
    parts = [model.get_layer(name).output for name in ("timestep_dense2", "label_embedding", "scale_dense")]
    parts = [output_of(keras.Model(model.inputs, part), inputs) for part in parts]
    np.testing.assert_allclose(output_of(emb, inputs), sum(parts), atol=1e-6)


def scale(width):
    """A condition of one's own."""
    x = keras.Input((1,), name="scale")
    return {"scale": x}, layers.Dense(width, name="scale_dense")(x)


def test_the_embedding_is_four_times_as_wide_as_the_first_level_unless_told():
    assert tiny_unet().get_layer("timestep_dense2").units == 16
    assert tiny_unet(emb_width=12).get_layer("timestep_dense2").units == 12
    assert tiny_unet(conditions=(timestep(10),)).get_layer("timestep_embedding").width == 10


# ---- context --------------------------------------------------------------------------------------------------------


def test_a_context_is_read_at_the_bridge():
    model = randomized(tiny_unet(context=(5, 6)))
    assert sorted(x.name for x in model.inputs) == ["context", "image", "timestep"]
    assert [layer.name for layer in model.layers if isinstance(layer, type(attention_of(model)))] == [
        "bridge_attend0_attention"
    ]


def attention_of(model):
    return model.get_layer("bridge_attend0_attention")


def test_levels_read_the_context_on_both_ways():
    levels = [4, Level(8, 2, tiny_cross_attention)]
    model = tiny_unet(levels, context=(5, 6), bridge=bridge)
    reading = [name.removesuffix("_attention") for name in names_of(model, "_attention")]
    assert sorted(reading) == ["down1_attend0", "down1_attend1", "up1_attend0", "up1_attend1"]


def test_masked_tokens_have_no_influence():
    model = randomized(tiny_text_unet())
    inputs = random_inputs(model)
    noise = np.where(inputs["context_mask"][..., None], inputs["context"], 50)
    np.testing.assert_array_equal(run(model, context=noise), run(model))
    heard = np.where(inputs["context_mask"][..., None], inputs["context"] + 1, inputs["context"])
    assert (difference(run(model, context=heard), run(model)) > 1e-4).all()


def test_a_context_may_be_made_from_tokens():
    def words():
        tokens = keras.Input((5,), dtype="int32", name="tokens")
        return {"tokens": tokens}, layers.Embedding(10, 6, name="words")(tokens), keras.ops.not_equal(tokens, 0)

    model = randomized(tiny_unet(context=words, bridge=partial(bridge, attend=tiny_cross_attention)))
    y = run(model, tokens=np.array([[1, 2, 0, 0, 0]] * 2))
    assert (difference(run(model, tokens=np.array([[1, 3, 0, 0, 0], [1, 0, 0, 0, 0]])), y) > 1e-4).all()
    model.get_layer("words").set_weights([model.get_layer("words").get_weights()[0] * (np.arange(10) > 0)[:, None]])
    np.testing.assert_allclose(run(model, tokens=np.array([[1, 2, 0, 0, 0]] * 2)), y, atol=1e-6)


def test_self_attention_goes_with_a_masked_context():
    levels = [Level(4, 1, tiny_self_attention), Level(8, 1, tiny_transformer)]
    model = randomized(tiny_unet(levels, context=masked_sequence(5, 6)))
    assert run(model).shape == (2, 8, 8, 3)


def test_a_mask_is_never_dropped():
    def my_attend(x, context):
        return x

    assert tiny_unet([Level(4, 1, my_attend)], context=(5, 6)).output_shape == (None, 8, 8, 3)
    with pytest.raises(TypeError, match="mask"):
        tiny_unet([Level(4, 1, my_attend)], context=masked_sequence(5, 6))
    with pytest.raises(TypeError, match="mask"):
        tiny_unet(bridge=lambda x, emb, context: x, context=masked_sequence(5, 6))


# ---- levels, skips, parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("skips", "blocks"), [("last", (2, 2, 1)), ("all", (2, 3, 1))])
def test_depth_is_the_number_of_blocks_of_a_level(skips, blocks):
    model = tiny_unet([Level(4, 2), Level(8, 2)], skips=skips)
    assert tuple(len(names_of(model, f"{where}_block")) // 6 for where in ("down1", "up1", "bridge")) == blocks


def test_skips_of_the_last_block_alone():
    x = keras.Input((8, 8, 3))
    skip, y = encoder_block(x, 4, depth=3, skips="last", name="down")
    assert skip.shape == (None, 8, 8, 4) and y.shape == (None, 4, 4, 4)
    model = keras.Model(x, decoder_block(y, skip, 4, depth=2, name="up"))
    assert names_of(model, "skip") == ["up_skip0"] and len(names_of(model, "up_block")) == 8


def test_skips_of_every_block_and_the_input_in_reverse():
    x = keras.Input((8, 8, 3))
    trail, y = encoder_block(x, 4, depth=2, skips="all", name="down")
    assert trail[0] is x and [t.shape[-1] for t in trail] == [3, 4, 4]
    model = keras.Model(x, decoder_block(y, trail, 4, name="up"))
    assert [model.get_layer(name).output.shape[-1] for name in sorted(names_of(model, "skip"))] == [8, 8, 7]
    assert len(trail) == 3


def test_every_skip_changes_the_output():
    x = keras.Input((8, 8, 3))
    trail, y = encoder_block(x, 4, depth=2, skips="all", name="down")
    up = randomized(keras.Model([y, *trail], decoder_block(y, trail, 4, name="up")))
    arrays = [normal(1, *t.shape[1:], seed=i) for i, t in enumerate([y, *trail])]
    for i in range(4):
        changed = [array + (i == j) for j, array in enumerate(arrays)]
        assert difference(output_of(up, changed), output_of(up, arrays)) > 1e-3


def test_without_resampling_the_size_stays():
    x = keras.Input((8, 8, 3))
    skip, y = encoder_block(x, 4, down=None)
    assert y.shape == skip.shape == (None, 8, 8, 4)
    assert decoder_block(y, skip, 4, up=None).shape == (None, 8, 8, 4)


@pytest.mark.parametrize("skips", ["last", "all"])
def test_parts_of_ones_own_need_no_name_and_no_like(skips):
    def my_block(x, filters, emb):
        return layers.Conv2D(filters, 3, padding="same")(x) + layers.Dense(filters)(emb)[:, None, None]

    def my_down(x, filters, emb):
        return layers.AveragePooling2D(2, padding="same")(x)

    def my_up(x, filters, emb):
        return layers.UpSampling2D(2)(x)

    parts = {"block": my_block, "down": my_down, "up": my_up, "bridge": lambda x, emb, context: x}
    ends = {"stem": lambda x: x * 2, "head": lambda x, channels: layers.Conv2D(channels, 1)(x)}
    model = randomized(tiny_unet((4, 4, 4), size=(7, 9), skips=skips, **parts, **ends))
    assert run(model, (7, 9)).shape == (2, 7, 9, 3)
    assert (difference(run(model, (7, 9), timestep=np.zeros(2, "float32")), run(model, (7, 9))) > 1e-4).all()


def test_residual_unet_takes_plain_numbers_of_filters():
    model = residual_unet((8, 8, 3), (4, 8), block=tiny_res_block, attend=tiny_self_attention, head=my_head)
    assert model.get_layer("stem").filters == 4


def my_head(x, out_channels):
    return layers.Conv2D(out_channels, 1)(x)


# ---- names ----------------------------------------------------------------------------------------------------------


@networks
def test_layers_are_named_by_their_roles(network):
    model = network(size=(None, None), conditions=(timestep(), class_label(3)))
    names = names_of(model)
    assert len(set(names)) == len(names) and not [name for name in names if "." in name]
    roles = ("down", "bridge", "up", "stem", "head", "timestep", "label", "emb", "image", "context")
    assert [name for name in names if not name.startswith(roles)] == []


@networks
def test_names_do_not_depend_on_what_was_built_before(network):
    assert names_of(network()) == names_of(network())
    assert [w.path for w in network().weights] == [w.path for w in network().weights]


def test_summary_reads_as_a_map(capsys):
    tiny_unet().summary()
    printed = capsys.readouterr().out
    assert all(role in printed for role in ("down0_block0_conv1", "bridge_block0", "up0_skip0", "timestep"))


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3, 1), (8, 8, None), (0, 8, 3), (8.0, 8, 3), ("8", 8, 3)])
def test_refuses_other_input_shapes(shape):
    with pytest.raises(ValueError, match=r"input_shape must be \(height, width, channels\)"):
        build_unet(shape, (4,))


@pytest.mark.parametrize("level", [0, -4, "64", Level(4, 0), (4, 1), None, 4.5])
def test_refuses_malformed_levels(level):
    with pytest.raises(ValueError, match="levels must hold positive filter counts or Levels"):
        tiny_unet([4, level])


@pytest.mark.parametrize("context", ["clip", (77,), TokenEncoder(["red"])])
def test_refuses_what_is_no_context(context):
    with pytest.raises(ValueError, match=r"context must be \(tokens, width\) or a function, got .*: give"):
        build_unet((8, 8, 3), context=context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": timestep()}, "conditions must be a tuple of functions"),
        ({"conditions": (timestep,)}, r"not what is wanted, condition\(width\) -> \(inputs, vector\)"),
        ({"context": masked_sequence}, "context must be a function that takes nothing"),
        ({"context": lambda: 3}, r"not what is wanted, context\(\) -> \(inputs, sequence, mask\)"),
        ({"maps": ("mask",)}, "maps must be {name: channels}"),
        ({"maps": {"mask": 0}}, "mask must be a whole number of 1 or more, got 0"),
        ({"out_channels": 0}, "out_channels must be a whole number of 1 or more, got 0"),
        ({"emb_width": 0}, "emb_width must be a whole number of 1 or more, got 0"),
        ({"levels": [Level(4, 1.5)]}, "levels must hold positive filter counts"),
        ({"context": (3, 4), "bridge": sandwich_of_blocks}, r"Nothing reads the inputs \['context'\]"),
        ({"block": blind_block}, r"Nothing reads the inputs \['timestep'\]"),
    ],
)
def test_refuses_what_would_fail_later_or_do_nothing(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(**options)


def test_refuses_an_input_shape_of_one_number():
    with pytest.raises(ValueError, match="input_shape must be a tuple of three, got 32"):
        build_unet(32)
    with pytest.raises(ValueError, match="dim must be a whole number of 1 or more, got 0"):
        timestep(0)


def test_refuses_no_levels():
    with pytest.raises(ValueError, match="levels is empty"):
        tiny_unet([])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"conditions": (class_label(3), class_label(4))}, "label"),
        ({"conditions": (lambda width: ({"context": keras.Input((1,))}, None),), "context": (5, 6)}, "context"),
        ({"conditions": (lambda width: ({"image": keras.Input((1,))}, None),)}, "image"),
    ],
)
def test_refuses_two_inputs_of_one_name(options, name):
    with pytest.raises(ValueError, match=rf"declare the input \['{name}'\] twice"):
        tiny_unet(**options)


def test_refuses_a_reader_without_context():
    with pytest.raises(ValueError, match="cross_attention needs a context, got None: give build_unet"):
        tiny_unet([Level(4, 1, tiny_cross_attention)])


def test_refuses_heads_that_do_not_divide_the_bridge():
    with pytest.raises(ValueError, match="heads=8 does not divide the 12 channels"):
        tiny_unet((4, 6), context=(5, 6))


def test_refuses_unknown_skips():
    with pytest.raises(ValueError, match='skips must be "last" or "all", got \'first\''):
        tiny_unet(skips="first")


def test_refuses_more_skips_than_blocks():
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="depth=1 blocks cannot take in 2 skips"):
        decoder_block(x, [x, x], 4, depth=1, up=None)


def test_takes_numpys_count_of_classes():
    counted = class_label(np.array([0, 2]).max() + 1)  # which Keras's own layer would refuse
    assert build_unet((8, 8, 3), (4,), conditions=(counted,)).get_layer("label_embedding").input_dim == 3


def test_refuses_no_classes():
    with pytest.raises(ValueError, match="classes must be a whole number of 1 or more, got 0"):
        class_label(0)


# ---- the bridge -----------------------------------------------------------------------------------------------------


def test_bridge_doubles_the_filters_unless_told():
    x = keras.Input((4, 4, 3))
    assert bridge(x).shape[-1] == 6 and bridge(x, filters=5).shape[-1] == 5
    assert sandwich(x, block=conv_block).shape[-1] == 3


def test_sandwich_is_block_attention_block():
    x, context = keras.Input((4, 4, 8)), sequence(5, 6)()[1]
    model = keras.Model([x, context], sandwich(x, None, context, attend=tiny_cross_attention))
    steps = [name.split("_")[1] for name in names_of(model, "bridge_") if "conv1" in name or "attention" in name]
    assert steps == ["block0", "attend0", "block1"]


# ---- saving ---------------------------------------------------------------------------------------------------------


@networks
def test_comes_back_from_a_file(network, tmp_path):
    model = randomized(network(size=(None, None)))
    model.save(tmp_path / "unet.keras")
    copy = keras.models.load_model(tmp_path / "unet.keras")
    assert names_of(copy) == names_of(model)
    np.testing.assert_array_equal(run(copy, (7, 9)), run(model, (7, 9)))


def test_a_copy_has_weights_of_its_own():
    model = randomized(tiny_film_unet())
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(run(copy), run(model))
    assert not {id(w) for w in copy.weights} & {id(w) for w in model.weights}


def test_can_be_trained():
    model = tiny_residual_unet()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    before = model.get_weights()
    model.train_on_batch(random_inputs(model), normal(2, 8, 8, 3))
    still = [w.path for w, old in zip(model.weights, before, strict=True) if (w.numpy() == old).all()]
    assert still == []


# ---- the zoo --------------------------------------------------------------------------------------------------------


def test_ddpm_cifar10_has_the_parameters_of_the_paper():
    """Built without making its 36 million numbers."""
    with keras.StatelessScope():
        model = ddpm_cifar10()
    assert sum(int(np.prod(w.shape)) for w in model.weights) == 35_746_307
    assert model.output_shape == (None, 32, 32, 3)
