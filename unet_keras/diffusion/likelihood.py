"""How likely a model finds images, in bits for each of their numbers: a bound, and the probability-flow ODE.

``nll_bound`` is the variational bound of the ancestral sampler ``ddpm`` (Ho et al. 2020, equation 5): never below the
model's own figure, up to chance. ``nll_ode`` is the density of the ODE that deterministic samplers solve (Song et al.
2021, section 4.3). Both use the averaged weights. Pixels are taken as 256 values: an image of pure chance costs 8 bits.
"""

from collections.abc import Callable
from math import log
from numbers import Real
from typing import NamedTuple

import numpy as np
from keras import ops

from unet_keras.checks import check_counts, check_seed, is_whole
from unet_keras.diffusion.gradients import with_product
from unet_keras.diffusion.inputs import check_shape
from unet_keras.diffusion.loop import compiled
from unet_keras.diffusion.predictions import Prediction
from unet_keras.diffusion.sampling import named_conditions
from unet_keras.diffusion.schedules import look_up
from unet_keras.diffusion.seeds import derived, draw, image_streams
from unet_keras.diffusion.variance import HALF_BIN, bound, halves, join_halves

LIKELIHOOD_STREAM = 3
"""The stream of a seed that likelihoods use; those before it are training's, validation's and sampling's."""


class Bound(NamedTuple):
    """The parts of the bound, (N,) each, in bits for each of an image's numbers."""

    prior: np.ndarray  # L_T: what the last noise still tells of the image
    steps: np.ndarray  # the sum of L_1 ... L_{T-1}
    decoder: np.ndarray  # L_0: the image itself, after the least noise

    @property
    def total(self) -> np.ndarray:
        """The bound, (N,)."""
        return self.prior + self.steps + self.decoder


