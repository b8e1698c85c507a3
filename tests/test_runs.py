"""Where the command line's runs lie, how long they last, and at what learning rate."""

import keras
import numpy as np
import pytest

from unet_keras import DiffusionModel, Redrawn, build_unet, runs
from unet_keras.cli.pace import Deadline, LearningRate

IMAGES = np.zeros((8, 8, 8, 3), "uint8")


def model():
    made = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
    made.compile(keras.optimizers.SGD(1.0))
    return made


def test_the_learning_rate_is_that_of_the_batch_and_counts_on(tmp_path):
    trained, asked, data = model(), [], Redrawn(IMAGES, lambda rng: {}, batch_size=2)

    def rate(step):
        asked.append(step)
        return 0.0

    before = trained.get_weights()
    place = {"initial_epoch": 1, "initial_batch": 3}
    trained.fit(data, epochs=1, verbose=0, callbacks=[LearningRate(rate, 4)])
    trained.fit(data, epochs=4, verbose=0, callbacks=[LearningRate(rate, 4)], **place)
    assert asked == [*range(4), *range(7, 16)]
    changed = [
        w.path for w, a in zip(trained.weights, before, strict=True) if (keras.ops.convert_to_numpy(w) != a).any()
    ]
    assert [path.split("/")[-1] for path in changed] == ["ema_step"]


def test_a_deadline_ends_training_and_the_rest_of_an_epoch_does_not_put_it_off():
    data, deadline = Redrawn(IMAGES, lambda rng: {}, batch_size=4), Deadline(0.5)
    history = model().fit(data, epochs=1000, verbose=0, callbacks=[deadline], initial_batch=1)
    assert len(history.epoch) < 1000
    assert deadline.passed() >= 1
    history = model().fit(data, epochs=1000, verbose=0, callbacks=[deadline], initial_batch=1)
    assert len(history.epoch) == 1


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        runs.read_settings(tmp_path)
