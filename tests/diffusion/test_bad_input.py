"""What does not fit raises a ValueError that says so, before anything is trained on it."""

import os
import signal
import threading

import keras
import numpy as np
import pytest

from unet_keras import (
    DiffusionModel,
    build_unet,
    clean,
    flow,
    flow_velocity,
    linear,
    min_snr,
    noise,
    velocity,
    zero_terminal_snr,
)

from .helpers import SHAPE, check_alike, losses, network, pixels, trainer, weights

IMAGES = pixels(8)
SCALED = IMAGES.astype("float32") / 127.5 - 1
LABELS = np.arange(8) % 3
HOLED = SCALED.copy()
HOLED[5, 2, 2, 0] = np.nan


@pytest.fixture(scope="module")
def plain():
    return trainer()


@pytest.fixture(scope="module")
def labelled():
    return trainer(4)


def refused(model, message, *args, **options):
    """Check that fit refuses, and that neither the weights nor their average moved."""
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        model.fit(*args, verbose=0, **options)
    assert all((now == then).all() for now, then in zip(weights(model), before, strict=True))


# ---- data, in each of the kinds that carry them -----------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """Batches of two."""

    def __init__(self, *arrays, **options):
        super().__init__(**options)
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[0]) // 2

    def __getitem__(self, index):
        return tuple(array[2 * index : 2 * index + 2] for array in self.arrays)


class Endless(Batches):
    """Batches of two, again and again."""

    num_batches = None


def dataset(*arrays):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(arrays).batch(2)


def loader(*arrays):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(list(zip(*arrays, strict=True)), batch_size=2)


def generator(*arrays):
    yield from Batches(*arrays)


KINDS = {
    "arrays": lambda *arrays: arrays,
    "dataset": dataset,
    "pydataset": Batches,
    "threads": lambda *arrays: Batches(*arrays, workers=2),
    "loader": loader,
    "generator": generator,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def given(kind, *arrays):
    """The positional arguments of fit."""
    made = KINDS[kind](*arrays)
    return made if kind == "arrays" else (made,)


@kinds
def test_images_on_another_scale(plain, kind):
    refused(plain, r"float32 images must lie in \[-1, 1\].*/ 127.5", *given(kind, IMAGES.astype("float32")))
    refused(plain, r"float32 images must lie in \[-1, 1\]", *given(kind, 1.1 * SCALED))


@kinds
def test_images_of_another_shape(plain, kind):
    refused(plain, r"images must have the shape \('N', 8, 8, 3\)", *given(kind, pixels(8, shape=(8, 8, 1))))
    refused(plain, r"images must have the shape", *given(kind, pixels(8, shape=(8, 9, 3))))
    refused(plain, r"images must have the shape", *given(kind, pixels(8, shape=(8, 3))))


@kinds
def test_images_with_holes(plain, kind):
    images = HOLED[4:]  # number 5 is now number 1, of a batch of two or of four
    refused(plain, "images hold NaN, in 1 of [24], e.g. number 1", *given(kind, images))


@kinds
def test_labels_that_the_network_does_not_know(labelled, kind):
    refused(labelled, "'label' must lie in 0 ... 3, got values from", *given(kind, IMAGES, LABELS + 4))
    refused(labelled, "'label' must lie in 0 ... 3, got values from", *given(kind, IMAGES, LABELS - 3))


@kinds
def test_labels_that_are_missing_or_too_many(labelled, plain, kind):
    refused(labelled, r"missing: \['label'\]", *given(kind, IMAGES))
    refused(plain, "takes no conditions: give images alone, or a number of them", *given(kind, IMAGES, LABELS))


@kinds
def test_a_hole_in_the_third_batch_stops_training_before_it(kind):
    """Two batches may be trained on; the third raises, and the model is as good as before."""
    model = trainer()
    with pytest.raises(ValueError, match="images hold NaN"):
        model.fit(*given(kind, HOLED), batch_size=2 if kind == "arrays" else None, shuffle=False, verbose=0)
    assert all(np.isfinite(v).all() for v in weights(model))
    history = model.fit(IMAGES, batch_size=4, verbose=0).history  # and goes on
    assert np.isfinite(history["loss"]).all() and model.generate(1, steps=1, progress=False).dtype == "uint8"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"arrays"}))
