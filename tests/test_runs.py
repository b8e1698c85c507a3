"""The run folder's callbacks."""

import keras
import numpy as np
import pytest

from unet_keras import DiffusionModel, build_unet, runs

IMAGES = np.zeros((8, 8, 8, 3), "uint8")


def model():
    made = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
    made.compile(keras.optimizers.SGD(1.0))
    return made


def test_the_learning_rate_is_set_before_each_update_and_counts_on(tmp_path):
    trained, asked = model(), []

    def rate(step):
        asked.append(step)
        return 0.0

    before = trained.get_weights()
    for _ in range(2):
        trained.fit(IMAGES, batch_size=4, epochs=2, verbose=0, callbacks=[runs.LearningRate(rate)])
    assert asked == list(range(8))
    changed = [
        w.path for w, a in zip(trained.weights, before, strict=True) if (keras.ops.convert_to_numpy(w) != a).any()
    ]
    assert [path.split("/")[-1] for path in changed] == ["ema_step"]


def test_a_deadline_ends_training(tmp_path):
    history = model().fit(IMAGES, batch_size=4, epochs=1000, verbose=0, callbacks=[runs.Deadline(0.5)])
    assert len(history.epoch) < 1000


def test_a_crash_while_saving_leaves_the_last_whole_model(tmp_path, monkeypatch):
    trained = model()
    runs.save_model(tmp_path, trained)
    good = (tmp_path / runs.MODEL).read_bytes()

    def broken(path):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(trained, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        runs.save_model(tmp_path, trained)
    assert (tmp_path / runs.MODEL).read_bytes() == good
    runs.load_model(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        runs.read_settings(tmp_path)
    with pytest.raises(ValueError, match="no model"):
        runs.load_model(tmp_path)


def test_the_settings_keep_losses_and_guidance_gap_of_every_epoch(tmp_path):
    settings = {"losses": {}}
    save = runs.SaveRun(tmp_path, settings, every=10)
    for epoch, value in enumerate((0.5, 0.25)):
        save.on_epoch_end(epoch, {"loss": value, "val_loss": 2 * value, "val_guidance_gap": 3 * value, "other": 1.0})
    losses = {"loss": [0.5, 0.25], "val_loss": [1.0, 0.5]}
    assert settings == {"epochs_done": 2, "losses": losses, "guidance_gap": [1.5, 0.75]}
