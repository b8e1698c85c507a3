"""What the network is trained to predict, and how that becomes an estimate of the clean image.

With x = alpha x_0 + sigma eps, a prediction is a pair of functions in plain arithmetic, on any backend's tensors and
on NumPy arrays alike. The weight of each timestep in the loss is a table, (T,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from unet_keras.diffusion.named import serialized
from unet_keras.diffusion.schedules import Schedule

serializable = keras.saving.register_keras_serializable("unet_keras")


@serializable
@dataclass(frozen=True)
class Prediction:
    """A parametrisation of the network's output.

    target(clean, noise, alpha, sigma)     what the network should have said
    estimate(x, output, alpha, sigma)      the clean image, given what it said; affine in ``output``

    Register functions of your own with ``keras.saving.register_keras_serializable``, or the model cannot be saved.
    """

    target: Callable[..., Any]
    estimate: Callable[..., Any]

    def get_config(self) -> dict:
        """Return both functions by their registered names."""
        return {name: serialized(getattr(self, name)) for name in ("target", "estimate")}

    @classmethod
    def from_config(cls, config: dict) -> "Prediction":
        """Make the prediction that ``get_config`` described."""
        return cls(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


@serializable
def noise_target(clean, noise, alpha, sigma):
    """Predict eps itself (Ho et al. 2020, equation 14)."""
    return noise


@serializable
def noise_estimate(x, output, alpha, sigma):
    """x_0 = (x - sigma eps) / alpha. Has no value where alpha = 0."""
    return (x - sigma * output) / alpha


@serializable
def velocity_target(clean, noise, alpha, sigma):
    """Predict v = alpha eps - sigma x_0 (Salimans & Ho 2022, appendix D)."""
    return alpha * noise - sigma * clean


@serializable
def velocity_estimate(x, output, alpha, sigma):
    """x_0 = (alpha x - sigma v) / (alpha^2 + sigma^2)."""
    return (alpha * x - sigma * output) / (alpha * alpha + sigma * sigma)


@serializable
def clean_target(clean, noise, alpha, sigma):
    """Predict the image x_0 itself."""
    return clean


@serializable
def clean_estimate(x, output, alpha, sigma):
    """x_0, as it was said."""
    return output


@serializable
def flow_target(clean, noise, alpha, sigma):
    """Predict u = eps - x_0, the velocity from image to noise (Lipman et al. 2023; Liu et al. 2023)."""
    return noise - clean


@serializable
def flow_estimate(x, output, alpha, sigma):
    """x_0 = (x - sigma u) / (alpha + sigma)."""
    return (x - sigma * output) / (alpha + sigma)


noise = Prediction(noise_target, noise_estimate)
velocity = Prediction(velocity_target, velocity_estimate)
clean = Prediction(clean_target, clean_estimate)
flow_velocity = Prediction(flow_target, flow_estimate)


def min_snr(schedule: Schedule, prediction: Prediction, gamma: float = 5.0) -> np.ndarray:
    """Weigh the loss on x_0 by min(SNR, gamma) (Hang et al. 2023, equation 8). Returns a table (T,).

    An error in the output moves the estimate of x_0 by a known factor, so that one line serves every prediction:
    for noise this is min(SNR, gamma) / SNR, for velocity min(SNR, gamma) / (SNR + 1).
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}.")
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = prediction.estimate(0.0, 1.0, schedule.alpha, schedule.sigma) ** 2
        weight = np.minimum(schedule.snr, gamma) * factor
    return np.where(schedule.snr == 0, np.where(np.isfinite(factor), 0.0, 1.0), weight)
