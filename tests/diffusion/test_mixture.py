"""Sampling where the best network is known: data from a Gaussian mixture must come out with its mean and covariance.

At noise level (alpha, sigma) a mixture of N(mu_k, s_k^2 I) is one of N(alpha mu_k, v_k I), with
v_k = (alpha s_k)^2 + sigma^2, and the best noise prediction is -sigma times the gradient of its logarithm.
"""

import numpy as np
import pytest
from keras import ops

from unet_keras import cosine, ddim, ddpm, flow_velocity, linear, noise, trailing, velocity
from unet_keras.diffusion.schedules import flow

from .helpers import normal, sampled

SHARE = np.array([0.5, 0.3, 0.2])
CENTRES = np.array([[0.8, 0.6], [-0.7, 0.5], [0.1, -0.9]])
SPREAD = np.array([0.1, 0.2, 0.05])
COUNT = 2500

MEAN = SHARE @ CENTRES
COVARIANCE = (SHARE[:, None] * CENTRES).T @ CENTRES - np.outer(MEAN, MEAN) + (SHARE @ SPREAD**2) * np.eye(2)


def best_clean(x, alpha, sigma):
    """E[x_0 | x] for images (N, 1, 1, 2)."""
    share, centres, spread = (ops.convert_to_tensor(v.astype("float32")) for v in (SHARE, CENTRES, SPREAD))
    v = ops.square(alpha * spread) + ops.square(sigma)  # (N, 1, 1, K)
    off = x[..., None, :] - alpha[..., None] * centres  # (N, 1, 1, K, 2)
    logits = ops.log(share) - ops.log(v) - ops.sum(ops.square(off), axis=-1) / (2 * v)
    pull = (alpha * ops.square(spread) / v)[..., None] * off
    return ops.sum(ops.softmax(logits, axis=-1)[..., None] * (centres + pull), axis=-2)


def said(prediction):
    """The best network, in what it is to predict."""
    known = {
        noise: lambda x, d, alpha, sigma: (x - alpha * d) / sigma,
        velocity: lambda x, d, alpha, sigma: (alpha * x - d) / sigma,
        flow_velocity: lambda x, d, alpha, sigma: (x - alpha * d) / sigma - d,
    }[prediction]
    return lambda x, alpha, sigma: known(x, best_clean(x, alpha, sigma), alpha, sigma)


def standard_errors(x):
    """Of the mean and of the covariance of samples (N, 2)."""
    off = x - x.mean(axis=0)
    return np.sqrt(x.var(axis=0) / len(x)), np.sqrt((off[:, :, None] * off[:, None]).var(axis=0) / len(x))


def shares(x):
    """How many of the samples lie nearest to each centre."""
    nearest = ((x[:, None] - CENTRES) ** 2).sum(-1).argmin(-1)
    return np.bincount(nearest, minlength=3) / len(x)


CASES = {
    "ddpm": (ddpm, 1000, linear(), noise),
    "ddpm_large": (lambda points: ddpm(points, variance=1.0), 500, linear(), noise),
    "ddim": (ddim, 200, linear(), noise),
    "ddim_half": (lambda points: ddim(points, eta=0.5), 200, cosine(), noise),
    "velocity": (ddim, 200, linear(), velocity),
    "flow": (ddim, 200, flow(), flow_velocity),
}


@pytest.mark.parametrize("case", CASES)
def test_mixture_comes_out_with_its_mean_and_covariance(case):
    sampler, steps, schedule, prediction = CASES[case]
    rows = sampler(schedule.points(trailing(len(schedule), steps)))
    rng = np.random.default_rng(5)

    class Fresh:
        def __getitem__(self, n):
            return rng.standard_normal((COUNT, 1, 1, 2), dtype="float32")

    start = normal(COUNT, 1, 1, 2, seed=4)
    x = sampled(rows, said(prediction), schedule, start, Fresh(), prediction=prediction)[:, 0, 0]
    of_mean, of_covariance = standard_errors(x)
    # 4.5 standard errors, and what the steps cost for being finite: see below, at most 1.3 % of a spread.
    assert (np.abs(x.mean(axis=0) - MEAN) < 4.5 * of_mean + 0.002).all()
    assert (np.abs(np.cov(x.T) - COVARIANCE) < 4.5 * of_covariance + 0.002).all()
    assert (np.abs(shares(x) - SHARE) < 4.5 * np.sqrt(SHARE * (1 - SHARE) / COUNT) + 0.002).all()


def gaussian_after(rows, mean, spread):
    """Mean and spread that rows make of N(0, 1) with the best network for N(mean, spread^2): everything is linear."""
    m, v = 0.0, 1.0
    for row in rows:
        _, alpha, sigma = row.point
        gain = alpha * spread**2 / ((alpha * spread) ** 2 + sigma**2)  # D = mean + gain (x - alpha mean)
        factor = row.a[0] + row.b[0] * gain
        m, v = factor * m + row.b[0] * (mean - gain * alpha * mean), factor**2 * v + row.c**2
    return m, np.sqrt(v)


@pytest.mark.parametrize("name", ["ddim", "ddim_half", "ddpm", "ddpm_large"])
def test_error_of_finite_steps_shrinks_in_proportion(name):
    sampler, _, schedule, _ = CASES[name]
    errors = []
    for steps in (20, 100, 500):
        mean, spread = gaussian_after(sampler(schedule.points(trailing(1000, steps))), 0.4, 0.3)
        errors.append(abs(mean - 0.4) + abs(spread - 0.3))
    assert errors[1] < errors[0] / 1.5 and errors[2] < errors[1] / 3 and errors[2] < 0.01, errors


def test_more_noise_a_step_needs_more_steps():
    """With few steps the lower bound on the variance makes too narrow a Gaussian, the upper too wide a one."""
    points = linear().points(trailing(1000, 20))
    small, large = (gaussian_after(ddpm(points, variance=variance), 0.4, 0.3)[1] for variance in (0.0, 1.0))
    assert small < 0.3 < large
