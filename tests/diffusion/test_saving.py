"""A model read from a file samples the same images and goes on training as if it had never been away."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import (
    DiffusionModel,
    TokenEncoder,
    build_unet,
    clean,
    cosine,
    enable_lora,
    freeze,
    linear,
    logit_normal,
    min_snr,
    noise,
    sequence,
    timestep,
    velocity,
)

from .helpers import SHAPE, losses, network, pixels, trainer, weights

IMAGES = pixels(8)
LABELS = np.arange(8, dtype="int32") % 3
OPTIONS = {"steps": 3, "seed": 0, "progress": False}


def saved(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def check_same(first, second, atol=0.0):
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def trained():
    """A model of which nothing is left at its default, after some training."""
    model = trainer(
        4,
        optimizer=keras.optimizers.AdamW(0.01),
        schedule=cosine(200),
        prediction=velocity,
        weight=min_snr(cosine(200), velocity),
        density=logit_normal(cosine(200), 1.0),
        null={"label": 3},
        drop=0.25,
        ema=0.9,
        seed=11,
    )
    losses(model, IMAGES, 3, y=LABELS)
    return model


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory):
    return saved(trained, tmp_path_factory.mktemp("saved"))


def test_everything_comes_back(trained, loaded):
    np.testing.assert_array_equal(loaded.schedule.alpha, trained.schedule.alpha)
    np.testing.assert_array_equal(loaded.schedule.sigma, trained.schedule.sigma)
    np.testing.assert_array_equal(loaded.weight, trained.weight)
    np.testing.assert_array_equal(loaded.density, trained.density)
    assert loaded.prediction == velocity and loaded.drop == 0.25 and loaded.ema == 0.9 and loaded.seed == 11
    assert {name: int(value) for name, value in loaded.dropping.null.items()} == {"label": 3}
    assert int(loaded.ema_step) == 3 and loaded.dtype_policy.name == "float32"
    check_same(loaded, trained)


def test_images_come_back(trained, loaded):
    for options in ({}, {"guidance": 3.0}):
        found, expected = (m.generate([0, 1], **OPTIONS, **options) for m in (loaded, trained))
        np.testing.assert_array_equal(found, expected)


def test_loss_comes_back(trained, loaded):
    assert loaded.evaluate(IMAGES, LABELS, verbose=0) == trained.evaluate(IMAGES, LABELS, verbose=0)


def test_optimizer_comes_back(trained, loaded):
    assert isinstance(loaded.optimizer, keras.optimizers.AdamW) and int(loaded.optimizer.iterations) == 3
    for a, b in zip(loaded.optimizer.variables, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


@pytest.mark.parametrize("jit_compile", ["auto", True, False])
def test_jit_compile_comes_back_as_it_was_asked_for(tmp_path, jit_compile):
    model = saved(trainer(compiled={"jit_compile": jit_compile}), tmp_path)
    assert model.get_compile_config()["jit_compile"] == jit_compile
    if jit_compile != "auto":
        assert model.jit_compile is jit_compile


@keras.saving.register_keras_serializable("tests")
def halved(target, output):
    return ops.mean(ops.square(target - output), axis=-1) / 2


@pytest.mark.parametrize(
    "loss", [None, "mae", keras.losses.MeanSquaredError("sum"), halved], ids=["none", "name", "loss", "function"]
)
def test_loss_function_comes_back(tmp_path, loss):
    model = trainer(compiled={"loss": loss})
    assert saved(model, tmp_path).evaluate(IMAGES, verbose=0) == model.evaluate(IMAGES, verbose=0)


def test_losses_differ_from_each_other():
    found = [trainer(compiled={"loss": loss}).evaluate(IMAGES, verbose=0) for loss in (None, "mae", halved)]
    assert len(set(found)) == 3 and np.isclose(found[2], found[0] / 2)


# ---- training goes on -----------------------------------------------------------------------------------------------


def with_dropout(**options):
    """Whose masks come from a generator of the network's own; torch has one only where Dropout is given a seed."""
    return trainer(net=network(dropout=0.3), optimizer=keras.optimizers.AdamW(0.01), **options)


def test_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    model, through = with_dropout(), with_dropout()
    losses(model, IMAGES, 2, batch_size=4)
    back = saved(model, tmp_path)
    second = losses(back, IMAGES, 2, batch_size=4)
    expected = losses(through, IMAGES, 4, batch_size=4)
    np.testing.assert_allclose(second, expected[2:], rtol=1e-5)
    check_same(back, through, atol=1e-5)