def test_a_hole_in_the_first_batch_costs_nothing_that_was_learned(kind):
    model = trainer()
    with pytest.raises(ValueError, match="images hold NaN"):
        model.fit(*given(kind, HOLED), verbose=0)  # in the third batch
    learned = weights(model)
    model.network.set_weights([w + 1 for w in model.network.get_weights()])
    changed = weights(model)
    with pytest.raises(ValueError, match="images hold NaN"):
        model.fit(*given(kind, HOLED[4:]), verbose=0)
    found = weights(model)
    assert (found[0] == changed[0]).all() and (found[1] == learned[1]).all()


class Interrupted(Batches):
    def __getitem__(self, index):
        raise KeyboardInterrupt


def test_interrupted_training_leaves_the_weights():
    model = trainer()
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        model.fit(Interrupted(IMAGES), verbose=0)
    assert all((now == then).all() for now, then in zip(weights(model), before, strict=True))
    model.fit(IMAGES, verbose=0)


class Failing(Batches):
    """Batches of two that fail at the n-th to be asked for, in whatever epoch."""

    def __init__(self, n, *arrays):
        super().__init__(*arrays)
        self.left = n

    def __getitem__(self, index):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def adam(**compiled):
    return trainer(optimizer=keras.optimizers.Adam(0.01), compiled=compiled)


def after(batches):
    model = adam()
    losses(model, IMAGES[: 2 * batches], 1, batch_size=2)
    return model


def interrupted(method, *args, **options):
    with pytest.raises(KeyboardInterrupt):
        method(*args, verbose=0, **options)


class On(keras.callbacks.Callback):
    """Does one thing at one moment, with the model: ``On(epoch_end=function)``."""

    def __init__(self, **what):
        super().__init__()
        ((moment, function),) = what.items()
        setattr(self, f"on_{moment}", lambda index=None, logs=None: function(self.model, index))


def to_ones(model):
    for net in (model.network, model.ema_network):
        net.set_weights([np.ones_like(w) for w in net.get_weights()])


class Stopped(keras.callbacks.Callback):
    def on_predict_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


BACKEND = keras.backend.backend()
in_turn = pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow asks for batches ahead, and wraps interrupts")


@in_turn
@pytest.mark.parametrize("compiled", [{}, {"jit_compile": False}], ids=["auto", "plain"])
def test_data_that_fail_in_the_second_epoch_cost_nothing_of_the_first(compiled):
    model = adam(**compiled)
    interrupted(model.fit, Failing(5, IMAGES), shuffle=False, epochs=2, validation_data=IMAGES)
    check_alike(model, after(4))
    model.fit(IMAGES, verbose=0)


@pytest.mark.skipif(BACKEND != "jax", reason="Keras runs one step per execution on torch, one graph on TensorFlow")
def test_data_that_fail_between_the_steps_of_one_execution():
    model = adam(steps_per_execution=2)
    interrupted(model.fit, Failing(4, IMAGES), shuffle=False)
    check_alike(model, after(3))
    model.fit(IMAGES, verbose=0)


@in_turn
@pytest.mark.parametrize("moment, batch", [("epoch_end", 5), ("train_batch_end", 2)])
def test_what_a_callback_sets_outlasts_data_that_fail(moment, batch):
    def set_all(model, index):
        model.optimizer.learning_rate = 0.5
        to_ones(model)

    model = adam()
    interrupted(model.fit, Failing(batch, IMAGES), epochs=2, callbacks=[On(**{moment: set_all})])
    assert all((w == 1).all() for w in weights(model)) and float(model.optimizer.learning_rate) == 0.5


def test_interrupted_prediction_leaves_the_model():
    given = {"image": SCALED, "timestep": np.zeros(8)}
    model, expected = after(4), after(4)
    interrupted(model.predict, given, batch_size=4, callbacks=[Stopped()])
    check_alike(model, expected)
    interrupted(model.predict, given, batch_size=4, callbacks=[Stopped()])
    to_ones(model)
    model.generate(1, steps=1, progress=False)
    assert all((w == 1).all() for w in weights(model))


def test_weights_set_after_a_refused_batch_stay():
    model = after(4)
    model.train_on_batch(IMAGES)
    with pytest.raises(Exception, match="(?i)shape|channels|axis"):
        model.train_on_batch(pixels(8, shape=(8, 8, 1)))
    to_ones(model)
    model.generate(1, steps=1, progress=False)
    assert all((w == 1).all() for w in weights(model))


