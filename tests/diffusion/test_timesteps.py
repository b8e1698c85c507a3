import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import cosine, linear, logit_normal
from unet_keras.diffusion.timesteps import drawn

from .helpers import losses, pixels, standing

IMAGES = pixels(8)
DENSITY = np.array([0.0, 1.0, 0.0, 5.0, 2.0, 0.0])


def counts(density, count=8000, total=6):
    t = drawn(total, density, count, seed=keras.random.SeedGenerator(3))
    assert keras.backend.standardize_dtype(t.dtype) == "int32" and t.shape == (count,)
    return np.bincount(ops.convert_to_numpy(t), minlength=total)


def test_timesteps_are_drawn_as_often_as_they_should():
    for density in (DENSITY, 1e-300 * DENSITY, 3e307 * DENSITY):
        share = counts(density) / 8000
        np.testing.assert_allclose(share, DENSITY / 8, rtol=0, atol=0.02)  # 4 standard deviations
        assert (share[DENSITY == 0] == 0).all()


def test_without_a_density_all_are_drawn_alike():
    np.testing.assert_allclose(counts(None) / 8000, 1 / 6, rtol=0, atol=0.017)
    np.testing.assert_allclose(counts(np.ones(6)) / 8000, 1 / 6, rtol=0, atol=0.017)


@pytest.mark.parametrize("only", [0, 5])
def test_the_first_and_the_last_can_be_all_there_is(only):
    assert counts(np.eye(6)[only])[only] == 8000


@pytest.mark.parametrize(("u", "first"), [(0.0, 1), (0.125, 3), (1 - 2**-24, 4)])
def test_what_is_never_to_be_drawn_is_not_at_the_edges_either(u, first, monkeypatch):
    monkeypatch.setattr(keras.random, "uniform", lambda shape, **_: ops.full(shape, u))
    assert counts(DENSITY)[first] == 8000


def test_logit_normal_is_as_diffusers_draws_it():
    training = pytest.importorskip("diffusers.training_utils")
    torch = pytest.importorskip("torch")
    for mean, std in ((0.0, 1.0), (1.3, 1.2), (-2.0, 0.4)):
        generator = torch.Generator().manual_seed(0)
        u = training.compute_density_for_timestep_sampling(
            "logit_normal", 200_000, logit_mean=mean, logit_std=std, generator=generator
        )
        expected = np.histogram(u.numpy(), bins=np.linspace(0, 1, 11))[0] / 200_000
        found = logit_normal(cosine(), mean, std)
        assert found.shape == (1000,) and abs(found.sum() - 1) < 1e-12
        np.testing.assert_allclose(found.reshape(10, 100).sum(axis=1), expected, rtol=0, atol=0.005)


@pytest.mark.parametrize("wrong", [{"std": 0.0}, {"std": -1.0}, {"std": np.inf}, {"std": np.nan}, {"mean": np.nan}])
def test_logit_normal_refuses(wrong):
    with pytest.raises(ValueError, match="mean must be finite, and std finite and above 0"):
        logit_normal(linear(), **wrong)


def test_training_and_validation_draw_by_the_density():
    """Their loss counts at a single timestep alone, which is drawn always or never."""
    once = np.eye(1000)[417]
    for density, drawn_there in ((once, True), (1.0 - once, False)):
        model = standing(weight=once, density=density)
        (loss,) = losses(model, IMAGES, 1)
        found = model.evaluate(IMAGES, verbose=0, return_dict=True)["loss"]
        assert (loss > 0.1) == drawn_there and (found > 0.1) == drawn_there
        assert (loss == 0) != drawn_there and (found == 0) != drawn_there
