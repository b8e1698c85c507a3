"""LoRA of layers and networks: what it computes, what it trains, and that copies and files keep it."""

import keras
import numpy as np
import pytest
from helpers import normal, numpy_of, output_of, randomized, tiny_res_block, tiny_self_attention, tiny_transformer

from unet_keras import (
    DiffusionModel,
    Level,
    build_unet,
    class_label,
    enable_lora,
    from_preset,
    merge_lora,
    save_preset,
    timestep,
    velocity,
)
from unet_keras.nn.blocks import conv
from unet_keras.nn.lora import adaptable, adapted

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype="uint8")
LABELS = np.array([0, 1, 2, 1])
EVERY = ""


def stem(x, *, name):
    return conv(x, 4, name=name)


def tiny(seed=0):
    levels = [4, Level(4, attend=tiny_self_attention)]
    conditions = (timestep(8), class_label(3))
    network = build_unet((8, 8, 3), levels, stem=stem, block=tiny_res_block, conditions=conditions, skips="all")
    return randomized(network, seed)


def inputs(seed=0):
    return {"image": normal(2, 8, 8, 3, seed=seed), "timestep": np.array([1.0, 900.0], "float32"), "label": LABELS[:2]}


def trainer(network=None, **options):
    model = DiffusionModel(tiny() if network is None else network, seed=3, **options)
    return model


def fitted(model, epochs=2):
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(IMAGES, LABELS, batch_size=4, epochs=epochs, verbose=0)
    return model


def values(network):
    return {v.path: numpy_of(v).copy() for v in network.weights}


def with_factors(model, pattern=EVERY, seed=0, **options):
    """A network whose A and B are random."""
    enable_lora(model, layers=pattern, **options)
    generator = np.random.default_rng(seed)
    networks = [model.network, model.ema_network] if isinstance(model, DiffusionModel) else [model]
    for layer in adapted(networks[0]).values():
        for v in layer.factors:
            v.assign(0.3 * generator.normal(size=v.shape))
    for other in networks[1:]:
        other.set_weights(networks[0].get_weights())
    return model


# ---- what is computed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 5.0])
@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 4, 3)], ids=["dense", "conv"])
def test_the_formula(shape, alpha):
    kernel, a, b = normal(*shape), normal(*shape[:-1], 2, seed=1), normal(2, 3, seed=2)
    x = normal(2, 5, 5, 4, seed=3)
    made = [keras.layers.Dense(3) if len(shape) == 2 else keras.layers.Conv2D(3, 3, name="c") for _ in range(2)]
    models = [keras.Sequential([keras.Input((5, 5, 4)), layer]) for layer in made]
    enable_lora(models[0], 2, alpha=alpha, layers=EVERY)
    made[0]._kernel.assign(kernel)
    for v, value in zip(made[0].factors, (a, b), strict=True):
        v.assign(value)
    made[1].kernel.assign(kernel + (2.0 if alpha is None else alpha) / 2 * (a @ b))
    np.testing.assert_allclose(output_of(models[0], x), output_of(models[1], x), atol=1e-5)


def test_nothing_changes_at_first_and_merging_changes_nothing():
    network = tiny()
    before, plain = output_of(network, inputs()), values(network)
    names = enable_lora(network, 2, layers=EVERY)
    assert len(names) == len(adapted(network)) > 20 and adaptable(network) == {}
    assert np.array_equal(output_of(network, inputs()), before)
    merge_lora(network)
    assert values(network).keys() == plain.keys() and len(network.trainable_weights) == len(network.weights)
    assert all(np.array_equal(value, plain[path]) for path, value in values(network).items())
    with_factors(network, rank=2, alpha=3.0)
    moved = output_of(network, inputs())
    assert np.abs(moved - before).max() > 0.1
    assert len(merge_lora(network)) == len(names)
    np.testing.assert_allclose(output_of(network, inputs()), moved, atol=1e-5 * np.abs(moved).max())
    assert [type(layer).__name__ for layer in network.layers if "Lora" in type(layer).__name__] == []
    assert values(network).keys() == plain.keys()