def test_weights_set_after_an_evaluation_that_failed_in_a_callback():
    def evaluate_and_set(model, index):
        interrupted(model.evaluate, Failing(1, IMAGES))
        to_ones(model)

    model, expected = (trainer(optimizer=keras.optimizers.SGD(0.0)) for _ in range(2))
    model.fit(IMAGES, verbose=0, batch_size=2, callbacks=[On(train_batch_end=evaluate_and_set)])
    to_ones(expected)
    assert all((a == b).all() for a, b in zip(weights(model), weights(expected), strict=True))


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also in a process that was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only on JAX does Keras take the state away to train")
def test_interrupt_at_any_moment_leaves_the_model(interruptible):
    model = trainer(net=build_unet((16, 16, 3), (16, 32)))
    images = pixels(800, shape=(16, 16, 3))
    losses(model, images[:16], 1)
    caught = 0
    for tries in range(20):  # it mostly comes while a compiled step runs; now and then where Python cannot raise it
        timer = threading.Timer(0.1 + 0.02 * tries, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            model.fit(images, batch_size=16, epochs=1, verbose=0)
            timer.join()
        except KeyboardInterrupt:
            caught += 1
        assert all(np.isfinite(w).all() for w in weights(model))
        if caught == 3:
            break
    assert caught
    losses(model, images[:16], 1)


def test_other_errors_are_not_taken_for_those_of_earlier_data(plain):
    def evaluate_and_fail(model, index):
        with pytest.raises(ValueError, match="images hold NaN"):
            model.evaluate(Batches(HOLED), verbose=0)
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        plain.fit(IMAGES, verbose=0, callbacks=[On(train_batch_end=evaluate_and_fail)])


def test_validation_data_are_checked_before_training(plain):
    refused(plain, "images hold NaN", IMAGES, validation_data=HOLED)
    refused(plain, r"must lie in \[-1, 1\]", IMAGES, validation_data=(IMAGES.astype("float32"),))
    refused(plain, "give images alone", IMAGES, validation_data=(IMAGES, LABELS))


def test_evaluate_checks_too(plain, labelled):
    with pytest.raises(ValueError, match="images hold NaN"):
        plain.evaluate(HOLED, verbose=0)
    with pytest.raises(ValueError, match="images hold NaN"):
        plain.evaluate(Batches(HOLED), verbose=0)
    with pytest.raises(ValueError, match="missing"):
        labelled.evaluate(IMAGES, verbose=0)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((0, 8, 8, 3), "uint8"), "with N > 0"),
        (IMAGES.astype(bool), "uint8 or floats, got bool"),
        (IMAGES.astype("int32") * 2, "0 to 255; got values from"),
        (IMAGES.astype("int8"), "0 to 255; got values from -128"),
        (IMAGES[0], "must have the shape"),
        (np.where(np.isnan(HOLED), np.inf, SCALED), r"\[-1, 1\].*to inf"),
        (IMAGES.astype(object), "uint8 or floats, got object"),
        (IMAGES.astype(str), "uint8 or floats, got <U"),
    ],
)
def test_arrays_that_are_no_images(plain, images, message):
    refused(plain, message, images)


def test_list_of_images_is_taken_for_an_array():
    as_list, as_array = trainer(), trainer()
    for model, images in ((as_list, list(IMAGES)), (as_array, IMAGES)):
        model.fit(images, shuffle=False, verbose=0)
    assert all((a == b).all() for a, b in zip(weights(as_list), weights(as_array), strict=True))


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"label": LABELS, "colour": LABELS}, r"unknown: \['colour'\]"),
        ({"lable": LABELS}, r"unknown: \['lable'\]; missing: \['label'\]"),
        (LABELS[:4], r"shape \(8,\), got \(4,\)"),
        (LABELS[:, None], r"shape \(8,\), got \(8, 1\)"),
        (LABELS + 0.5, "whole numbers"),
        (np.full(8, np.nan), "NaN or infinity"),
        (np.array(list("abcabcab")), "must hold numbers; texts need an encoder"),
    ],
)
def test_conditions_that_do_not_fit(labelled, labels, message):
    refused(labelled, message, IMAGES, labels)


