"""What one call of ``generate`` is to do: checked, brought to arrays and rows, before anything is computed."""

import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real

import keras
import numpy as np

from unet_keras.checks import check_counts, check_seed, is_whole
from unet_keras.diffusion.guidance import classifier_free, clipped
from unet_keras.diffusion.inputs import Inputs, check_condition, warn_if_zero_to_one
from unet_keras.diffusion.loop import Frame, run
from unet_keras.diffusion.replicas import parts, spread
from unet_keras.diffusion.samplers import Row, Sampler, ddim
from unet_keras.diffusion.schedules import Point, Schedule, Spacing, trailing
from unet_keras.diffusion.seeds import derived, draw, image_streams

SAMPLING_STREAM = 2
"""The stream of a seed that sampling uses; 0 and 1 are training's and validation's."""


@dataclass(frozen=True)
class Request:
    """Images to be sampled: their numbers within the seed, their conditions (N, ...), and how."""

    numbers: Sequence[int]
    conditions: dict
    null: dict | None  # conditions (N, ...) that guidance leads away from; None without guidance
    rows: list[Row]
    shape: tuple
    scale: float | Callable
    combine: Callable
    threshold: Callable
    seed: int
    noise: np.ndarray | None  # (1 + steps, N, H, W, C) in place of the seed
    start: np.ndarray | None  # (N, H, W, C) float32
    begin: Point  # where the first row's state lies: start has its share of noise there

    def batches(self, size: int | None) -> list["Request"]:
        """Divide into requests of at most ``size`` images, rounded up to what devices share out evenly.

        The last image is repeated until the last request divides as well.
        """
        count = len(self.numbers)
        size = count if size is None else size
        check_counts(batch_size=size)
        whole, size = (-(-n // parts()) * parts() for n in (count, size))
        images = np.minimum(np.arange(whole), count - 1)
        return [self._part(images[i : i + size]) for i in range(0, whole, size)]

    def shares(self, devices: int) -> list["Request"]:
        """Divide into as many requests as there are devices, or images."""
        images = np.arange(len(self.numbers))
        return [self._part(part) for part in np.array_split(images, devices) if len(part)] if devices > 1 else [self]

    def _part(self, part: np.ndarray) -> "Request":
        conditions, null = (
            None if named is None else {name: value[part] for name, value in named.items()}
            for named in (self.conditions, self.null)
        )
        noise = None if self.noise is None else self.noise[:, part]
        start = None if self.start is None else self.start[part]
        numbers = [self.numbers[i] for i in part]
        return replace(self, numbers=numbers, conditions=conditions, null=null, noise=noise, start=start)

    def frames(self, step: Callable) -> Iterator[Frame]:
        """Run the compiled ``step`` over the rows."""
        if self.noise is None:
            streams = image_streams(derived(self.seed, SAMPLING_STREAM), self.numbers)
            first, fresh = draw(streams, self.shape), lambda n: draw(streams, self.shape)
        else:
            first, fresh = self.noise[0], lambda n: self.noise[n + 1]
        conditions, null = (
            None if named is None else {name: spread(value) for name, value in named.items()}
            for named in (self.conditions, self.null)
        )
        alpha, sigma = np.float32(self.begin[1:])
        if self.start is not None:
            first = alpha * self.start + sigma * first
        elif self.noise is None:
            first = first * np.hypot(alpha, sigma)
        return run(step, self.rows, first, fresh, self.scale, conditions, null)


def request(
    named_inputs: Inputs,
    schedule: Schedule,
    null: dict,
    conditions,
    *,
    steps: int = 50,
    sampler: Sampler = ddim,
    spacing: Spacing = trailing,
    guidance: float | Callable[[Point], float] = 1.0,
    negative=None,
    combine: Callable = classifier_free,
    threshold: Callable = clipped,
    start=None,
    strength: float = 1.0,
    upwards: bool = False,
    size: tuple[int, int] | None = None,
    seed: int | None = None,
    noise: np.ndarray | None = None,
) -> Request:
    """Check what is asked for and write it down; the options are those of ``DiffusionModel.generate``.

    ``null`` holds, of one example, those conditions that training dropped. ``upwards`` is for samplers whose rows lead
    from the image to noise.
    """
    functions = {"sampler": sampler, "spacing": spacing, "combine": combine, "threshold": threshold}
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name} must be a function, such as unet_keras's of that kind, got {function!r:.100}.")
    count, conditions, given = named_conditions(named_inputs, conditions, null)
    steps = _checked_steps(steps, len(schedule))
    points = schedule.points(_spaced(spacing, len(schedule), steps)[-_done(steps, strength, start, noise) :])
    rows = sampler(points)
    if not len(rows):
        raise ValueError(f"sampler gave no rows for the {len(points)} points that it is to visit.")
    alone = len(rows) == 1 and len(schedule) > 1  # one row leads nowhere that could be told: two steps tell
    _check_direction(sampler(schedule.points([len(schedule) - 1, 0])) if alone else rows, upwards)
    if start is not None:
        start = _start(named_inputs, start, count, size)
    shape = _image_shape(named_inputs.image.shape[1:], size) if start is None else start.shape[1:]
    if upwards and noise is not None:
        raise ValueError("noise is what inversion finds: leave it out.")
    if noise is not None:
        noise = _check_noise(noise, (1 + len(rows), count, *shape), any(row.c for row in rows))
    if seed is None:
        seed = random.getrandbits(31)
    else:
        check_seed(seed)
    if not callable(guidance) and (isinstance(guidance, bool) or not isinstance(guidance, Real | np.generic)):
        raise ValueError(f"guidance must be a number, or a function of the point that is visited, got {guidance!r}.")
    scale = guidance if callable(guidance) else float(guidance)
    scales = [scale(row.point) if callable(scale) else scale for row in rows]
    guided = _check_guidance(scales, named_inputs, null)
    if callable(guidance) and not guided:
        raise ValueError(
            f"guidance is 1 at each of the {len(rows)} points that are visited, so that nothing would be guided: an "
            "interval, say, in which none of them falls. Widen it, or leave guidance at 1."
        )
    away = _away(named_inputs, conditions, null, negative) if guided else None
    if guided and negative is None and not given & set(null):
        raise ValueError(
            f"guidance={max(scales)} has nothing to lead to: training dropped {sorted(null)}, of which nothing "
            "was asked for. Give one of them, or leave guidance at 1."
        )
    if not guided:
        _check_unguided(negative, combine)
    chosen = (scale, combine, threshold, int(seed), noise, start, points[-1] if upwards else rows[0].point)
    return Request(range(count), conditions, away, rows, shape, *chosen)


def named_conditions(named_inputs, asked, null):
    """Give the number of images, all conditions (N, ...), and the names of those that were asked for."""
    count, given = None, {}
    if is_whole(asked, -math.inf):
        count = int(asked)
    else:
        given = _rows(named_inputs, asked)
        count = len(next(iter(given.values()))) if given else 0
    absent = {name: value for name, value in null.items() if name not in given}
    named_inputs.check_names({**given, **absent})
    if count < 1:
        raise ValueError(f"Ask for at least one image: a count, or conditions of one row an image; got {count}.")
    for name, value in given.items():
        check_condition(name, value, named_inputs.conditions[name], count)
    conditions = {**given, **{name: _repeated(value, count) for name, value in absent.items()}}
    return count, {name: _cast(value, named_inputs.conditions[name]) for name, value in conditions.items()}, set(given)


def _away(named_inputs, conditions, null, negative):
    """Give the conditions (N, ...) that guidance leads away from: the nulls, ``negative`` in their place if given."""
    count = len(next(iter(conditions.values())))
    away = conditions | {name: _repeated(value, count) for name, value in null.items()}
    if negative is not None:
        given = _rows(named_inputs, negative)
        if not given:
            raise ValueError(f"negative must hold a condition to lead away from, got {negative!r}.")
        named_inputs.check_names(away | given)
        for name, value in given.items():
            value = _repeated(value[0], count) if len(value) == 1 else value
            check_condition(f"{name} of negative", value, named_inputs.conditions[name], count)
            away[name] = value
    for name, value in away.items():
        if np.shape(value)[1:] != np.shape(conditions[name])[1:]:
            raise ValueError(
                f"condition {name!r} is {np.shape(conditions[name])[1:]} for an image, and what guidance leads away "
                f"from, its null or negative, is {np.shape(value)[1:]}: bring both to one length."
            )
    return {name: _cast(value, named_inputs.conditions[name]) for name, value in away.items()}


def _rows(named_inputs, asked):
    """Give conditions by name, as arrays. Raises ValueError for a number that stands alone."""
    given = {name: np.asarray(value) for name, value in named_inputs.name(named_inputs.encoded(asked)).items()}
    for name, value in given.items():
        if value.ndim == 0:
            raise ValueError(f"condition {name!r} must have a row for each image, got {value}: give [{value}].")
    return given


def _repeated(value, count):
    value = np.asarray(value)
    return np.broadcast_to(value, (count, *value.shape))


def _cast(value, entry):
    return np.asarray(value).astype(entry.dtype)


def _checked_steps(steps, total):
    if not is_whole(steps) or steps > total:
        raise ValueError(f"steps must be a whole number from 1 to the schedule's {total}, got {steps!r}.")
    return int(steps)


def _spaced(spacing, total, steps):
    """Give the timesteps to visit, (steps,), and check that they fall."""
    try:
        inspect.signature(spacing).bind(total, steps)
    except TypeError as error:
        raise ValueError(
            f"spacing must take (T, steps) alone, got {spacing!r}: bind what else it needs, as in "
            "functools.partial(karras, schedule=model.schedule)."
        ) from error
    timesteps = np.asarray(spacing(total, steps), "float64")
    if timesteps.shape != (steps,) or not (np.diff(timesteps) < 0).all() or not np.isfinite(timesteps).all():
        raise ValueError(f"spacing must give {steps} timesteps that fall, noisiest first; got {timesteps}.")
    return timesteps


def _check_direction(rows, upwards):
    """Raise ValueError for a sampler that leads from the image to noise where the other way is asked for, or not."""
    first, last = rows[0].point, rows[-1].point
    rise = last.sigma * first.alpha - first.sigma * last.alpha
    if (rise < 0) if upwards else (rise > 0):
        way = "from noise to the image" if upwards else "from the image to noise"
        remedy = "invert takes ddim_inversion" if upwards else "ddim_inversion is for invert"
        raise ValueError(f"sampler leads {way}, which is the other way: {remedy}.")


def _done(steps, strength, start, noise):
    """Give how many of the steps are done."""
    if not isinstance(strength, Real | np.generic) or not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, all the way from noise, got {strength!r}.")
    if start is None and noise is None and strength != 1:
        raise ValueError(f"strength={strength} is of the way that start goes: give start, or leave strength at 1.")
    return max(round(strength * steps), 1)


def _start(named_inputs, start, count, size):
    """Give images to start from as float32 (N, H, W, C)."""
    start = keras.ops.convert_to_numpy(start)
    if size is not None:
        raise ValueError(f"size={size} is that of start, {start.shape}: leave size out.")
    named_inputs.check(start, {})
    if named_inputs.values.bounded:
        warn_if_zero_to_one(start)
    if len(start) != count:
        raise ValueError(f"start holds {len(start)} images and {count} are asked for: give one for each.")
    return keras.ops.convert_to_numpy(named_inputs.values.given(start))


def _check_guidance(scales, named_inputs, null):
    """Raise ValueError where guidance has no meaning; tell whether there is any."""
    for scale in scales:
        if not np.isfinite(scale) or scale < 0:
            raise ValueError(f"guidance must be 0 or more, got {scale}; 1 samples the conditional model as it is.")
    if all(scale == 1 for scale in scales):
        return False
    most = max(scales)
    if not named_inputs.conditions:
        raise ValueError(f"guidance={most} needs conditions, and the network takes none: leave it at 1.")
    if not null:
        raise ValueError(
            f"guidance={most} needs a model trained with dropped conditions: DiffusionModel(null=..., drop=0.1)."
        )
    return True


def _check_unguided(negative, combine):
    """Raise ValueError for what guidance alone would use."""
    for name, given in (("negative", negative is not None), ("combine", combine is not classifier_free)):
        if given:
            raise ValueError(f"{name} is used by guidance alone: give guidance above 1.")


def _image_shape(shape, size):
    """Give the images' shape; ``size`` fills in what the network leaves open."""
    if size is None and None not in shape:
        return tuple(shape)
    if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"The network leaves the image size open ({shape}): give size=(height, width), got {size}.")
    channels_first = shape[-1] is None or (shape[0] is not None and keras.config.image_data_format() != "channels_last")
    height = 1 if channels_first else 0
    filled = (*shape[:height], *map(int, size), *shape[height + 2 :])
    if any(want not in (None, got) for want, got in zip(shape, filled, strict=True)):
        raise ValueError(f"size={tuple(size)} does not fit the network's images of shape {tuple(shape)}.")
    return filled


def _check_noise(noise, shape, fresh):
    noise = np.asarray(noise, "float32")
    if noise.shape == shape[1:] and not fresh:
        noise = noise[None]
    if noise.shape[1:] != shape[1:] or len(noise) not in ({shape[0]} if fresh else {1, shape[0]}):
        raise ValueError(f"noise must be of shape (1 + network calls, N, H, W, C) = {shape}, got {noise.shape}.")
    if not np.isfinite(noise).all():
        raise ValueError("noise must be finite; it holds NaN or infinity.")
    return noise
