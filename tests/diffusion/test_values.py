"""Pixels and latents: what goes in, what comes out, and that a model remembers which."""

import keras
import numpy as np
import pytest
from helpers import normal, randomized, tiny_unet

from unet_keras import DiffusionModel, Prediction, Values, clipped, dynamic, latents, pixels, unclipped


def model_of(values):
    model = DiffusionModel(randomized(tiny_unet()), values=values, ema=None, seed=0)
    model.compile(keras.optimizers.SGD(1e-3))
    return model


def test_latents_know_no_bounds_and_come_out_as_floats():
    model = model_of(latents)
    wide = 9 * normal(4, 8, 8, 3)
    assert np.isfinite(model.fit(wide, verbose=0).history["loss"][0])
    images = model.generate(2, steps=2, seed=0)
    assert images.dtype == np.float32 and np.abs(images).max() > 1.5
    held = model.generate(2, steps=2, seed=0, threshold=clipped)
    assert np.abs(held).max() <= 1 + 1e-6


def test_pixels_are_held_to_theirs():
    model = model_of(pixels)
    with pytest.raises(ValueError, match=r"float32 images must lie in \[-1, 1\]"):
        model.fit(9 * normal(4, 8, 8, 3), verbose=0)
    assert model.generate(2, steps=2, seed=0).dtype == np.uint8


def test_a_threshold_comes_back_or_cannot_be_saved(tmp_path):
    model = model_of(Values(True, dynamic(0.9)))
    model.save(tmp_path / "model.keras")
    back = keras.saving.load_model(tmp_path / "model.keras")
    assert back.values == model.values and back.values.threshold is dynamic(0.9)

    def tanh(x):  # which Keras would load its own function for
        return keras.ops.clip(x, -0.5, 0.5)

    with pytest.raises(ValueError, match="tanh.*cannot be saved: decorate it"):
        model_of(Values(True, tanh)).save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match="tanh.*cannot be saved: decorate it"):
        Prediction(tanh, tanh).get_config()
    with pytest.raises(ValueError, match="values must be a Values"):
        model_of(clipped)


def test_latents_are_floats_without_nan():
    model = model_of(latents)
    with pytest.raises(ValueError, match="images must be floats, got uint8"):
        model.fit(np.zeros((4, 8, 8, 3), "uint8"), verbose=0)
    bad = normal(4, 8, 8, 3)
    bad[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="images hold NaN, in 1 of 4, e.g. number 2"):
        model.fit(bad, verbose=0)


def test_pixels_may_go_unclipped():
    model = model_of(Values(True, unclipped))
    same = {"steps": 3, "seed": 0}
    plain, told = model.generate(2, **same), model_of(pixels).generate(2, threshold=unclipped, **same)
    np.testing.assert_array_equal(plain, told)
    assert (plain != model_of(pixels).generate(2, **same)).any()


@pytest.mark.parametrize("values", [pixels, latents, Values(True, unclipped)])
def test_a_saved_model_remembers(values, tmp_path):
    model_of(values).save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").values == values