def test_dictionary_of_data_without_images(labelled):
    refused(labelled, 'must hold "image"', {"images": IMAGES, "label": LABELS})
    refused(labelled, "given twice", {"image": IMAGES, "label": LABELS}, {"label": LABELS})


@pytest.mark.parametrize("weight", [np.ones(4), np.ones((8, 1)), -np.ones(8), np.full(8, np.nan)])
def test_sample_weights_that_do_not_fit(plain, weight):
    refused(plain, "sample_weight must be 8 finite numbers", IMAGES, sample_weight=weight)


@pytest.mark.parametrize("weight", [np.full(8, np.nan), -np.ones(8), np.ones(7)])
def test_sample_weights_of_batches_that_do_not_fit(plain, weight):
    batch = IMAGES, None, weight
    for data in (_Always(batch), (batch for _ in range(1))):
        refused(plain, "sample_weight must be 8 finite numbers", data)


class _Always(keras.utils.PyDataset):
    """One batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def test_lists_in_batches_are_arrays(labelled):
    def fitted(batch):
        model = trainer(4)
        return model.fit(_Always(batch), verbose=0).history["loss"]

    expected = fitted((IMAGES, LABELS))
    assert fitted((list(IMAGES), LABELS.tolist())) == fitted((IMAGES, {"label": LABELS.tolist()})) == expected


def test_single_batches_are_checked_as_all_data_are(plain, labelled):
    for step in (plain.train_on_batch, plain.test_on_batch):
        with pytest.raises(ValueError, match=r"float32 images must lie in \[-1, 1\]"):
            step(IMAGES.astype("float32"))
        with pytest.raises(ValueError, match="images hold NaN"):
            step(HOLED)
        assert np.isfinite(step(IMAGES, sample_weight=np.ones(8)))
    for step in (labelled.train_on_batch, labelled.test_on_batch):
        with pytest.raises(ValueError, match="condition 'label' must lie in 0 ... 3"):
            step(IMAGES, LABELS + 9)
        assert np.isfinite(step(IMAGES, LABELS)).all()
    with pytest.raises(ValueError, match="class_weight is not taken: give sample_weight"):
        labelled.train_on_batch(IMAGES, LABELS, class_weight={0: 1.0})
    refused(labelled, "class_weight is not taken", IMAGES, LABELS, class_weight={0: 1.0})


@pytest.mark.parametrize("x", [None, "folder", iter([IMAGES]), map(np.asarray, [IMAGES]), (IMAGES, LABELS)])
def test_what_is_neither_images_nor_batches(labelled, x):
    refused(labelled, "x must be images, or a dataset or generator of batches", x)


def test_what_compile_would_pass_over(plain):
    model = trainer()
    for options, message in (
        ({"loss_weights": [0.5]}, "loss_weights is not taken"),
        ({"optimizer": None}, "optimizer must be one of Keras's"),
        ({"loss": keras.losses.MeanSquaredError(reduction=None)}, "loss must average or add up"),
    ):
        with pytest.raises(ValueError, match=message):
            model.compile(**{"optimizer": "sgd", **options})
    model.compile("sgd", loss=lambda target, output: keras.ops.mean((target - output) ** 2))
    refused(model, r"loss must give one number an example, \(B,\), got the shape \(\)", IMAGES)
    refused(
        model,
        "validation_data must be .images, conditions, weights., got 8 parts",
        IMAGES,
        validation_data=list(IMAGES),
    )


def test_the_average_stays_frozen_when_all_is_thawed():
    model = trainer()
    count = len(model.trainable_variables)
    model.trainable = False
    model.trainable = True
    model.compile("sgd")
    assert len(model.trainable_variables) == count == len(model.network.trainable_variables)


def test_labels_beside_a_dataset(labelled):
    refused(labelled, "come with a dataset's own batches", Batches(IMAGES, LABELS), LABELS)


def test_how_long_an_epoch_of_data_without_end_is_must_be_said(plain):
    refused(plain, "no end: give steps_per_epoch", Endless(IMAGES))
    refused(plain, "no end: give validation_steps", IMAGES, validation_data=Endless(IMAGES))


def test_images_scaled_from_zero_to_one_warn(plain):
    with pytest.warns(UserWarning, match=r"scaled to \[0, 1\]\? Use images \* 2 - 1"):
        plain.fit(IMAGES / np.float32(255), verbose=0)


def test_images_of_one_value_do_not_warn(plain):
    plain.evaluate(np.zeros((2, *SHAPE), "float32"), verbose=0)


# ---- making and compiling -----------------------------------------------------------------------------------------

ALMOST_PURE_NOISE = zero_terminal_snr(linear())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight": np.ones(999)}, "weight must be a table of 1000 finite numbers"),
        ({"weight": -np.ones(1000)}, "weight must be a table of 1000 finite numbers >= 0"),
        ({"weight": np.full(1000, np.nan)}, "weight must be a table"),
        ({"weight": np.full(1000, np.inf)}, "weight must be a table"),
        ({"density": np.ones(999)}, "density must be a table of 1000 finite numbers >= 0, got shape"),
        ({"density": -np.ones(1000)}, "density must be a table of 1000 finite numbers >= 0"),
        ({"density": np.full(1000, np.nan)}, "density must be a table"),
        ({"density": np.zeros(1000)}, "density must be above 0 for some timestep"),
        ({"drop": 0.1}, "drop must lie .* and needs null"),
        ({"drop": 1.5, "null": {"label": 3}}, "drop must lie"),
        ({"drop": -0.1, "null": {"label": 3}}, "drop must lie"),
        ({"null": {"label": 4}, "drop": 0.1}, "'label' must lie in 0 ... 3"),
        ({"null": {"lable": 3}, "drop": 0.1}, r"unknown: \['lable'\]"),
        ({"null": {"label": [3]}, "drop": 0.1}, r"'label' must have the shape \(1,\)"),
        ({"ema": 1.0}, "ema must lie in"),
        ({"ema": -0.1}, "ema must lie in"),
        ({"ema": 999}, "ema must lie in"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"schedule": ALMOST_PURE_NOISE}, "pure noise .* use velocity"),
        ({"schedule": flow()}, "pure noise .* use velocity"),
        ({"schedule": linear}, r"schedule must be a Schedule, as linear\(\)"),
        ({"schedule": [0.1, 0.2]}, "schedule must be a Schedule"),
        ({"prediction": "noise"}, "prediction must be a Prediction"),
        ({"drop": None}, "drop must lie"),
        ({"drop": "0.1", "null": {"label": 3}}, "drop must lie"),
        ({"drop": [0.1], "null": {"label": 3}}, "drop must lie"),
        ({"wieght": np.ones(1000)}, "wieght"),
        ({"emma": 0.9}, "emma"),
        ({"loss": "mse"}, "loss"),
    ],
)
def test_model_refuses(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DiffusionModel(network(4), **options)


@pytest.mark.parametrize("prediction", [velocity, clean, flow_velocity])
def test_model_takes_pure_noise_where_it_can(prediction):
    table = min_snr(ALMOST_PURE_NOISE, prediction)
    assert DiffusionModel(network(), ALMOST_PURE_NOISE, prediction, weight=table).weight[-1] == 0


def test_model_refuses_a_network_without_timestep():
    with pytest.raises(ValueError, match="inputs named 'image' and 'timestep'"):
        DiffusionModel(build_unet(SHAPE, (4, 8), conditions=()))


def test_model_refuses_a_network_that_is_no_functional_model():
    with pytest.raises(ValueError, match="functional keras.Model"):
        DiffusionModel(keras.Sequential([keras.layers.Dense(3)]))


@pytest.mark.parametrize("options", [{"metrics": ["mae"]}, {"weighted_metrics": ["mae"]}])
def test_compile_refuses_metrics(options):
    with pytest.raises(ValueError, match="metrics"):
        DiffusionModel(network()).compile("adam", **options)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_compile_refuses_a_second_average(policy):
    keras.config.set_dtype_policy(policy)
    net = network()
    keras.config.set_dtype_policy("float32")
    model = DiffusionModel(net)
    with pytest.raises(ValueError, match="use_ema=True"):
        model.compile(keras.optimizers.Adam(use_ema=True))
    assert not model.compiled


def test_compile_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="(?i)unknown loss|could not interpret loss"):
        DiffusionModel(network()).compile("adam", loss="mean_square")
    with pytest.raises(TypeError, match="optimiser"):
        DiffusionModel(network()).compile(optimiser="adam")


# ---- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be a whole number from 1 to the schedule's 1000, got 0"),
        ({"steps": -1}, "steps must be"),
        ({"steps": 1001}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"guidance": -1.0}, "guidance must be 0 or more"),
        ({"guidance": float("nan")}, "guidance must be 0 or more"),
        ({"guidance": 2.0}, "guidance=2.0 needs conditions"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"noise": np.zeros((3, 2, 8, 8, 3))}, r"noise must be .* = \(4, 2, 8, 8, 3\), got \(3, 2"),
        ({"noise": np.zeros((4, 1, 8, 8, 3))}, "noise must be"),
        ({"noise": np.full((4, 2, 8, 8, 3), np.nan)}, "noise must be finite"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"batch_size": "2"}, "batch_size must be"),
        ({"steps": None}, "steps must be"),
        ({"steps": "3"}, "steps must be .* got '3'"),
        ({"steps": float("nan")}, "steps must be"),
        ({"seed": [1, 2]}, "seed must be"),
        ({"seed": "1"}, "seed must be"),
        ({"seed": float("nan")}, "seed must be"),
        ({"guidance": None}, "guidance must be a number"),
        ({"guidance": "3"}, "guidance must be a number"),
        ({"guidance": [3.0]}, "guidance must be a number"),
        ({"strength": "1"}, "strength must be"),
        ({"sampler": "ddim"}, "sampler must be a function.* got 'ddim'"),
        ({"sampler": lambda points: []}, "sampler gave no rows"),
        ({"spacing": "karras"}, "spacing must be a function"),
        ({"threshold": 0.995}, "threshold must be a function"),
        ({"combine": "rescaled"}, "combine must be a function"),
        ({"size": (8, 9)}, r"size=\(8, 9\) does not fit"),
        ({"size": (8, 3)}, r"size=\(8, 3\) does not fit"),
        ({"size": (16, 16)}, r"size=\(16, 16\) does not fit"),
    ],
)
def test_generate_refuses(plain, options, message):
    with pytest.raises(ValueError, match=message):
        plain.generate(2, **{"steps": 3, **options})


@pytest.mark.parametrize(
    "conditions, message",
    [
        ({}, "at least one image"),
        ({"lable": [0]}, r"unknown: \['lable'\]"),
        ({"label": [0], "colour": [0]}, r"unknown: \['colour'\]"),
        ([0, 4], "must lie in 0 ... 3"),
        ([-1], "must lie in 0 ... 3"),
        ([0.5], "whole numbers"),
        (np.zeros((0,), int), "at least one image"),
        ([[0, 1]], r"must have the shape"),
    ],
)
def test_generate_refuses_conditions(labelled, conditions, message):
    with pytest.raises(ValueError, match=message):
        labelled.generate(conditions, steps=1)


def test_generate_refuses_a_count_without_conditions_that_it_cannot_do_without():
    never_dropped = trainer(4, null=None, drop=0.0)
    for conditions in (3, {}):
        with pytest.raises(ValueError, match=r"missing: \['label'\]"):
            never_dropped.generate(conditions, steps=1)


@pytest.mark.parametrize("count", [0, -1, True, 2.5, "three"])
def test_generate_refuses_what_is_no_count(plain, count):
    with pytest.raises(ValueError):
        plain.generate(count, steps=1)


def test_guidance_needs_training_with_dropped_conditions():
    model = trainer(4, null={}, drop=0.0)
    with pytest.raises(ValueError, match="trained with dropped conditions"):
        model.generate([0], steps=1, guidance=2.0)
    assert model.generate([0], steps=1, guidance=1.0, progress=False).shape == (1, *SHAPE)


def test_open_network_needs_a_size():
    model = DiffusionModel(build_unet((None, None, 3), (4, 8)), ema=None)
    for size in (None, (8,), (8, 0)):
        with pytest.raises(ValueError, match="leaves the image size open"):
            model.generate(1, steps=1, size=size)
    assert model.generate(1, steps=1, size=(8, 12), progress=False).shape == (1, 8, 12, 3)


def test_denoising_checks_when_it_is_called(plain):
    with pytest.raises(ValueError, match="steps must be"):
        plain.denoising(1, steps=0)


def test_noise_is_the_default_prediction():
    assert DiffusionModel(network()).prediction is noise
