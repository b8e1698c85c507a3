"""Predictions: the clean image comes back from every target; the loss weights are the paper's."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import (
    Prediction,
    clean,
    cosine,
    flow,
    flow_velocity,
    linear,
    min_snr,
    noise,
    velocity,
    zero_terminal_snr,
)

PREDICTIONS = {"noise": noise, "velocity": velocity, "clean": clean, "flow_velocity": flow_velocity}
SCHEDULES = {"linear": linear(), "cosine": cosine(), "flow": flow(), "zero_snr": zero_terminal_snr(linear())}
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_estimate_of_the_target_is_the_clean_image(name, schedule):
    prediction, schedule = PREDICTIONS[name], SCHEDULES[schedule]
    steps = len(schedule) - (prediction is noise and schedule.alpha[-1] == 0)  # without image, noise says nothing of it
    alpha, sigma = schedule.alpha[:steps, None], schedule.sigma[:steps, None]
    image, eps = RANDOM.standard_normal((2, steps, 16))
    x = alpha * image + sigma * eps
    estimate = prediction.estimate(x, prediction.target(image, eps, alpha, sigma), alpha, sigma)
    np.testing.assert_allclose(estimate, image, atol=1e-9)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_estimate_of_the_target_on_the_backend(name):
    prediction, schedule = PREDICTIONS[name], cosine()
    t = [0, 300, 900]
    alpha, sigma = (ops.convert_to_tensor(v[t][:, None], "float32") for v in (schedule.alpha, schedule.sigma))
    image, eps = (ops.convert_to_tensor(v, "float32") for v in RANDOM.standard_normal((2, 3, 16)))
    target = prediction.target(image, eps, alpha, sigma)
    estimate = prediction.estimate(alpha * image + sigma * eps, target, alpha, sigma)
    np.testing.assert_allclose(ops.convert_to_numpy(estimate), ops.convert_to_numpy(image), atol=1e-5)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_estimate_is_affine_in_the_output(name):
    x, first, second = RANDOM.standard_normal((3, 5))
    ask = [PREDICTIONS[name].estimate(x, output, 0.8, 0.6) for output in (first, second, (first + second) / 2)]
    np.testing.assert_allclose(ask[2], (ask[0] + ask[1]) / 2, rtol=1e-12)


def diffusers_scheduler(schedule, **options):
    """DDIM of diffusers in float64, at our schedule's numbers."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **options)
    scheduler.alphas_cumprod = torch.tensor(schedule.alpha**2)
    return scheduler, torch


def test_velocity_is_that_of_diffusers():
    schedule = linear()
    scheduler, torch = diffusers_scheduler(schedule)
    image, eps = RANDOM.standard_normal((2, 1000, 4))
    expected = scheduler.get_velocity(torch.tensor(image), torch.tensor(eps), torch.arange(1000)).numpy()
    ours = velocity.target(image, eps, schedule.alpha[:, None], schedule.sigma[:, None])
    np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("name, theirs", [("noise", "epsilon"), ("velocity", "v_prediction"), ("clean", "sample")])
def test_estimate_is_that_of_diffusers(name, theirs):
    schedule = linear()
    scheduler, torch = diffusers_scheduler(schedule, prediction_type=theirs)
    scheduler.set_timesteps(10)
    x, output = RANDOM.standard_normal((2, 4))
    for t in (0, 400, 900):
        step = scheduler.step(torch.tensor(output), t, torch.tensor(x))
        ours = PREDICTIONS[name].estimate(x, output, schedule.alpha[t], schedule.sigma[t])
        np.testing.assert_allclose(ours, step.pred_original_sample.numpy(), rtol=1e-9)


PAPER = {  # Hang et al. 2023, section 3.4
    "noise": lambda snr: np.minimum(snr, 5) / snr,
    "velocity": lambda snr: np.minimum(snr, 5) / (snr + 1),
    "clean": lambda snr: np.minimum(snr, 5),
}


@pytest.mark.parametrize("name", PAPER)
def test_min_snr_is_the_papers(name):
    np.testing.assert_allclose(min_snr(linear(), PREDICTIONS[name]), PAPER[name](linear().snr), rtol=1e-9)


def test_min_snr_of_flow_weighs_the_error_of_the_image():
    schedule = flow()  # x_0 = x - s u, so that an error e in u is one of s e in the image
    np.testing.assert_allclose(min_snr(schedule, flow_velocity), np.minimum(schedule.snr, 5) * schedule.sigma**2)


@pytest.mark.parametrize("name, end", [("noise", 1), ("velocity", 0), ("clean", 0), ("flow_velocity", 0)])
def test_min_snr_without_any_image_is_the_limit(name, end):
    table = min_snr(zero_terminal_snr(linear()), PREDICTIONS[name])
    assert table[-1] == end and np.isfinite(table).all() and (table >= 0).all() and table.shape == (1000,)


def test_min_snr_takes_gamma():
    np.testing.assert_allclose(min_snr(linear(), clean, 1.5).max(), 1.5)
    for gamma in (0, -1):
        with pytest.raises(ValueError, match="gamma must be positive"):
            min_snr(linear(), clean, gamma)


@keras.saving.register_keras_serializable("tests")
def score_target(clean, noise, alpha, sigma):
    return -noise / sigma


@keras.saving.register_keras_serializable("tests")
def score_estimate(x, output, alpha, sigma):
    return (x + sigma**2 * output) / alpha


@pytest.mark.parametrize("prediction", [*PREDICTIONS.values(), Prediction(score_target, score_estimate)])
def test_prediction_is_saved_by_the_names_of_its_functions(prediction):
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(prediction))
    assert read == prediction and read.target is prediction.target and read.estimate is prediction.estimate
