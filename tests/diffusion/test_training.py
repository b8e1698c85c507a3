"""What DiffusionModel.fit computes: its noise, its loss, its average, and what may not disturb it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import (
    DiffusionModel,
    Schedule,
    clean,
    ddim,
    flow_velocity,
    linear,
    min_snr,
    noise,
    unclipped,
    velocity,
    zero_terminal_snr,
)

from .helpers import SHAPE, check_alike, losses, network, pixels, standing, trainer, weights

BACKEND = keras.backend.backend()
IMAGES = pixels(8)
LABELS = np.arange(8, dtype="int32") % 3
SCALED = IMAGES.astype("float32") / 127.5 - 1

numpy = ops.convert_to_numpy


def ask(net, inputs):
    return numpy(net({name: ops.convert_to_tensor(value) for name, value in inputs.items()}))


def apart(first, second):
    """The largest difference between the weights, or their averages, of two models."""
    return max(np.abs(a - b).max() for a, b in zip(weights(first), weights(second), strict=True))


# ---- the corrupted batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [IMAGES, SCALED, IMAGES.astype("int32")], ids=["uint8", "float32", "int32"])
def test_corrupted_image_is_made_of_image_and_noise(images):
    model = trainer(prediction=noise)
    inputs, eps, weight = model.corrupted((images,), model.train_noise)
    x, t, eps = (numpy(v) for v in (inputs["image"], inputs["timestep"], eps))
    alpha, sigma = (table[t.astype(int)][:, None, None, None] for table in (model.schedule.alpha, model.schedule.sigma))
    np.testing.assert_allclose(x, alpha * SCALED + sigma * eps, atol=1e-5)
    assert weight is None and set(inputs) == {"image", "timestep"}


@pytest.mark.parametrize("prediction", [noise, velocity, clean, flow_velocity])
def test_target_is_the_predictions(prediction):
    known, eps, _ = (model := trainer(seed=3)).corrupted((IMAGES,), model.train_noise)
    inputs, target, _ = (model := trainer(prediction=prediction, seed=3)).corrupted((IMAGES,), model.train_noise)
    t = numpy(inputs["timestep"]).astype(int)
    alpha, sigma = (table[t][:, None, None, None] for table in (model.schedule.alpha, model.schedule.sigma))
    np.testing.assert_array_equal(numpy(inputs["image"]), numpy(known["image"]))
    np.testing.assert_allclose(numpy(target), prediction.target(SCALED, numpy(eps), alpha, sigma), atol=1e-6)


def test_timesteps_and_noise_have_their_distributions():
    model = trainer(schedule=linear(4, 0.1, 0.5))
    inputs, eps, _ = model.corrupted((pixels(4000, shape=(2, 2, 1)),), model.train_noise)
    counts = np.bincount(numpy(inputs["timestep"]).astype(int), minlength=4)
    assert len(counts) == 4 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.75)
    eps = numpy(eps)
    assert abs(eps.mean()) < 5 / np.sqrt(eps.size) and abs(eps.var() - 1) < 5 * np.sqrt(2 / eps.size)


def test_conditions_are_dropped_as_often_as_asked():
    labels = np.zeros(4000, "int32")
    images = pixels(4000, shape=(2, 2, 1))
    for drop in (0.0, 0.3, 1.0):
        model = trainer(4, drop=drop)
        inputs, _, _ = model.corrupted((images, labels), model.train_noise, model.dropping)
        label = numpy(inputs["label"])
        assert set(label) <= {0, 3} and abs((label == 3).mean() - drop) <= 5 * np.sqrt(drop * (1 - drop) / 4000)


def test_conditions_of_an_example_are_dropped_together():
    shapes = {"image": SHAPE, "timestep": (), "a": (2, 3), "b": ()}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    total = layers.Lambda(lambda v: v[0] + 0 * (v[1] + v[3])[:, None, None, None] + 0 * ops.sum(v[2]))
    net = keras.Model(inputs, total(list(inputs.values())))
    null = {"a": np.full((2, 3), -1.0), "b": -1.0}
    model = DiffusionModel(net, null=null, drop=0.5, ema=None, seed=1)
    given = {"a": np.ones((8, 2, 3), "float32"), "b": np.ones(8, "float32")}
    found, _, _ = model.corrupted((IMAGES, given), model.train_noise, model.dropping)
    a, b = numpy(found["a"]), numpy(found["b"])
    assert set(b) == {-1, 1} and (a == b[:, None, None]).all()


def test_validation_drops_nothing():
    model = standing(4, drop=1.0)
    loss, gap = model.evaluate(IMAGES, LABELS, verbose=0)
    assert loss == standing(4, drop=0.0).evaluate(IMAGES, LABELS, verbose=0) and gap > 0
    assert losses(model, IMAGES, 1, y=LABELS) != losses(standing(4, drop=0.0), IMAGES, 1, y=LABELS)


# ---- noise --------------------------------------------------------------------------------------------------------


def test_noise_differs_from_step_to_step():
    model = standing()
    assert len({float(model.train_on_batch(IMAGES)) for _ in range(5)}) == 5
    assert len(set(losses(model, IMAGES, 5))) == 5


def test_noise_differs_from_batch_to_batch_and_example_to_example():
    model = trainer()
    same = np.repeat(IMAGES[:1], 8, axis=0)
    inputs, eps, _ = model.corrupted((same,), model.train_noise)
    assert len({v.tobytes() for v in numpy(eps)}) == 8 and len(set(numpy(inputs["timestep"]))) > 4
    assert (numpy(model.corrupted((same,), model.train_noise)[1]) != numpy(eps)).all()


def test_noise_comes_from_the_seed():
    first, again, other = (losses(standing(seed=seed), IMAGES) for seed in (1, 1, 2))
    assert first == again and not set(first) & set(other)


def test_seed_is_drawn_unless_given():
    net = network()  # which sets Python's seed
    assert DiffusionModel(net).seed != DiffusionModel(net).seed


def test_validation_noise_is_the_same_at_every_epoch_and_its_own():
    model = standing()
    history = model.fit(IMAGES, epochs=3, batch_size=4, shuffle=False, validation_data=IMAGES, verbose=0).history
    assert len(set(history["val_loss"])) == 1 and len(set(history["loss"])) == 3
    assert history["val_loss"][0] not in history["loss"]
    assert model.evaluate(IMAGES, batch_size=4, verbose=0) == history["val_loss"][0]
    assert model.evaluate(IMAGES, batch_size=4, verbose=0) == history["val_loss"][0]


def test_validation_does_not_disturb_training():
    with_it, without = trainer(), trainer()
    with_it.fit(IMAGES, epochs=3, batch_size=4, shuffle=False, validation_data=IMAGES, verbose=0)
    without.fit(IMAGES, epochs=3, batch_size=4, shuffle=False, verbose=0)
    assert apart(with_it, without) < 1e-6


# ---- how it is run ------------------------------------------------------------------------------------------------


def test_eager_equals_compiled():
    eager, compiled = trainer(compiled={"run_eagerly": True}), trainer()
    for model in (eager, compiled):
        model.fit(IMAGES, epochs=2, batch_size=4, shuffle=False, verbose=0)
    assert apart(eager, compiled) < 1e-5


@pytest.mark.skipif(BACKEND == "torch", reason="torch.compile of a whole training step takes minutes on a CPU")
def test_step_can_be_compiled_with_xla():
    model = trainer(optimizer=keras.optimizers.AdamW(0.02), compiled={"jit_compile": True})
    before = weights(model)
    history = losses(model, IMAGES, 30)
    assert np.isfinite(history).all() and np.mean(history[-10:]) < np.mean(history[:10])
    assert all((a != b).any() for a, b in zip(weights(model), before, strict=True))
    assert model.generate(2, steps=2, progress=False).shape == (2, *SHAPE)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs one step per execution on torch")
def test_several_steps_per_execution_are_the_same_steps():
    together, single = trainer(compiled={"steps_per_execution": 2}), trainer()
    for model in (together, single):
        model.fit(IMAGES, epochs=2, batch_size=2, shuffle=False, verbose=0)
    assert apart(together, single) < 1e-5


def test_two_fits_are_one_long_fit():
    twice, once = (trainer(optimizer=keras.optimizers.AdamW(0.01)) for _ in range(2))
    for _ in range(2):
        losses(twice, IMAGES, 1, batch_size=4)
    losses(once, IMAGES, 2, batch_size=4)
    assert apart(twice, once) < 1e-5


def test_fit_predict_save_fit_again(tmp_path):
    model, plain = (trainer(optimizer=keras.optimizers.AdamW(0.01)) for _ in range(2))
    losses(model, IMAGES, 1)
    model.predict({"image": SCALED, "timestep": np.zeros(8)}, verbose=0)
    model.evaluate(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    losses(model, IMAGES, 1)
    losses(plain, IMAGES, 2)
    assert apart(model, plain) < 1e-5


def test_sampling_in_the_middle_of_an_epoch_does_not_disturb_training():
    watched, alone, seen = trainer(), trainer(), []

    def sample(batch, logs):  # from the model itself: asking a callback for its model already brings it up to date
        seen.append(watched.generate(2, steps=2, seed=1, progress=False))

    sampling = keras.callbacks.LambdaCallback(on_train_batch_end=sample)
    losses(watched, IMAGES, 2, batch_size=2, callbacks=[sampling])
    losses(alone, IMAGES, 2, batch_size=2)
    assert apart(watched, alone) < 1e-6
    assert len({images.tobytes() for images in seen}) > 4  # it saw the weights move
    np.testing.assert_array_equal(seen[-1], watched.generate(2, steps=2, seed=1, progress=False))


@pytest.mark.parametrize("make", [trainer, standing])
def test_evaluation_in_the_middle_of_an_epoch_does_not_disturb_training(make):
    watched, alone, seen = make(), make(), []
    evaluating = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(watched.evaluate(IMAGES[:4], verbose=0))
    )
    losses(watched, IMAGES, 2, batch_size=2, callbacks=[evaluating])
    losses(alone, IMAGES, 2, batch_size=2)
    assert apart(watched, alone) < 1e-6
    assert len(set(seen)) == (1 if make is standing else 8)  # by noise of its own, the same each time


# ---- what a callback may do with the model in the middle of an epoch ------------------------------------------------


def batches_of_two():
    """Batches, of which Keras does not know how many there are."""
    yield from ((IMAGES[i : i + 2],) for i in range(0, 8, 2))


def with_callback(action, data=None):
    """A model trained over four batches, after each of which ``action(model, batch)`` is taken; and one without it."""
    model, alone = (trainer(optimizer=keras.optimizers.Adam(0.01)) for _ in range(2))
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: action(model, batch))
    if data is None:
        losses(model, IMAGES, 1, batch_size=2, callbacks=[callback])
    else:
        model.fit(data, verbose=0, callbacks=[callback])
    losses(alone, IMAGES, 1, batch_size=2)
    return model, alone


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow counts an update more where it finds no batch")
@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_evaluation_after_the_last_of_unknown_many_batches():
    check_alike(*with_callback(lambda model, batch: model.evaluate(IMAGES, verbose=0), batches_of_two()))


def test_prediction_in_the_middle_of_an_epoch_does_not_disturb_training():
    given = {"image": SCALED, "timestep": np.zeros(8)}
    check_alike(*with_callback(lambda model, batch: model.predict(given, verbose=0)))


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_weights_set_after_the_last_of_unknown_many_batches_stay():
    class Set(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.model.network.set_weights([np.ones_like(w) for w in self.model.network.get_weights()])

    model = trainer()
    model.fit(batches_of_two(), verbose=0, callbacks=[Set()])
    assert (weights(model)[0] == 1).all()


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_saving_in_the_middle_of_an_epoch_saves_what_is_there(tmp_path, file):
    def save(model, batch):
        if batch == 2:
            (model.save if file.endswith("keras") else model.save_weights)(tmp_path / file)

    check_alike(*with_callback(save))
    loaded, expected = (trainer(optimizer=keras.optimizers.Adam(0.01)) for _ in range(2))
    if file.endswith("keras"):
        loaded = keras.saving.load_model(tmp_path / file)
    else:
        loaded.load_weights(tmp_path / file)
    losses(expected, IMAGES[:6], 1, batch_size=2)
    check_alike(loaded, expected)


def test_weights_loaded_in_the_middle_of_an_epoch_are_trained_on(tmp_path):
    other = trainer(optimizer=keras.optimizers.Adam(0.01), seed=8)
    losses(other, IMAGES, 2)
    other.save_weights(tmp_path / "other.weights.h5")

    def load(model, batch):
        if batch == 1:
            model.load_weights(tmp_path / "other.weights.h5")

    model, _ = with_callback(load)
    losses(other, IMAGES[4:], 1, batch_size=2)
    check_alike(model, other)


def test_images_can_be_denoised_while_training_goes_on():
    frames = []

    def watch(model, batch):
        if not frames:
            frames.append(model.denoising(1, steps=4, seed=0))
        assert np.isfinite(numpy(next(frames[0]).x)).all()

    check_alike(*with_callback(watch))


def test_training_learns():
    image = np.where(np.arange(8)[:, None, None] < 4, 250, 5) * np.ones((8, 8, 3))
    images = np.repeat(image[None], 16, axis=0).astype("uint8")
    model = trainer(optimizer=keras.optimizers.AdamW(0.02), prediction=clean)
    before = model.evaluate(images, verbose=0)
    losses(model, images, 60)
    assert model.evaluate(images, verbose=0) < 0.5 * before


# ---- precision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


class SayTimestep(layers.Layer):
    """Gives images whose every pixel is the timestep that the network was told."""

    def __init__(self, **options):
        super().__init__(autocast=False, **options)

    def call(self, x, t):
        return ops.zeros_like(ops.cast(x, "float32")) + ops.cast(t, "float32")[:, None, None, None]

    def compute_output_spec(self, x, t):
        return keras.KerasTensor(x.shape, "float32")


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_timesteps_reach_the_network_unrounded(policy, name):
    policy(name)
    image, t = keras.Input(SHAPE, name="image"), keras.Input((), dtype="float32", name="timestep")
    said = SayTimestep()(layers.Conv2D(3, 1)(image), t)
    model = trainer(net=keras.Model({"image": image, "timestep": t}, said), prediction=clean, ema=None)
    asked = np.array([999, 257], "float32")
    given = {"image": np.zeros((2, *SHAPE), "float32"), "timestep": asked}
    target = np.broadcast_to(asked[:, None, None, None], (2, *SHAPE))

    frames = model.denoising(1, steps=2, spacing=lambda total, steps: asked, threshold=unclipped)
    assert [float(numpy(frame.clean).mean()) for frame in frames] == [999, 257]
    assert numpy(model(given))[:, 0, 0, 0].tolist() == [999, 257]
    assert model.predict(given, verbose=0)[:, 0, 0, 0].tolist() == [999, 257]
    model.corrupted = lambda data, generator, drop=0.0: (
        {k: ops.convert_to_tensor(v) for k, v in given.items()},
        ops.convert_to_tensor(target),
        None,
    )
    assert float(model.test_on_batch(IMAGES[:2])) == 0


def test_drawn_timesteps_are_whole_numbers_in_float32(policy):
    policy("mixed_bfloat16")
    model = trainer()
    inputs, _, _ = model.corrupted((pixels(500),), model.train_noise)
    t = numpy(inputs["timestep"])
    assert t.dtype == np.float32 and (t == np.round(t)).all() and (t[t > 512] % 4 != 0).any()


# ---- weights of examples and of timesteps -------------------------------------------------------------------------


def expected_loss(model, data, drop=0.0):
    """The weighted mean square, by hand, of the noise that a model of this seed draws first."""
    inputs, target, weight = model.corrupted(data, model.train_noise, model.dropping if drop else None)
    errors = ((numpy(target) - ask(model.network, inputs)) ** 2).mean(axis=(1, 2, 3))
    table = 1 if model.weight is None else model.weight[numpy(inputs["timestep"]).astype(int)]
    return (errors * (1 if weight is None else numpy(weight)) * table).mean()


WEIGHT = np.array([0, 1, 2, 0, 5, 0.5, 0, 1], "float32")


def test_weights_of_as_many_examples_as_pixels_a_row_are_the_examples():
    assert len(WEIGHT) == SHAPE[0] == SHAPE[1]
    expected = expected_loss(standing(), (IMAGES, None, WEIGHT))
    assert abs(expected - expected_loss(standing(), (IMAGES,))) > 0.01
    (found,) = losses(standing(), IMAGES, 1, sample_weight=WEIGHT)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_with_conditions():
    expected = expected_loss(standing(4, drop=0.0), (IMAGES, LABELS, WEIGHT))
    (found,) = losses(standing(4, drop=0.0), IMAGES, 1, y=LABELS, sample_weight=WEIGHT)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weights_in_a_dataset():
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, (), WEIGHT)).batch(8)
    expected = expected_loss(standing(), (IMAGES, None, WEIGHT))
    np.testing.assert_allclose(losses(standing(), dataset, 1, batch_size=None), [expected], rtol=1e-5)


@pytest.mark.parametrize("classes", [None, 4])
def test_examples_of_weight_zero_teach_nothing(classes):
    model = trainer(classes)
    before = weights(model)
    labels = {"y": LABELS} if classes else {}
    assert losses(model, IMAGES, 2, sample_weight=np.zeros(8), **labels) == [0, 0]
    assert all((a == b).all() for a, b in zip(weights(model), before, strict=True))


def test_weights_count_in_evaluation_too():
    plain, weighted = (standing().evaluate(IMAGES, sample_weight=w, verbose=0) for w in (None, 3 * np.ones(8)))
    np.testing.assert_allclose(weighted, 3 * plain, rtol=1e-5)
    held = (IMAGES, None, 3 * np.ones(8))
    history = standing().fit(IMAGES, validation_data=held, verbose=0).history
    np.testing.assert_allclose(history["val_loss"], [3 * plain], rtol=1e-5)


def test_weight_table_weighs_each_timestep():
    table = min_snr(linear(), noise, gamma=0.1)
    options = {"prediction": noise, "weight": table}
    for weights_of_examples in (None, WEIGHT):
        expected = expected_loss(standing(**options), (IMAGES, None, weights_of_examples))
        found = losses(standing(**options), IMAGES, 1, sample_weight=weights_of_examples)
        np.testing.assert_allclose(found, [expected], rtol=1e-5)
        assert abs(expected - expected_loss(standing(prediction=noise), (IMAGES, None, weights_of_examples))) > 0.01


def test_loss_can_be_chosen():
    model = standing()
    inputs, target, _ = model.corrupted((IMAGES,), model.train_noise)
    expected = np.abs(numpy(target) - ask(model.network, inputs)).mean()
    np.testing.assert_allclose(losses(standing(compiled={"loss": "mae"}), IMAGES, 1), [expected], rtol=1e-5)


def test_regularisers_of_the_network_count_once():
    def made(strength):
        image, t = keras.Input(SHAPE, name="image"), keras.Input((), name="timestep")
        keras.utils.set_random_seed(0)
        conv = layers.Conv2D(3, 1, kernel_regularizer=keras.regularizers.L2(strength))
        return standing(net=keras.Model({"image": image, "timestep": t}, conv(image)))

    model = made(0.5)
    penalty = 0.5 * np.sum(model.network.get_weights()[0] ** 2)
    np.testing.assert_allclose(losses(model, IMAGES, 1)[0] - losses(made(0.0), IMAGES, 1)[0], penalty, rtol=1e-4)


# ---- the average --------------------------------------------------------------------------------------------------


def averaged_by_hand(model, steps, every=1):
    """Train by single batches; average the weights seen after each update: keep = min(ema, (1 + n) / (10 + n))."""
    average, updates = weights(model)[0], 0
    for step in range(1, steps + 1):
        model.train_on_batch(IMAGES)
        if step % every == 0:
            updates += 1
            keep = min(model.ema, (1 + updates) / (10 + updates))
            average = keep * average + (1 - keep) * weights(model)[0]
    return average


@pytest.mark.parametrize("ema", [0.999, 0.3, 0.0])
def test_average_is_that_by_hand(ema):
    model = trainer(ema=ema)
    expected = averaged_by_hand(model, 6)
    now, average = weights(model)
    np.testing.assert_allclose(average, expected, atol=1e-6)
    assert (ema == 0) == (np.abs(now - average).max() < 1e-6)
    assert int(model.ema_step) == 6


def test_average_moves_at_the_first_step():
    model = trainer()
    before = weights(model)
    assert (before[0] == before[1]).all()
    model.train_on_batch(IMAGES)
    now, average = weights(model)
    moved = now != before[0]
    assert moved.any() and (average != before[1])[np.abs(now - before[0]) > 1e-4].all()
    np.testing.assert_allclose(average - before[1], (1 - 2 / 11) * (now - before[0]), atol=1e-6)


def test_average_counts_updates_under_gradient_accumulation():
    model = trainer(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    expected = averaged_by_hand(model, 7, every=2)
    np.testing.assert_allclose(weights(model)[1], expected, atol=1e-6)
    assert int(model.ema_step) == 3 and np.abs(np.subtract(*weights(model))).max() > 1e-3


def test_average_goes_on_when_the_model_is_compiled_anew():
    model = trainer(ema=0.9)
    model.train_on_batch(IMAGES)
    for _ in range(30):  # until the average is no longer warming up
        model.train_on_batch(IMAGES)
    model.compile(keras.optimizers.SGD(0.1))
    average = weights(model)[1]
    for n in (32, 33):
        model.train_on_batch(IMAGES)
        keep = min(0.9, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * weights(model)[0]
    np.testing.assert_allclose(weights(model)[1], average, atol=1e-6)
    assert int(model.ema_step) == 33


def test_model_without_an_average_uses_its_weights():
    model = trainer(ema=None)
    assert model.averaged is model.network and model.ema_network is None
    losses(model, IMAGES, 1)
    given = {"image": SCALED, "timestep": np.zeros(8)}
    np.testing.assert_allclose(model.predict(given, verbose=0), ask(model.network, given), atol=1e-5)


def test_average_is_what_is_used():
    model, expected = trainer(seed=1), trainer(seed=1)
    model.network.set_weights([np.full_like(w, 9) for w in model.network.get_weights()])
    given = {"image": SCALED, "timestep": np.zeros(8)}
    assert model.evaluate(IMAGES, verbose=0) == expected.evaluate(IMAGES, verbose=0)
    np.testing.assert_array_equal(model.predict(given, verbose=0), expected.predict(given, verbose=0))
    options = {"steps": 2, "seed": 0, "progress": False}
    np.testing.assert_array_equal(model.generate(2, **options), expected.generate(2, **options))


def test_average_is_not_trained():
    model = trainer()
    assert len(model.trainable_variables) == len(model.network.trainable_variables)
    assert not {id(v) for v in model.trainable_variables} & {id(v) for v in model.ema_network.weights}


# ---- options that go together -------------------------------------------------------------------------------------


def test_pure_noise_can_be_trained_to_predict_velocity():
    model = trainer(schedule=zero_terminal_snr(linear()), prediction=velocity)
    assert np.isfinite(losses(model, IMAGES, 2)).all()
    assert model.generate(2, steps=3, progress=False).shape == (2, *SHAPE)


def test_short_schedule_of_ones_own():
    model = trainer(schedule=Schedule([0.9, 0.5], [0.1, 0.9]), prediction=flow_velocity)
    assert np.isfinite(losses(model, IMAGES, 2)).all()
    assert model.generate(1, steps=2, sampler=ddim, progress=False).shape == (1, *SHAPE)