def test_counts_and_starting_values():
    network = tiny()
    names = enable_lora(network, 3)
    assert names == [path for path in names if "_attention/" in path] and len(names) == 4 * 3
    assert sum(v.shape[0] * v.shape[1] for v in network.trainable_weights) == len(names) * (4 * 3 + 3 * 4)
    starts = [numpy_of(layer.factors[0]) for layer in adapted(network).values()]
    assert not any(numpy_of(layer.factors[1]).any() for layer in adapted(network).values())
    assert not any(np.array_equal(a, b) for i, a in enumerate(starts) for b in starts[:i])
    assert all(0.25 < np.abs(a).max() <= 0.5 for a in starts)  # 1 / sqrt(4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_merging_in_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    network = with_factors(tiny(), rank=2)
    variables = [layer._kernel.dtype for layer in adapted(network).values()]
    expected = {
        path: numpy_of(layer._kernel) + numpy_of(layer.factors[0]) @ numpy_of(layer.factors[1])
        for path, layer in adapted(network).items()
    }
    merge_lora(network)
    rounding = 1e-6 if policy.startswith("mixed") else 2**-8
    for path, layer in adaptable(network).items():
        assert layer.kernel.dtype in variables
        np.testing.assert_allclose(numpy_of(layer._kernel), expected[path], rtol=rounding, atol=rounding)


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "pattern"),
    [
        pytest.param("before", None, marks=pytest.mark.once),
        ("before", "conv1$|/value$"),
        ("after", None),
        pytest.param("after", "conv1$|/value$", marks=pytest.mark.once),
    ],
)
def test_only_the_factors_train(when, pattern):
    model = trainer(ema=0.5)
    if when == "after":
        fitted(model)
    start = values(model.averaged)
    before = model.generate({"label": LABELS}, steps=2, seed=0) if when == "before" else None
    chosen = {} if pattern is None else {"layers": pattern}
    names = enable_lora(model, 2, **chosen)
    factors = {f"{name}/lora_kernel_{x}" for name in names for x in "ab"}
    assert {v.path for v in model.trainable_variables} == factors and len(model.trainable_variables) == len(factors)
    assert values(model.network).keys() == start.keys() | factors
    if when == "before":
        assert np.array_equal(model.generate({"label": LABELS}, steps=2, seed=0), before)
    begun, beside = values(model.network), values(model.ema_network)
    assert begun.keys() == beside.keys() and all(np.array_equal(begun[path], beside[path]) for path in begun)
    if when == "before":
        model.compile(keras.optimizers.Adam(1e-2))
    model.fit(IMAGES, LABELS, batch_size=4, epochs=3, verbose=0)
    after, averaged = values(model.network), values(model.ema_network)
    still = {path for path in after if np.array_equal(after[path], begun[path])}
    assert still == start.keys()
    assert all(np.array_equal(after[path], start[path]) for path in start)
    assert {path for path in averaged if np.array_equal(averaged[path], begun[path])} == start.keys()
    assert not any(np.array_equal(after[path], averaged[path]) for path in factors)


def test_pictures_are_those_of_the_averaged_factors():
    model = trainer(ema=0.5)
    start = model.generate({"label": LABELS}, steps=3, seed=0)
    enable_lora(model, 2)
    assert np.array_equal(model.generate({"label": LABELS}, steps=3, seed=0), start)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(IMAGES, LABELS, batch_size=4, epochs=5, verbose=0)
    drawn = model.generate({"label": LABELS}, steps=3, seed=0)
    assert np.mean(drawn != start) > 0.1
    by_hand = tiny()
    average = values(model.ema_network)
    for v in by_hand.weights:
        layer = v.path.removesuffix("/kernel")
        more = 0
        if f"{layer}/lora_kernel_a" in average:
            more = average[f"{layer}/lora_kernel_a"] @ average[f"{layer}/lora_kernel_b"]
        v.assign(average[v.path] + more)
    same = DiffusionModel(by_hand, ema=None).generate({"label": LABELS}, steps=3, seed=0)
    assert np.abs(drawn.astype(int) - same).max() <= 1
    merge_lora(model)
    assert np.abs(drawn.astype(int) - model.generate({"label": LABELS}, steps=3, seed=0)).max() <= 1
    assert len(model.trainable_variables) == len(model.network.weights)
    model.fit(IMAGES, LABELS, batch_size=4, epochs=1, verbose=0)