def nll_bound(
    model,
    images,
    conditions=None,
    *,
    variance: float = 1.0,
    terms: int | None = None,
    threshold: Callable | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Bound:
    """Bound the negative log-likelihood of images, (N,) in bits for each of an image's numbers.

    conditions    of the images, as for ``generate``; what is left out stands at its null
    variance      of the steps, as for ``ddpm``: 0 is beta-tilde, 1 is beta, which is right for Gaussian data as wide as
                  the noise. A network that learned it uses its own
    terms         how many of the T - 1 inner terms to draw for each image, spread over the schedule and weighed by how
                  often they are drawn; None takes all, T network calls. The expectation is the same
    threshold     what the clean estimate goes through, as in ``generate``; that of the model's values unless given
    """
    total = len(model.schedule)
    if terms is not None and not (is_whole(terms) and terms < total):
        raise ValueError(f"terms must be a whole number in 1 ... {total - 1}, the inner timesteps, got {terms}.")
    if not isinstance(variance, Real) or not 0 <= variance <= 1:
        raise ValueError(f"variance must lie between 0 (beta-tilde) and 1 (beta), got {variance!r}.")
    term, chances = _term(model, variance, threshold or model.values.threshold), _chances(model.schedule)
    parts = []
    for clean, named, streams in _batches(model, images, conditions, seed, batch_size):
        given = {name: ops.convert_to_tensor(value) for name, value in named.items()}

        def cost(timesteps, clean=clean, given=given, streams=streams):
            eps = draw(streams, clean.shape[1:])
            tensors = [ops.convert_to_tensor(array) for array in (clean, eps, timesteps.astype("float32"))]
            return ops.convert_to_numpy(term(*tensors, given)).astype("float64") / total

        decoder, steps = cost(np.zeros(len(clean))), np.zeros(len(clean))
        for part in range(total - 1 if terms is None else terms):
            if terms is None:
                steps += cost(np.full(len(clean), part + 1))
            else:
                shares = (part + np.array([stream.random() for stream in streams])) / terms
                drawn = np.searchsorted(np.cumsum(chances)[:-1], shares, side="right")
                steps += cost(drawn + 1) / (terms * chances[drawn])
        parts.append((_prior(model.schedule, clean), steps, decoder))
    return Bound(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _chances(schedule):
    """The probabilities (T - 1,) to draw t = 1 ... T - 1 with: in proportion to their terms for x_0 ~ N(0, I)."""
    fall = -np.diff(np.log1p(schedule.snr))
    return fall / fall.sum()


def _term(model, variance, threshold):
    """Compile (clean, eps, timesteps, conditions) -> T times that timestep's term, (N,) in bits a number."""
    schedule, prediction, network = model.schedule, model.prediction, model.averaged

    def estimate(*args):
        return threshold(prediction.estimate(*args))

    cost = bound(schedule, Prediction(prediction.target, estimate), model.values.bounded)

    def term(clean, eps, timesteps, conditions):
        alpha, sigma = (look_up(table, timesteps, len(clean.shape)) for table in (schedule.alpha, schedule.sigma))
        x = alpha * clean + sigma * eps
        inputs = {"image": x, "timestep": timesteps, **conditions}
        output = _first(network(inputs, training=False))
        if model.bound is None:  # the variance is chosen: say so where a network would
            output = join_halves(output, variance)
        return cost(inputs, prediction.target(clean, eps, alpha, sigma), output)

    return compiled(term, network.variables)


def _prior(schedule, clean):
    """KL(q(x_T | x_0), N(0, alpha^2 + sigma^2)), (N,) in bits a number: of what ``generate`` begins with."""
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    radius = np.hypot(alpha, sigma)
    nats = ((alpha * clean.astype("float64")) ** 2 + sigma**2) / (2.0 * radius**2) - 0.5 + log(radius / sigma)
    return nats.reshape(len(clean), -1).mean(axis=1) / log(2)


# ---- the ordinary differential equation -----------------------------------------------------------------------------


def nll_ode(
    model, images, conditions=None, *, steps: int = 50, probes: int = 1, seed: int = 0, batch_size: int = 64
) -> np.ndarray:
    """Estimate the negative log-likelihood of images, (N,) in bits for each of an image's numbers.

    The probability-flow ODE is solved from image to noise by the classical Runge-Kutta method, and the divergence of
    its velocity added up, as v^T J v with random signs v (Hutchinson; Song et al. 2021, equations 39 and 40). Pixels
    are spread evenly over their value's width first (Theis et al. 2016), so that the figure is a bound, too.

    In the logarithm l of sigma / alpha, and with x on the unit circle alpha = cos u, sigma = sin u, the ODE is
        dx / dl = cos u (cos u x - D)
    so that nothing is singular where there is little noise, or nothing else. It runs between the schedule's least and
    greatest finite sigma / alpha, where x is taken for N(0, I).

    conditions    of the images, as for ``generate``; what is left out stands at its null
    steps         of the solver; four network calls each, with their derivative
    probes        how many v to average over
    """
    check_counts(steps=steps, probes=probes)
    schedule = model.schedule
    ratios = schedule.ratio[np.isfinite(schedule.ratio)]
    if len(ratios) < 2:
        raise ValueError("The schedule must have two timesteps or more with some of the image.")
    levels = np.linspace(np.log(ratios[0]), np.log(ratios[-1]), 2 * steps + 1)
    rows = [_row(schedule, level) for level in levels]
    velocity, width = _velocity(model), (levels[-1] - levels[0]) / steps
    found = []
    for clean, named, streams in _batches(model, images, conditions, seed, batch_size):
        given = {name: ops.convert_to_tensor(value) for name, value in named.items()}
        if model.values.bounded:
            clean = clean + _uniform(streams, clean.shape[1:]) * HALF_BIN
        signs = [np.sign(_uniform(streams, clean.shape[1:])) for _ in range(probes)]
        signs = [ops.convert_to_tensor(sign.astype("float32")) for sign in signs]
        x, spread = ops.convert_to_tensor(clean.astype("float32")), np.zeros(len(clean))
        for n in range(steps):
            x, gained = _runge_kutta(lambda x, row, s=signs, c=given: velocity(x, row, s, c), x, rows[2 * n :], width)
            spread += gained
        last = ops.convert_to_numpy(x).astype("float64").reshape(len(clean), -1)
        nats = (np.square(last).mean(axis=1) + log(2 * np.pi)) / 2 - spread / last.shape[1]
        found.append(nats / log(2) - (np.log2(2 * HALF_BIN) if model.values.bounded else 0.0))
    return np.concatenate(found)


def _row(schedule, level):
    """The numbers that one call needs: timestep, cos u, sin u and hypot(alpha, sigma)."""
    point = schedule.at_ratio(float(np.exp(level)))
    radius = np.hypot(point.alpha, point.sigma)
    row = np.array([point.timestep, point.alpha / radius, point.sigma / radius, radius], "float32")
    return ops.convert_to_tensor(row)


def _runge_kutta(velocity, x, rows, width):
    """Take one classical step of fourth order through rows[0 ... 2]; returns x and the divergence's integral, (N,)."""
    first, there = velocity(x, rows[0])
    second, middle = velocity(x + width / 2 * first, rows[1])
    third, again = velocity(x + width / 2 * second, rows[1])
    fourth, last = velocity(x + width * third, rows[2])
    x = x + width / 6 * (first + 2 * second + 2 * third + fourth)
    spread = [ops.convert_to_numpy(d).astype("float64") for d in (there, middle, again, last)]
    return x, width / 6 * (spread[0] + 2 * spread[1] + 2 * spread[2] + spread[3])


def _velocity(model):
    """Compile (x, row, signs, conditions) -> dx / dl and its divergence, (N,)."""
    network, prediction = model.averaged, model.prediction

    def velocity(x, row, signs, conditions):
        timestep, cos, sin, radius = (row[i] for i in range(4))

        def flow(x):
            state = radius * x
            inputs = {"image": state, "timestep": ops.broadcast_to(timestep, (ops.shape(x)[0],)), **conditions}
            output = _first(network(inputs, training=False))
            output = ops.cast(output, "float32") if model.bound is None else halves(output)[0]
            return cos * (cos * x - prediction.estimate(state, output, radius * cos, radius * sin))

        divergence = 0.0
        for v in signs:
            value, product = with_product(flow, x, v)
            divergence += ops.sum(ops.reshape(v * product, (ops.shape(x)[0], -1)), axis=1) / len(signs)
        return value, divergence

    return compiled(velocity, network.variables)


# ---- what both are given --------------------------------------------------------------------------------------------


def _batches(model, images, conditions, seed, batch_size):
    """Check, and yield (clean images float32, their conditions, a random stream each) for each batch."""
    images = np.asarray(images)
    check_shape(images.shape, model.named_inputs.image.shape)
    model.values.check(images)
    asked = len(images) if conditions is None else conditions
    count, named, _ = named_conditions(model.named_inputs, asked, model.dropping.learned)
    if count != len(images):
        raise ValueError(f"conditions must be one an image, got {count} for {len(images)} images.")
    check_counts(batch_size=batch_size)
    check_seed(seed)
    model.attach()
    for first in range(0, count, batch_size):
        part = slice(first, first + batch_size)
        streams = image_streams(derived(seed, LIKELIHOOD_STREAM), range(count)[part])
        clean = ops.convert_to_numpy(model.values.given(ops.convert_to_tensor(images[part])))
        yield clean, {name: value[part] for name, value in named.items()}, streams


def _first(outputs):
    return outputs[0] if isinstance(outputs, list | tuple) else outputs


def _uniform(streams, shape):
    """Draw evenly from (-1, 1), one stream an image."""
    return np.stack([stream.uniform(-1.0, 1.0, shape) for stream in streams])
