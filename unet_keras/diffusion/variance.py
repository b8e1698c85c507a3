"""Learned variance: a network of twice the image's channels also says how much noise a sampling step adds.

The first half of the channels is the prediction; the other, v, lies in [-1, 1] or near it and tells where the variance
of a step lies between its bounds (Nichol & Dhariwal 2021, equation 15; Dhariwal & Nichol 2021):
    log variance = f log beta_t + (1 - f) log beta-tilde_t,    f = (v + 1) / 2
It learns by L_vlb, the bound on the images' likelihood, from which the prediction learns nothing (equation 16):
    L_hybrid = L_simple + 0.001 L_vlb
On any schedule: beta_t = sigma_t^2 - (alpha_t / alpha_{t-1})^2 sigma_{t-1}^2 is the noise that q(x_t | x_{t-1}) adds.
"""

from collections.abc import Callable, Sequence
from math import log, pi, sqrt

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.predictions import Prediction
from unet_keras.diffusion.samplers import Row
from unet_keras.diffusion.schedules import Schedule, look_up

VLB_WEIGHT = 0.001
"""The share lambda of L_vlb, in bits, in the loss: that of the paper and of its code."""

HALF_BIN = 1 / 255
"""Half of what lies between two of the 256 values of a pixel, in [-1, 1]."""


def learned(network) -> bool:
    """Tell whether a network gives v beside its prediction: whether its first output has twice the image's channels."""
    given, wanted = _given_and_wanted(network)
    return wanted is not None and given == 2 * wanted


def check_channels(network):
    """Raise ValueError unless the first output has as many channels as ``image``, or twice as many."""
    given, wanted = _given_and_wanted(network)
    if given != wanted and not learned(network):
        raise ValueError(
            f"network must give as many channels as its images have, or twice as many to learn the variance: {wanted} "
            f"or {2 * wanted}; got an output of shape {tuple(network.outputs[0].shape)}. See build_unet(..., "
            "out_channels=...)."
        )


def _given_and_wanted(network):
    shapes = network.outputs[0].shape, network.input["image"].shape
    return tuple(shape[_channels()] if len(shape) == 4 else None for shape in shapes)


def halves(output):
    """Divide an output (B, H, W, 2C) into the prediction and f, (B, H, W, C) float32 each."""
    prediction, v = ops.split(ops.cast(output, "float32"), 2, axis=_channels())
    return prediction, (v + 1.0) / 2.0


def join_halves(prediction, share):
    """Make an output that says ``share`` of the variance everywhere: the inverse of ``halves``."""
    prediction = ops.cast(prediction, "float32")
    return ops.concatenate([prediction, ops.full_like(prediction, 2.0 * share - 1.0)], axis=_channels())


def _channels():
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def check_rows(rows: Sequence[Row], learns: bool):
    """Raise ValueError where rows leave the variance to a network that has not learned it."""
    if not learns and any(row.spread != 1 for row in rows):
        raise ValueError(
            "The sampler asks the network for the variance, and this one has not learned it: use ddpm, or a network "
            "that gives twice as many channels as its images have."
        )


# ---- the bound ------------------------------------------------------------------------------------------------------


def bound(schedule: Schedule, prediction: Prediction, bounded: bool) -> Callable:
    """Make the function (inputs, target, output) -> L_vlb of each example, (B,) in bits for each of an image's numbers.

    L_vlb sums a term for each timestep; the one drawn, T times, stands for the sum. With x_0 the clean image and D its
    estimate, of which the gradient is stopped, KL(q(x_{t-1} | x_t, x_0), p(x_{t-1} | x_t)) is
        (f L + exp(-f L) - 1 + (SNR_{t-1} - SNR_t) (x_0 - D)^2 exp(-f L)) / 2
    with L = log(beta_t / beta-tilde_t) = log(sigma_t^2 / sigma_{t-1}^2). At t = 0, where x_0 itself follows, it is
    -log p(x_0 | x_t): the mass of one of 256 values where images are ``bounded``, else the density. beta-tilde is 0
    there, and that of t = 1 stands in its place. The last noise's own term, which no network changes, is left out.
    """
    spread, drop, least = _tables(schedule)
    tables = (schedule.alpha, schedule.sigma, spread, drop)
    surprise = surprise_of_bin if bounded else surprise_of_value

    def terms(inputs, target, output):
        x, t = inputs["image"], inputs["timestep"]
        rank = len(x.shape)
        alpha, sigma, spread, drop = (look_up(table, t, rank) for table in tables)
        said, share = halves(output)
        # What the network should have said leads to the clean image itself.
        clean, estimate = (prediction.estimate(x, v, alpha, sigma) for v in (target, ops.stop_gradient(said)))
        more = share * spread
        divergence = (more + ops.expm1(-more) + drop * ops.square(clean - estimate) * ops.exp(-more)) / 2
        first = ops.reshape(ops.cast(t, "int32") == 0, (-1,) + (1,) * (rank - 1))
        nats = ops.where(first, surprise(clean, ops.where(first, estimate, clean), least + more), divergence)
        return ops.mean(ops.reshape(nats, (ops.shape(nats)[0], -1)), axis=1) * (len(schedule) / log(2))

    return terms


def _tables(schedule):
    """Give log(beta / beta-tilde) and SNR_{t-1} - SNR_t, (T,) each, and log beta-tilde where t = 0."""
    alpha, sigma = schedule.alpha, schedule.sigma
    spread, drop = np.zeros((2, len(schedule)))
    spread[1:] = 2 * np.log(sigma[1:] / sigma[:-1])
    drop[1:] = -np.diff(schedule.snr)
    first = sigma[0] ** 2  # beta_0: before it alpha is 1 and sigma 0
    if len(schedule) > 1:
        beta = sigma[1] ** 2 - (alpha[1] / alpha[0] * sigma[0]) ** 2
        spread[0] = np.log(first / (beta * sigma[0] ** 2 / sigma[1] ** 2))
    return spread, drop, float(np.log(first) - spread[0])


def surprise_of_value(x, mean, log_variance):
    """-log of the density of N(mean, variance) at x, in nats."""
    return (log(2 * pi) + log_variance + ops.square(x - mean) * ops.exp(-log_variance)) / 2


def surprise_of_bin(x, mean, log_variance):
    """-log of what N(mean, variance) gives to the bin of x, one of 256 in [-1, 1], in nats (Ho et al. 2020, eq. 13).

    The bins of -1 and 1 reach to infinity.
    """
    outer = ops.abs(x) > 1 - HALF_BIN
    # Turned round where the mean lies above, so that both ends are counted by the tail beyond them.
    off = ops.sign(ops.where(outer, x, x - mean)) * (x - mean)
    scale = ops.exp(-log_variance / 2)
    low, high = (log_tail((off + half) * scale) for half in (-HALF_BIN, HALF_BIN))
    inner = ops.log(ops.maximum(-ops.expm1(high - low), keras.config.epsilon()))
    return -low - ops.where(outer, 0.0, inner)


def log_tail(z):
    """log P(Z > z) for a standard normal Z, to float32's rounding: beyond 2 by Laplace's continued fraction."""
    far = ops.maximum(z, 2.0)
    fraction = far
    for k in range(20, 0, -1):
        fraction = far + k / fraction
    near = ops.log((1.0 - ops.erf(ops.minimum(z, 2.0) / sqrt(2))) / 2.0)
    return ops.where(z > 2.0, -ops.square(far) / 2.0 - ops.log(fraction) - log(2 * pi) / 2, near)
