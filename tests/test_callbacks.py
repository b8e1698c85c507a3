"""SampleGrid draws while a model trains, and leaves the training as it was."""

import numpy as np
import pytest
from PIL import Image

from unet_keras import DiffusionModel, SampleGrid, build_unet, class_label, timestep


def model():
    network = build_unet((8, 8, 3), (4,), conditions=(timestep(), class_label(3)))
    made = DiffusionModel(network, null={"label": 2}, drop=0.1, seed=0)
    made.compile("adam")
    return made


IMAGES, LABELS = np.zeros((4, 8, 8, 3), "uint8"), np.array([0, 1, 0, 1])


def test_draws_every_few_epochs_and_at_the_end(tmp_path):
    grid = SampleGrid([0, 1], tmp_path / "grids", every=2, steps=2, guidance=2.0, captions=["nought", "one"])
    model().fit(IMAGES, LABELS, epochs=3, verbose=0, callbacks=[grid])
    assert sorted(p.name for p in (tmp_path / "grids").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]
    with Image.open(tmp_path / "grids" / "epoch_0003.png") as picture:
        assert picture.width > picture.height > 64


def test_the_same_noise_each_time_so_that_grids_compare(tmp_path):
    frozen = model()
    frozen.optimizer.learning_rate = 0.0
    frozen.fit(IMAGES, LABELS, epochs=2, verbose=0, callbacks=[SampleGrid([0], tmp_path, steps=2)])
    with Image.open(tmp_path / "epoch_0001.png") as a, Image.open(tmp_path / "epoch_0002.png") as b:
        assert (np.asarray(a) == np.asarray(b)).all() and len(np.unique(a)) > 2


def test_training_is_the_same_with_and_without(tmp_path):
    plain, drawn = model(), model()
    drawn.set_weights(plain.get_weights())
    for trained, callbacks in ((plain, []), (drawn, [SampleGrid([0], tmp_path, steps=2)])):
        trained.fit(IMAGES, LABELS, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    for a, b in zip(plain.get_weights(), drawn.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_every_must_be_an_epoch_or_more():
    with pytest.raises(ValueError, match="every"):
        SampleGrid(4, "grids", every=0)
