"""SampleGrid draws while a model trains, and leaves the training as it was."""

import keras
import numpy as np
import pytest
from PIL import Image

from unet_keras import DiffusionModel, Evaluate, SampleGrid, build_unet, class_label, latents, timestep
from unet_keras.metrics import Report, sampled


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gudance": 2.0}, "options must be those of generate, which takes no gudance"),
        ({"captions": ["one"]}, "captions must be one an image, got 1 for 2 images"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"guidance": -1.0}, "guidance must be 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_told_when_training_begins(options, message, tmp_path):
    trained = model()
    with pytest.raises(ValueError, match=message):
        trained.fit(IMAGES, LABELS, epochs=9, verbose=0, callbacks=[SampleGrid([0, 1], tmp_path, every=9, **options)])
    assert int(trained.optimizer.iterations) == 0


def test_latents_are_no_pictures(tmp_path):
    made = DiffusionModel(build_unet((8, 8, 4), (4,)), values=latents)
    made.compile("adam")
    with pytest.raises(ValueError, match="this model makes latents"):
        made.fit(np.zeros((2, 8, 8, 4), "float32"), verbose=0, callbacks=[SampleGrid(2, tmp_path)])


def test_training_that_is_stopped_ends_with_a_grid(tmp_path):
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(stop.model, "stop_training", True))
    model().fit(IMAGES, LABELS, epochs=9, verbose=0, callbacks=[stop, SampleGrid([0], tmp_path, every=5, steps=2)])
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_0001.png"]


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow's CPU convolves channels last alone")
def test_grids_and_figures_of_channels_first(tmp_path):
    keras.config.set_image_data_format("channels_first")
    try:
        made = DiffusionModel(build_unet((3, 8, 8), (4,)), seed=0)
        made.compile("adam")
        seen = []
        report = sampled(2, lambda images: seen.append(images.shape) or Report({"n": 2.0}, {}), steps=2)
        callbacks = [SampleGrid(2, tmp_path, steps=2), Evaluate(report)]
        made.fit(IMAGES.transpose(0, 3, 1, 2), verbose=0, callbacks=callbacks)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert seen == [(2, 8, 8, 3)] and (tmp_path / "epoch_0001.png").exists()


def test_every_must_be_an_epoch_or_more():
    with pytest.raises(ValueError, match="every must be a whole number"):
        SampleGrid(4, "grids", every=2.5)
    with pytest.raises(ValueError, match="evaluate must be a function"):
        Evaluate("fid")
    with pytest.raises(ValueError, match="every"):
        SampleGrid(4, "grids", every=0)
