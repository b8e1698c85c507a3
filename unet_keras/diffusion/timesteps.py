"""Which timesteps training draws, and how often."""

from statistics import NormalDist

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.schedules import Schedule


def logit_normal(schedule: Schedule, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Draw the logit of the noise's place u in (0, 1) from a normal distribution (Esser et al. 2024, equation 19).

    Returns the share of each timestep, a table (T,) of sum 1: timestep t stands for u from t / T to (t + 1) / T. A
    ``mean`` above 0 shows noisier images more often, where it is decided what there is to see; the smaller ``std``, the
    fewer of the others. Raises ValueError for a mean that is not finite, and a std that is not above 0.
    """
    if not np.isfinite(mean) or not 0 < std < np.inf:
        raise ValueError(f"mean must be finite, and std finite and above 0, got {mean} and {std}.")
    with np.errstate(divide="ignore"):
        u = np.linspace(0.0, 1.0, len(schedule) + 1)
        logits = np.log(u) - np.log1p(-u)
    return np.diff([NormalDist(mean, std).cdf(logit) for logit in logits])


def drawn(total: int, density, count, *, seed):
    """Draw ``count`` of ``total`` timesteps, int32 (count,): all alike, or as often as ``density`` (total,) says."""
    if density is None:
        return keras.random.randint((count,), 0, total, dtype="int32", seed=seed)
    below = np.cumsum(density / np.max(density))
    below /= below[-1]
    u = keras.random.uniform((count,), dtype="float32", seed=seed)
    return ops.cast(ops.searchsorted(ops.convert_to_tensor(below.astype("float32")), u, side="right"), "int32")
