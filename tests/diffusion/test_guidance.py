"""Guidance: what it computes, on a network of two classes known in closed form, and what it does not recompile."""

import keras
import numpy as np
import pytest
from keras import ops

from unet_keras import DiffusionModel, classifier_free, clipped, ddpm, dynamic, linear, rescaled, unclipped

from .helpers import by_hand, closed_form, normal, spied

SCHEDULE = linear()
CENTRES = np.array([0.7, -0.5, 0.1], "float32")  # of both classes, and of all images together
NONE = 2


def eps(x, alpha, sigma, centre):
    return sigma * (x - alpha * centre) / (0.16 * alpha**2 + sigma**2)


def by_class(x, alpha, sigma, label):
    return eps(x, alpha, sigma, ops.take(ops.convert_to_tensor(CENTRES), label)[:, None, None, None])


def model():
    net = closed_form(by_class, SCHEDULE, (1, 1, 2), label=True)
    return DiffusionModel(net, SCHEDULE, null={"label": NONE}, drop=0.1, ema=None, seed=0)


def spread(x):
    return x.std(axis=(1, 2, 3), keepdims=True)


def rescaled_by_hand(phi):
    def combine(conditional, unconditional, scale):
        guided = unconditional + scale * (conditional - unconditional)
        return phi * guided * spread(conditional) / spread(guided) + (1 - phi) * guided

    return combine


def plain_by_hand(conditional, unconditional, scale):
    return (1 - scale) * unconditional + scale * conditional


LABELS = np.array([0, 1, 1, 0])
NOISE = normal(11, 4, 1, 1, 2, seed=3)


def expected(scale, combine, threshold):
    """Two separate calls of the network in NumPy."""
    centre = CENTRES[LABELS].astype("float64")[:, None, None, None]

    def clean(x, point):
        _, alpha, sigma = point
        outputs = eps(x, alpha, sigma, centre), eps(x, alpha, sigma, float(CENTRES[NONE]))
        return threshold((x - sigma * combine(*outputs, scale)) / alpha)

    rows = ddpm(SCHEDULE.points(np.arange(999, 0, -100)))
    return by_hand(rows, NOISE[0], NOISE[1:], clean)


def guided(scale, **options):
    options = {
        "sampler": ddpm,
        "steps": 10,
        "spacing": lambda total, steps: np.arange(999, 0, -100),
        "noise": NOISE,
        **options,
    }
    *_, frame = model().denoising(LABELS, guidance=scale, **options)
    return ops.convert_to_numpy(frame.x)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance_is_that_of_two_calls(scale):
    found = guided(scale, threshold=unclipped)
    np.testing.assert_allclose(found, expected(scale, plain_by_hand, lambda d: d), atol=2e-5)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled_guidance_is_that_of_two_calls(phi):
    found = guided(3.0, threshold=unclipped, combine=rescaled(phi))
    np.testing.assert_allclose(found, expected(3.0, rescaled_by_hand(phi), lambda d: d), atol=1e-4)


def test_estimates_are_clipped_unless_told():
    clip = expected(6.0, plain_by_hand, lambda d: np.clip(d, -1, 1))
    np.testing.assert_allclose(guided(6.0), clip, atol=2e-5)
    assert np.abs(clip - guided(6.0, threshold=unclipped)).max() > 0.1


def test_guidance_of_images_made_by_generate():
    images = model().generate(LABELS, steps=50, guidance=1.0, seed=0, progress=False)
    more = model().generate(LABELS, steps=50, guidance=3.0, seed=0, progress=False)
    first = LABELS == 0
    assert more[first].mean() > images[first].mean() > 128 > images[~first].mean() > more[~first].mean()
    np.testing.assert_array_equal(
        model().generate(LABELS, steps=5, guidance=0.0, seed=0, progress=False),
        model().generate(np.full(4, NONE), steps=5, guidance=1.0, seed=0, progress=False),
    )


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescaled_is_that_of_diffusers(phi):
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    conditional, unconditional = normal(2, 3, 8, 8, 4)
    guided = unconditional + 7.5 * (conditional - unconditional)
    expected = reference(torch.tensor(guided), torch.tensor(conditional), guidance_rescale=phi).numpy()
    given = (ops.convert_to_tensor(v) for v in (conditional, unconditional))
    np.testing.assert_allclose(ops.convert_to_numpy(rescaled(phi)(*given, 7.5)), expected, atol=1e-5)


def test_rescaled_keeps_the_spread_of_the_conditional():
    conditional, unconditional = (ops.convert_to_tensor(v) for v in normal(2, 3, 8, 8, 4))
    found = ops.convert_to_numpy(rescaled(1.0)(conditional, unconditional, 7.5))
    np.testing.assert_allclose(spread(found), spread(ops.convert_to_numpy(conditional)), rtol=1e-5)


def test_one_call_of_the_network_a_row():
    """A doubled batch with guidance, a plain one without: seen where each row calls Python, or once a trace."""
    net, spy = spied(3)
    guided = DiffusionModel(net, null={"label": 2}, drop=0.1, ema=None)
    spy.seen.clear()
    guided.generate([0, 1, 1], steps=1, guidance=2.0, progress=False)
    assert {shape[0] for shape in spy.seen} == {6}
    spy.seen.clear()
    guided.generate([0, 1, 1], steps=1, guidance=1.0, progress=False)
    assert {shape[0] for shape in spy.seen} == {3}


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="on torch every step is a Python call")
def test_rescaled_guidance_is_compiled_once():
    net, spy = spied(3)
    model = DiffusionModel(net, null={"label": 2}, drop=0.1, ema=None)
    model.generate([0, 1], steps=1, guidance=2.0, combine=rescaled(0.5), progress=False)
    spy.seen.clear()
    model.generate([0, 1], steps=2, guidance=3.0, combine=rescaled(0.5), progress=False)
    assert spy.seen == []


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan")])
def test_rescaled_refuses_phi_outside(phi):
    with pytest.raises(ValueError, match="phi must lie"):
        rescaled(phi)


def test_thresholds():
    x = ops.convert_to_tensor(np.array([-3, -0.5, 2], "float32"))
    assert ops.convert_to_numpy(clipped(x)).tolist() == [-1, -0.5, 1]
    assert unclipped(x) is x
    assert classifier_free(2.0, 1.0, 3.0) == 4


def test_dynamic_threshold_clips_at_a_quantile_of_each_image_and_scales_back():
    """Against NumPy's quantile; an image within [-1, 1] stays as it is."""
    estimate = normal(3, 8, 8, 3) * np.array([0.1, 1.0, 3.0], "float32").reshape(3, 1, 1, 1)
    found = ops.convert_to_numpy(dynamic(0.9)(ops.convert_to_tensor(estimate)))
    for image, expected in zip(found, estimate, strict=True):
        limit = max(np.quantile(np.abs(expected), 0.9), 1.0)
        np.testing.assert_allclose(image, np.clip(expected, -limit, limit) / limit, atol=1e-6)
    np.testing.assert_array_equal(found[0], estimate[0])
    assert np.abs(estimate[2]).max() > 3 and np.abs(found).max() <= 1


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.1, float("nan")])
def test_dynamic_refuses_what_is_no_quantile(quantile):
    with pytest.raises(ValueError, match="quantile must lie"):
        dynamic(quantile)
