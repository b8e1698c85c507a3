"""Noise schedules as two arrays: x_t = alpha_t x_0 + sigma_t eps.

A schedule knows nothing of how it came about: linear, cosine or flow matching differ only in the numbers. Index 0 is
the least noisy timestep (t = 1 in the papers), index T - 1 the noisiest; the network is given the index.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, lgamma
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


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

    @property
    def ratio(self) -> np.ndarray:
        """The noise-to-signal ratio sigma / alpha at each timestep, (T,); inf where alpha is 0."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @property
    def straight(self) -> bool:
        """Whether alpha + sigma = 1, as in flow matching."""
        return bool(np.abs(self.alpha + self.sigma - 1.0).max() < 1e-9)

    def at(self, timestep: float) -> Point:
        """Give the point at a timestep in [0, T - 1].

        Between two, log(sigma / alpha) is interpolated, or its arctangent up to pure noise; sigma on a straight path.
        """
        if not 0 <= timestep <= len(self) - 1:
            raise ValueError(f"timestep must lie in [0, {len(self) - 1}], got {timestep}.")
        low = int(timestep)
        if low == timestep:
            return Point(float(timestep), float(self.alpha[low]), float(self.sigma[low]))
        share = timestep - low
        if self.straight:
            sigma = float(self.sigma[low] + share * (self.sigma[low + 1] - self.sigma[low]))
            return Point(float(timestep), 1.0 - sigma, sigma)
        scale, back = _even_scale(self.ratio[low + 1])
        first, second = scale(self.ratio[low : low + 2])
        return self._point(low, share, float(back(first + share * (second - first))))

    def at_ratio(self, ratio: float) -> Point:
        """Give the point where sigma / alpha is ``ratio``, finite and positive: the inverse of ``at``.

        Beyond the schedule's ends the timestep is that of the end.
        """
        if not 0 < ratio < np.inf:
            raise ValueError(f"ratio must be positive and finite, got {ratio}.")
        if len(self) == 1:
            return self._point(0, 0.0, ratio)
        if self.straight:
            sigma = ratio / (1.0 + ratio)
            timestep = float(np.interp(sigma, self.sigma, np.arange(len(self))))
            return Point(timestep, 1.0 - sigma, sigma)
        low = int(np.clip(np.searchsorted(self.ratio, ratio) - 1, 0, len(self) - 2))
        scale, _ = _even_scale(self.ratio[low + 1])
        first, second = scale(self.ratio[low : low + 2])
        return self._point(low, float(np.clip((scale(ratio) - first) / (second - first), 0, 1)), ratio)

    def _point(self, low, share, ratio):
        high = min(low + 1, len(self) - 1)
        ends = np.hypot(self.alpha[[low, high]], self.sigma[[low, high]])
        radius = float(ends[0] + share * (ends[1] - ends[0]))  # 1 where variance is preserved
        alpha = radius / float(np.hypot(1.0, ratio))
        return Point(float(low + share), alpha, alpha * float(ratio))

    def points(self, timesteps: Iterable[float], *, end: Point = CLEAN) -> "Points":
        """Give the points at falling ``timesteps``, and ``end``, where sampling stops."""
        return Points([self.at(float(t)) for t in timesteps] + [end], self)

    def get_config(self) -> dict:
        """Return the two tables as lists; Python writes float64 so that it reads back the same."""
        return {"alpha": self.alpha.tolist(), "sigma": self.sigma.tolist()}

    @classmethod
    def from_config(cls, config: dict) -> "Schedule":
        """Make the schedule that ``get_config`` described."""
        return cls(**config)


class Points(list):
    """The points that a sampler visits, noisiest first, and the one to end at; ``schedule`` has those between them."""

    def __init__(self, points: Iterable[Point], schedule: Schedule):
        super().__init__(points)
        self.schedule = schedule


def _even_scale(ratio):
    """The function that timesteps are interpolated in, up to a neighbour of this ``ratio``, and its inverse."""
    return (np.log, np.exp) if np.isfinite(ratio) else (np.arctan, np.tan)


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
    """Shift and scale alpha so that the last timestep is pure noise (Lin et al. 2024, algorithm 1).

    A schedule that ends in pure noise is left as it is. Raises ValueError for another that does not preserve variance,
    and for one of a single timestep.
    """
    first, last = schedule.alpha[0], schedule.alpha[-1]
    if last == 0:
        return schedule
    if len(schedule) == 1:
        raise ValueError("schedule must have two timesteps or more: the only one stays where the first is to stay.")
    off = np.abs(schedule.alpha**2 + schedule.sigma**2 - 1.0).max()
    if off > 1e-6:
        raise ValueError(
            f"schedule must have alpha^2 + sigma^2 = 1 unless it ends in pure noise already; it is off by {off:.3g}."
        )
    return from_alpha_bar(((schedule.alpha - last) * first / (first - last)) ** 2)


