"""A run goes on from its checkpoints as if it had never been cut off, and nothing that goes wrong costs it the last."""

import os
import zipfile
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import Cut

from unet_keras import (
    Checkpoint,
    DiffusionModel,
    LossGuard,
    Redrawn,
    build_unet,
    class_label,
    clean,
    cosine,
    latents,
    res_block,
    runs,
    timestep,
    velocity,
)
from unet_keras.checkpoints import loss_of_zero
from unet_keras.nn.blocks import conv

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype="uint8")
BLOCK = partial(res_block, groups=2, dropout=0.2)
STATE = {"position": {"epoch": 1, "batch": 2, "step": 5, "batches": 3}}


def photos():
    return Redrawn(IMAGES, lambda rng: {"label": rng.integers(0, 2, len(IMAGES), dtype="int32")}, batch_size=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with dropout and dropped labels, so that all kinds of generator are drawn from; compiled once for all.

    ``renew()`` gives it the state that it began with.
    """
    conditions, stem = (timestep(), class_label(3)), partial(conv, filters=4)
    network = build_unet((8, 8, 3), (4,), block=BLOCK, stem=stem, conditions=conditions)
    made = DiffusionModel(network, null={"label": 2}, drop=0.3, ema=0.9, seed=0)
    made.compile(keras.optimizers.AdamW(1e-2, global_clipnorm=1.0))
    start = tmp_path_factory.mktemp("start") / "start.keras"
    made.save(start)
    return SimpleNamespace(model=made, renew=lambda: made.load_weights(start))


def run(model, folder, cuts=()):
    """Train for three epochs of three batches, cut off after so many batches each time."""
    for cut in (*cuts, 10**6):
        keras.utils.set_random_seed(1)
        data, held = photos(), (IMAGES[:4], {"label": np.zeros(4, "int32")})
        checkpoint = Checkpoint(folder, data, every=1e9)
        options = {"callbacks": [checkpoint, Cut(cut, checkpoint)], **checkpoint.resume(model)}
        try:
            history = model.fit(data, epochs=3, verbose=0, validation_data=held, **options)
        except KeyboardInterrupt:
            keras.utils.set_random_seed(cut)  # nothing may hang on what is left of the generators, or in the model:
            model.network.set_weights([np.zeros(w.shape) for w in model.network.weights])
    assert data._epoch >= 2  # each epoch had an order of its own
    return _numbers(model), checkpoint, history.history["val_loss"]


def test_a_run_cut_off_anywhere_ends_as_one_that_never_was(trained, tmp_path):
    # In the first epoch, and then in the second; each time a batch that had been trained on is lost.
    whole, _, losses = run(trained.model, tmp_path / "whole")
    trained.renew()
    cut, checkpoint, _ = run(trained.model, tmp_path / "cut", cuts=[2, 3])
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a, b)
    assert checkpoint.settings["losses"]["val_loss"] == losses
    assert checkpoint.position == {"epoch": 3, "batch": 0, "step": 9, "batches": 3}
    best = int(np.argmin(losses)) + 1
    assert checkpoint.settings["best"]["epoch"] == best
    for name, epoch in ((runs.MODEL, 3), (runs.BEST, best)):
        assert int(keras.saving.load_model(tmp_path / "cut" / name).optimizer.iterations) == 3 * epoch


def _numbers(model):
    variables = [*model.weights, *model.optimizer.variables, *model._generators()]
    return [keras.ops.convert_to_numpy(v) for v in variables]


def test_data_that_changed_go_on_with_the_next_epoch(tmp_path):
    class Kept(Checkpoint):
        """A checkpoint after two of three batches, without a model."""

        def __init__(self, data=None):
            super().__init__(tmp_path / "none", data)
            self.position = {"epoch": 5, "batch": 2, "step": 17, "batches": 3}

    few, model = Redrawn(IMAGES[:4], lambda rng: {}, batch_size=4), SimpleNamespace(process=(0, 1), meet=lambda: None)
    assert Kept(photos()).resume(model) == {"initial_epoch": 5, "initial_batch": 2, "shuffle": False}
    assert Kept().resume(model) == {"initial_epoch": 5}
    with pytest.warns(UserWarning, match="1 batches an epoch now and had 3"):
        assert Kept(few).resume(model)["initial_epoch"] == 6


def test_states_of_other_generators_are_refused_before_they_are_read(trained):
    with pytest.raises(ValueError, match=r"holds states \(99, 2\) of random generators; the model has"):
        trained.model.load_own_variables({"generators": np.zeros((99, 2), "int64")})


# ---- files: what is kept does not depend on the model, so one that is quick to save stands for it -------------------


class Quick:
    """A stand-in for a model, whose file is an archive of some bytes."""

    def save(self, path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights", bytes(range(256)) * 100)


def kept(folder):
    return sorted(path.name for path in (folder / runs.CHECKPOINTS).iterdir())


@pytest.fixture
def folder(tmp_path):
    for name in "123":
        runs.save(tmp_path, Quick(), STATE | {"name": name}, name=name, keep=2, best=name == "1")
    return tmp_path


def test_the_last_few_are_kept_and_the_best(folder):
    assert kept(folder) == ["2", "3"] and runs.newest(folder).name == "3"
    assert runs.read_settings(folder)["name"] == "3"
    assert (folder / runs.BEST).is_file() and not (folder / runs.BEST).samefile(folder / runs.MODEL)


@pytest.mark.parametrize("moment", ["save", "write_settings", "publish", "_drop", "_to_disk"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(folder, moment, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    model = Quick()
    monkeypatch.setattr(*((model, "save") if moment == "save" else (runs, moment)), killed)
    with pytest.raises(KeyboardInterrupt):
        runs.save(folder, model, STATE, name="4", keep=1)
    monkeypatch.undo()
    assert runs.newest(folder).name == ("4" if moment in ("publish", "_drop") else "3")
    with zipfile.ZipFile(folder / runs.MODEL) as archive:
        assert archive.testzip() is None
    runs.tidy(folder)
    runs.save(folder, Quick(), STATE, name="5", keep=1)
    assert kept(folder) == ["5"] and not list(folder.rglob(runs.PART + "*"))


@pytest.mark.parametrize("harm", [lambda data: data[:-200], lambda data: data.replace(bytes(range(9)), bytes(9), 1)])
def test_a_broken_checkpoint_is_set_aside_with_a_warning(folder, harm):
    file = folder / runs.CHECKPOINTS / "3" / runs.MODEL
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(harm(data))
    with pytest.warns(UserWarning, match="3 cannot be read"):
        runs.tidy(folder)
    assert runs.newest(folder).name == "2" and kept(folder) == ["2", "broken.3"]


def test_a_folder_that_vanished_is_not_made_again(folder):
    with pytest.raises(FileNotFoundError, match="no checkpoint could be written to .*gone.*no checkpoint yet"):
        runs.save(folder / "gone", Quick(), STATE, name="1", keep=1)
    assert not (folder / "gone").exists()


@pytest.mark.skipif(os.name != "posix", reason="the limit that stands for a full disk is POSIX's")
def test_a_full_disk_is_told_and_costs_nothing(folder):
    import resource

    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="no checkpoint could be written.*last good checkpoint is .*3"):
            runs.save(folder, model, STATE, name="4", keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(folder) == ["2", "3"] and runs.newest(folder).name == "3"


def test_file_systems_without_hard_links_get_copies(folder, monkeypatch):
    def refused(*args):
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    runs.save(folder, Quick(), STATE, name="4", keep=1, best=True)
    assert (folder / runs.BEST).read_bytes() == (folder / runs.CHECKPOINTS / "4" / runs.MODEL).read_bytes()


def test_data_that_cannot_be_read_are_told_and_cost_nothing(trained, tmp_path):
    class Torn(Redrawn):
        def __getitem__(self, index):
            if index == 2:
                raise OSError("cats/one.png is truncated")
            return super().__getitem__(index)

    trained.renew()
    data = Torn(IMAGES, lambda rng: {"label": np.zeros(10, "int32")}, batch_size=4)
    checkpoint = Checkpoint(tmp_path, data, every=0.0)
    with pytest.raises(OSError, match="one.png is truncated"):
        trained.model.fit(data, verbose=0, callbacks=[checkpoint], **checkpoint.resume(trained.model))
    # torch's loop asks for a batch before it tells that one begins, the others after.
    assert Checkpoint(tmp_path, photos()).resume(trained.model)["initial_batch"] in (1, 2)
    assert int(trained.model.optimizer.iterations) in (1, 2)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_misuse_is_told(folder):
    network = build_unet((8, 8, 3), (4,))
    model = DiffusionModel(network, seed=0)
    with pytest.raises(ValueError, match="must be compiled"):
        Checkpoint(folder).resume(model)
    model.compile("sgd")
    with pytest.raises(ValueError, match="is no .keras file"):
        Checkpoint(folder).resume(model)
    with pytest.raises(ValueError, match="holds checkpoints"):
        model.fit(IMAGES, verbose=0, callbacks=[Checkpoint(folder)])
    with pytest.raises(ValueError, match="initial_batch: received 2 of data that are no"):
        model.fit(IMAGES, verbose=0, initial_batch=2)
    with pytest.raises(ValueError, match="initial_batch: received 3 of 3"):
        model.fit(Redrawn(IMAGES, lambda rng: {}, batch_size=4), verbose=0, initial_batch=3)
    with pytest.raises(ValueError, match="set_epoch"):
        Checkpoint(folder, IMAGES)
    with pytest.raises(ValueError, match="keep"):
        Checkpoint(folder, keep=0)
    for options in ({"every": -5}, {"every": "5"}, {"every": np.nan}):
        with pytest.raises(ValueError, match="every must be seconds"):
            Checkpoint(folder, **options)
    for options in ({"every": 0}, {"limit": np.nan}, {"patience": -5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be above 0"):
            LossGuard(IMAGES, **options)


@pytest.mark.filterwarnings("ignore:Skipping nested container", "ignore:Skipping variable loading")
def test_a_checkpoint_of_a_model_that_means_something_else_is_refused(trained, tmp_path):
    options, adam = {"null": {"label": 2}, "drop": 0.3, "ema": 0.9}, lambda rate=1e-2: keras.optimizers.AdamW(rate)
    decay = keras.optimizers.schedules.CosineDecay(1e-2, 9)
    changes = [
        ("another schedule", {"schedule": cosine()}, adam()),
        ("another prediction", {"prediction": velocity}, adam()),
        ("another values", {"values": latents}, adam()),
        ("trained with AdamW, and this model is compiled with Adamax", {}, keras.optimizers.Adamax(1e-2)),
        ("(?s)another model .*whereas the saved optimizer", {}, adam(decay)),
    ]
    trained.renew()
    checkpoint = Checkpoint(tmp_path, photos(), every=1e9)
    trained.model.fit(photos(), epochs=1, verbose=0, callbacks=[checkpoint], **checkpoint.resume(trained.model))
    for told, change, optimizer in changes:
        other = DiffusionModel(trained.model.network, **{**options, **change})
        other.compile(optimizer)
        with pytest.raises(ValueError, match=told):
            Checkpoint(tmp_path, photos()).resume(other)
    stem = partial(conv, filters=4)
    wide = build_unet((8, 8, 3), (8,), block=BLOCK, stem=stem, conditions=(timestep(), class_label(3)))
    other = DiffusionModel(wide, **options)
    other.compile(adam())
    with pytest.raises(ValueError, match="another model than this one"):
        Checkpoint(tmp_path).resume(other)
    again = DiffusionModel(trained.model.network, **options)
    again.compile(adam())
    assert Checkpoint(tmp_path, photos()).resume(again)["initial_epoch"] == 1
    assert int(again.optimizer.iterations) == 3


def test_epochs_cut_short_by_fit_are_refused(trained, tmp_path):
    data = photos()
    checkpoint = Checkpoint(tmp_path, data)
    with pytest.raises(ValueError, match="steps_per_epoch=2 of data of 3 batches.*leave it out"):
        trained.model.fit(
            data, steps_per_epoch=2, verbose=0, callbacks=[checkpoint], **checkpoint.resume(trained.model)
        )


# ---- losses that go wrong -------------------------------------------------------------------------------------------


class Explode(keras.callbacks.Callback):
    """Set a learning rate that makes the update of a batch, counted from 0, one too far."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 1e30 if batch == 1 else 1e-3


def test_an_exploding_loss_stops_training_and_restores_the_last_good_state(trained, tmp_path):
    model, data = trained.model, photos()
    checkpoint = Checkpoint(tmp_path, data, every=1e9)
    guard, place = LossGuard(data[0], checkpoint), checkpoint.resume(model)
    checkpoint.set_model(model)
    tmp_path.mkdir(exist_ok=True)
    checkpoint._save()
    good = _numbers(model)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 3; .*last good checkpoint is .*000000000-00000"):
        model.fit(data, epochs=2, verbose=0, callbacks=[Explode(), guard, checkpoint], **place)
    for a, b in zip(good, _numbers(model), strict=True):
        np.testing.assert_array_equal(a, b)
    model.network.weights[0].assign(np.full(model.network.weights[0].shape, np.nan))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        checkpoint._save()
    assert kept(tmp_path) == ["000000000-00000"]
    # The loss of zero, of which the guard knows: noise has the mean square 1.
    assert guard.zero == pytest.approx(1.0, abs=5 * np.sqrt(2 / (8 * data[0][0].size)))


def test_a_run_that_was_cut_off_after_its_last_epoch_has_nothing_left_to_do(trained, tmp_path):
    for _ in range(2):
        data = photos()
        checkpoint = Checkpoint(tmp_path, data, every=1e9)
        callbacks = [LossGuard(data[0], checkpoint), checkpoint]
        trained.model.fit(data, epochs=1, verbose=0, callbacks=callbacks, **checkpoint.resume(trained.model))
    assert len(kept(tmp_path)) == 1


def test_the_loss_of_zero_is_the_mean_square_of_what_is_predicted():
    model = DiffusionModel(build_unet((8, 8, 3), (4,)), prediction=clean, seed=0)
    model.compile("sgd")
    pixels = IMAGES / 127.5 - 1
    assert loss_of_zero(model, (IMAGES, {})) == pytest.approx(np.mean(pixels**2), rel=1e-5)


def watch(losses, **options):
    """Show a guard the running means of losses, as Keras does; the loss of predicting zero is 1."""
    guard = LossGuard(None, **options)
    guard.zero = 1.0
    guard.set_model(SimpleNamespace(first_batch=0, steps_per_execution=1))
    guard.on_epoch_begin(0)
    for batch in range(len(losses)):
        guard.on_train_batch_begin(batch)
        guard.on_train_batch_end(batch, {"loss": np.float32(np.mean(losses[: batch + 1]))})
    guard.on_epoch_end(0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 101.0])
@pytest.mark.parametrize("batch", [1, 3, 4, 10])
def test_the_batch_whose_loss_is_bad_is_named(bad, batch):
    losses = np.full(12, 0.5)
    losses[batch] = bad
    with pytest.raises(FloatingPointError, match=f"epoch 1, batch {batch + 1};"):
        watch(losses, every=4)


def test_a_network_may_begin_far_off():
    watch([101.0, 99.0, 101.0], every=1)
    for bad in (np.nan, np.inf, 1e6):  # far, but not as far as this
        with pytest.raises(FloatingPointError, match="batch 1;"):
            watch([bad], every=4)


def test_a_loss_that_stays_at_that_of_zero_is_warned_of_once():
    with pytest.warns(UserWarning, match="nothing is being learned") as told:
        watch(np.full(40, 0.99), every=4, patience=9)
    assert len(told) == 1
    watch(np.full(8, 0.99), every=4, patience=9)
    watch(np.linspace(1.0, 0.5, 40), every=4, patience=30)