def test_saving_does_not_disturb_training(tmp_path):
    model, alone = with_dropout(), with_dropout()
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    losses(model, IMAGES, 2, callbacks=[keep])
    losses(alone, IMAGES, 2)
    check_same(model, alone, atol=1e-6)
    check_same(keras.saving.load_model(tmp_path / "2.keras"), model)


def test_weights_file_carries_on(tmp_path):
    model, fresh = with_dropout(), with_dropout(seed=99)
    losses(model, IMAGES, 2)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh.generate(2, **OPTIONS), model.generate(2, **OPTIONS))
    np.testing.assert_allclose(losses(fresh, IMAGES, 2), losses(model, IMAGES, 2), rtol=1e-5)
    check_same(fresh, model, atol=1e-5)


def test_weights_file_for_sampling_alone(tmp_path):
    model, fresh = trainer(), DiffusionModel(network(seed=5))
    losses(model, IMAGES, 1)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh.generate(2, **OPTIONS)  # compiled before the weights come
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh.generate(2, **OPTIONS), model.generate(2, **OPTIONS))


# ---- other models ---------------------------------------------------------------------------------------------------


def test_model_that_was_never_compiled(tmp_path):
    model = DiffusionModel(build_unet(SHAPE, (4, 8)), prediction=clean)
    np.testing.assert_array_equal(saved(model, tmp_path).generate(2, **OPTIONS), model.generate(2, **OPTIONS))


def test_model_without_an_average(tmp_path):
    model = saved(trainer(ema=None), tmp_path)
    assert model.ema_network is None and model.ema is None


def test_model_of_mixed_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = trainer()
    keras.config.set_dtype_policy("float32")
    losses(model, IMAGES, 2)
    back = saved(model, tmp_path)
    assert back.dtype_policy.name == "mixed_float16" and back.network.layers[-1].compute_dtype == "float32"
    assert isinstance(back.optimizer, keras.optimizers.LossScaleOptimizer)
    np.testing.assert_allclose(losses(back, IMAGES, 2), losses(model, IMAGES, 2), rtol=1e-3)


@pytest.mark.parametrize("change", ["freeze", "lora"])
def test_frozen_layers_stay_frozen(tmp_path, change):
    """Keras's MultiHeadAttention, in the text's encoder, makes its parts anew."""
    encoder = TokenEncoder(["red", "blue"], length=3, width=8, heads=2, depth=1)
    net = build_unet(SHAPE, (4, 8), conditions=(timestep(8),), context=encoder.context)
    model = DiffusionModel(net, encoder=encoder, drop=0.1, ema=0.9, seed=0)
    freeze(net, "text.*") if change == "freeze" else enable_lora(model, rank=2, layers="/query$")
    model.compile(keras.optimizers.Adam(0.01))
    captions = ["red", "blue"] * 4
    model.fit(IMAGES, captions, verbose=0)
    back = saved(model, tmp_path)
    trained = {v.path for v in model.trainable_variables}
    assert {v.path for v in back.trainable_variables} == trained != {v.path for v in net.weights}
    before = {v.path: ops.convert_to_numpy(v).copy() for v in back.network.weights}
    back.fit(IMAGES, captions, verbose=0)
    moved = {v.path for v in back.network.weights if (ops.convert_to_numpy(v) != before[v.path]).any()}
    assert moved <= trained and len(moved) > len(trained) / 2
    assert int(back.optimizer.iterations) == 2


def test_null_of_a_context(tmp_path):
    net = build_unet(SHAPE, (4, 8), conditions=(timestep(),), context=lambda: sequence(5, 6)())
    context = np.random.default_rng(0).standard_normal((2, 5, 6)).astype("float32")
    null = np.random.default_rng(1).standard_normal((5, 6)).astype("float32")
    model = DiffusionModel(net, null={"context": null}, drop=0.1)
    back = saved(model, tmp_path)
    np.testing.assert_array_equal(np.asarray(back.dropping.null["context"], "float32"), null)
    options = {**OPTIONS, "guidance": 4.0}
    np.testing.assert_array_equal(back.generate(context, **options), model.generate(context, **options))


def test_configuration_can_be_copied(trained):
    copy = DiffusionModel.from_config(trained.get_config())
    assert copy.prediction == trained.prediction and copy.drop == trained.drop and not copy.compiled
    np.testing.assert_array_equal(copy.schedule.alpha, trained.schedule.alpha)


def test_defaults_are_the_slides():
    model = DiffusionModel(network())
    np.testing.assert_array_equal(model.schedule.alpha, linear().alpha)
    assert model.prediction is noise and model.weight is None and model.drop == 0 and model.ema == 0.999
