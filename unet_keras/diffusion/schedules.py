"""Noise schedules as two arrays: x_t = alpha_t x_0 + sigma_t eps.

A schedule knows nothing of how it came about: linear, cosine or flow matching differ only in the numbers. Index 0 is
the least noisy timestep (t = 1 in the papers), index T - 1 the noisiest; the network is given the index.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np


class Point(NamedTuple):
    """A place on a schedule: what the network is told (timestep), and the share of image and of noise there."""

    timestep: float
    alpha: float
    sigma: float


CLEAN = Point(-1.0, 1.0, 0.0)
"""The end of every schedule: the image itself. The network is never called there."""


@keras.saving.register_keras_serializable("unet_keras")
@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule: ``alpha`` and ``sigma``, (T,) float64, index 0 the least noisy.

    Raises ValueError unless both are of one length, finite, alpha in [0, 1] and sigma positive, and the signal-to-
    noise ratio falls from each timestep to the next.
    """

    alpha: np.ndarray
    sigma: np.ndarray

    def __post_init__(self):
        for name in ("alpha", "sigma"):
            table = np.array(getattr(self, name), "float64")
            table.flags.writeable = False
            object.__setattr__(self, name, table)
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or not len(self.alpha):
            raise ValueError(f"alpha and sigma must be of one length, got {self.alpha.shape} and {self.sigma.shape}.")
        inside = (self.alpha >= 0) & (self.alpha <= 1) & (self.sigma > 0) & np.isfinite(self.sigma)
        if not inside.all():
            raise ValueError(f"alpha must lie in [0, 1] and sigma be positive; not so at timestep {inside.argmin()}.")
        rising = np.diff(self.alpha / self.sigma) >= 0
        if rising.any():
            raise ValueError(
                f"Noise must grow with the timestep; it does not from timestep {rising.argmax()} to the next."
            )

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> np.ndarray:
        """The signal-to-noise ratio alpha^2 / sigma^2 at each timestep, (T,)."""
        return (self.alpha / self.sigma) ** 2

    def at(self, timestep: float) -> Point:
        """Give the point at a timestep in [0, T - 1]; between two, the angle atan(sigma / alpha) is interpolated."""
        if not 0 <= timestep <= len(self) - 1:
            raise ValueError(f"timestep must lie in [0, {len(self) - 1}], got {timestep}.")
        low = int(timestep)
        if low == timestep:
            return Point(float(timestep), float(self.alpha[low]), float(self.sigma[low]))
        pair = slice(low, low + 2)
        angle = np.interp(timestep, [low, low + 1], np.arctan2(self.sigma[pair], self.alpha[pair]))
        radius = np.interp(timestep, [low, low + 1], np.hypot(self.sigma[pair], self.alpha[pair]))
        return Point(float(timestep), float(radius * np.cos(angle)), float(radius * np.sin(angle)))

    def points(self, timesteps: Iterable[float], *, end: Point = CLEAN) -> list[Point]:
        """Give the points at falling ``timesteps``, and ``end``, where sampling stops."""
        return [self.at(float(t)) for t in timesteps] + [end]

    def get_config(self) -> dict:
        """Return the two tables as lists; Python writes float64 so that it reads back the same."""
        return {"alpha": self.alpha.tolist(), "sigma": self.sigma.tolist()}

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        """Make the schedule that ``get_config`` described."""
        return cls(**config)


def from_betas(betas: np.ndarray) -> Schedule:
    """Make a variance-preserving schedule: alpha_t^2 = prod_{s <= t} (1 - beta_s) (Ho et al. 2020, equation 4)."""
    return from_alpha_bar(np.cumprod(1.0 - np.asarray(betas, "float64")))


def from_alpha_bar(alpha_bar: np.ndarray) -> Schedule:
    """Make a variance-preserving schedule from alpha_bar = alpha^2, so that sigma^2 = 1 - alpha_bar."""
    return Schedule(np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar))


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """Let beta grow linearly (Ho et al. 2020, section 4): the schedule of DDPM, and the default."""
    return from_betas(np.linspace(start, end, steps))


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """Let sqrt(beta) grow linearly (Rombach et al. 2022): the schedule of Stable Diffusion."""
    return from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


def cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Let alpha_bar fall as cos^2((t/T + s) / (1 + s) * pi/2), beta capped (Nichol & Dhariwal 2021, equation 17)."""
    f = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - f[1:] / f[:-1], max_beta))


def sigmoid(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """Let beta rise from ``start`` to ``end`` as a logistic curve over [-6, 6] (Xu et al. 2022, GeoDiff)."""
    return from_betas(start + (end - start) / (1.0 + np.exp(-np.linspace(-6, 6, steps))))


def flow(steps: int = 1000) -> Schedule:
    """Go straight from image to noise: alpha = 1 - s, sigma = s, s = 1/T to 1 (Lipman et al. 2023; Liu et al. 2023)."""
    s = np.arange(1, steps + 1) / steps
    return Schedule(1.0 - s, s)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shift and scale alpha so that the last timestep is pure noise (Lin et al. 2024, algorithm 1)."""
    first, last = schedule.alpha[0], schedule.alpha[-1]
    return from_alpha_bar(((schedule.alpha - last) * first / (first - last)) ** 2)


# ---- spacings: which timesteps a sampler visits, from the noisiest down ----------------------------------------------

Spacing = Callable[[int, int], np.ndarray]


def trailing(total: int, steps: int) -> np.ndarray:
    """Count down from the last timestep in even strides (Lin et al. 2024, table 2); begins at T - 1."""
    return np.round(total - np.arange(steps) * (total / steps)) - 1


def leading(total: int, steps: int) -> np.ndarray:
    """Take every (T // steps)-th timestep from 0 on, noisiest first: the spacing of DDIM's code."""
    return np.arange(steps)[::-1] * (total // steps)


def linspace(total: int, steps: int) -> np.ndarray:
    """Spread the timesteps evenly from T - 1 to 0, both included (Nichol & Dhariwal 2021); a single one is T - 1."""
    if steps == 1:  # of which NumPy would take the other end: an image without noise
        return np.array([total - 1.0])
    return np.round(np.linspace(0, total - 1, steps))[::-1]