def look_up(table: np.ndarray, t, rank: int):
    """Give the entries of a table (T,) at whole timesteps t (B,), float32, shaped to go with tensors of a rank."""
    values = ops.take(ops.convert_to_tensor(table.astype("float32")), ops.cast(t, "int32"), axis=0)
    return ops.reshape(values, (-1,) + (1,) * (rank - 1))


# ---- spacings: which timesteps a sampler visits, from the noisiest down ----------------------------------------------

Spacing = Callable[[int, int], np.ndarray]


def trailing(total: int, steps: int) -> np.ndarray:
    """Count down from the last timestep in even strides (Lin et al. 2024, table 2); begins at T - 1."""
    return np.round(total - np.arange(steps) * (total / steps)) - 1


def leading(total: int, steps: int) -> np.ndarray:
    """Take every (T // steps)-th timestep from 0 on, noisiest first: the spacing of DDIM's code."""
    return np.arange(steps)[::-1] * (total // steps)


def linspace(total: int, steps: int) -> np.ndarray:
    """Spread the timesteps evenly from T - 1 to 0, both included (Nichol & Dhariwal 2021); a single one is T - 1.

    Rounded to those of training, as in DDPM's and DDIM's code; diffusers' samplers by sigma / alpha do not round:
    ``lambda total, steps: np.linspace(total - 1, 0, steps)``.
    """
    if steps == 1:  # of which NumPy would take the other end: an image without noise
        return np.array([total - 1.0])
    return np.round(np.linspace(0, total - 1, steps))[::-1]


def karras(total: int, steps: int, *, schedule: Schedule, rho: float = 7.0) -> np.ndarray:
    """Let (sigma / alpha)^(1 / rho) fall evenly from the schedule's greatest to its least (Karras et al. 2022, eq. 5).

    On a straight path, of flow matching, sigma takes the place of sigma / alpha, which has no bound there.
    The timesteps lie between those of training; bind the schedule: ``partial(karras, schedule=model.schedule)``.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive, got {rho}; Karras et al. use 7.")
    return _at_ratios(schedule, total, steps, lambda first, last, s: (first + s * (last - first)) ** rho, 1 / rho)


def exponential(total: int, steps: int, *, schedule: Schedule) -> np.ndarray:
    """Let log(sigma / alpha) fall evenly: lambda-spacing (Lu et al. 2022). Straight paths and binding: as karras."""
    return _at_ratios(schedule, total, steps, lambda first, last, s: first ** (1 - s) * last**s, 1.0)


def beta(total: int, steps: int, *, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Take the timesteps at even quantiles of a beta distribution, dense at both ends (Lee et al. 2024).

    Their Beta Sampling spaces timesteps, and so do ComfyUI and others; diffusers spaces sigma / alpha in its place.
    """
    if not (0 < a < np.inf and 0 < b < np.inf):
        raise ValueError(f"a and b must be positive, got {a} and {b}.")
    return (total - 1) * np.array([_beta_quantile(1 - n / steps, a, b) for n in range(steps)])


def _at_ratios(schedule, total, steps, fall, power):
    """Give timesteps whose ratios, or sigmas, ``fall`` over [0, 1]; pure noise, if any, comes before the ratios."""
    if total != len(schedule):
        raise ValueError(f"schedule must have the {total} timesteps that are spaced, got one of {len(schedule)}.")
    if schedule.straight:
        last, first = schedule.sigma[[0, -1]] ** power
        sigmas = [fall(first, last, s) for s in np.linspace(0, 1, steps)]
        return np.round(np.interp(sigmas, schedule.sigma, np.arange(total)), 10)
    ratio = schedule.ratio[np.isfinite(schedule.ratio)]
    pure = list(range(len(ratio), total))
    first, last = ratio[-1], ratio[0]
    shares = np.linspace(0, 1, max(steps - len(pure), 1))
    inner = [schedule.at_ratio(fall(first**power, last**power, s)).timestep for s in shares]
    return np.round(np.array((pure + inner)[:steps], "float64"), 10)  # so that the ends are whole


def _beta_quantile(share, a, b):
    """Invert the beta distribution by halving."""
    low = 0.0
    for width in 0.5 ** np.arange(1, 60):
        low += width * (_beta_share(low + width, a, b) < share)
    return low if share < 1 else 1.0


def _beta_share(x, a, b):
    """I_x(a, b) = x^a (1 - x)^b / (a B(a, b)) (1 + sum_k prod_{j <= k} (a + b + j) x / (a + 1 + j))."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    term = total = 1.0
    for j in range(400):
        term *= (a + b + j) / (a + 1 + j) * x
        total += term
    front = lgamma(a + b) - lgamma(a + 1) - lgamma(b)
    return exp(front) * x**a * (1 - x) ** b * total