# ---- copies and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["/(query|value)$|emb$", pytest.param("conv", marks=pytest.mark.once)])
def test_a_saved_model_keeps_its_factors_and_goes_on_training(tmp_path, pattern):
    model = trainer(ema=0.5)
    enable_lora(model, 2, alpha=3.0, layers=pattern)
    fitted(model)
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    for mine, theirs in ((model.network, back.network), (model.ema_network, back.ema_network)):
        old, new = values(mine), values(theirs)
        assert old.keys() == new.keys() and all(np.array_equal(old[path], new[path]) for path in old)
    assert [v.path for v in back.trainable_variables] == [v.path for v in model.trainable_variables]
    assert {layer.lora_alpha for layer in adapted(back.network).values()} == {3.0}
    assert np.array_equal(output_of(back.averaged, inputs()), output_of(model.averaged, inputs()))
    for m in (model, back):
        m.fit(IMAGES, LABELS, batch_size=4, epochs=2, verbose=0, shuffle=False)
    old, new = values(model.network), values(back.network)
    assert all(np.allclose(old[path], new[path], atol=1e-6) for path in old)


def test_weights_files_presets_and_clones(tmp_path):
    model = with_factors(trainer(ema=0.5), "/value$|conv2$", rank=2, alpha=3.0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = trainer(tiny(1), ema=0.5)
    enable_lora(other, 2, alpha=3.0, layers="/value$|conv2$")
    other.load_weights(tmp_path / "m.weights.h5")
    clone = keras.models.clone_model(model.network)
    assert len(clone.trainable_weights) == len(model.network.trainable_weights)
    clone.set_weights(model.network.get_weights())
    save_preset(model, tmp_path / "preset", dtype="float32")
    # The average needs no gradients, and torch takes other kernels without: like is compared with like.
    again = from_preset(tmp_path / "preset").network
    for network, old in ((other.averaged, model.averaged), (clone, model.network), (again, model.network)):
        assert np.array_equal(output_of(network, inputs()), output_of(old, inputs()))
    assert np.allclose(output_of(model.network, inputs()), output_of(model.averaged, inputs()), rtol=0, atol=1e-5)


def test_the_network_alone_cannot_be_adapted_where_an_average_is_kept():
    model = trainer()
    enable_lora(model.network, layers="/query$")
    with pytest.raises(ValueError, match="other weights than the average of them: give enable_lora"):
        model.compile("sgd")


def test_sampling_goes_on_when_a_network_is_adapted_half_way():
    model, ways = trainer(ema=None), []
    for change in (lambda: None, lambda: enable_lora(model)):
        frames = model.denoising({"label": [0, 1]}, steps=3, seed=0)
        next(frames)
        change()
        ways.append([numpy_of(frame.x) for frame in frames])
    np.testing.assert_allclose(*map(np.stack, ways), atol=1e-5)


def test_pictures_follow_the_prediction_that_a_model_has_now():
    model, options = trainer(ema=None), {"steps": 2, "seed": 0}
    before = model.generate({"label": [0]}, **options)
    model.prediction = velocity
    after = model.generate({"label": [0]}, **options)
    model._steps.clear()
    np.testing.assert_array_equal(after, model.generate({"label": [0]}, **options))
    assert (before != after).any()


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of 1 or more, got 0"),
        ({"rank": 1.5}, "rank must be a whole number of 1 or more, got 1.5"),
        ({"alpha": 0}, "alpha must be above 0, got 0"),
        ({"layers": "nose"}, r"layers='nose' finds none of the \d+ layers that LoRA can adapt: e.g. timestep_dense1"),
    ],
)
def test_what_is_refused(options, message):
    model = trainer()
    before = [v.path for v in model.trainable_variables]
    with pytest.raises(ValueError, match=message):
        enable_lora(model, **options)
    assert [v.path for v in model.trainable_variables] == before


def test_twice_and_not_at_all():
    model = trainer()
    with pytest.raises(ValueError, match="unet has no LoRA to merge"):
        merge_lora(model)
    enable_lora(model, layers="/query$")
    with pytest.raises(ValueError, match="unet has LoRA already, on 3 layers: fold it in with merge_lora first"):
        enable_lora(model, layers="/value$")
    assert len(adapted(model.network)) == 3


def test_transposed_convolutions_are_passed_over():
    network = build_unet((8, 8, 3), (4, 8), conditions=())
    names = enable_lora(network, layers=EVERY)
    kernels = [v for v in network.variables if v.path.endswith("/kernel")]
    assert len(names) == len(kernels) - 2 > 5 and not any(name.endswith("_up") for name in names)
    assert len(network.trainable_weights) == 2 * len(names)


def test_a_transformer_and_a_network_that_was_frozen():
    network = build_unet(
        (8, 8, 3), [Level(4, attend=tiny_transformer)], stem=stem, block=tiny_res_block, context=(5, 6), skips="all"
    )
    network.trainable = False
    names = enable_lora(network, layers="feed_|cross/key")
    assert len(network.trainable_weights) == 2 * len(names) > 0
