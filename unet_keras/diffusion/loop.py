"""The one sampling loop: a compiled step that takes the row as an argument, run over a sampler's rows.

A compiled step, rather than the whole loop in one program, gives progress and intermediate images for nothing, at the
price of a call a row: some milliseconds on a CPU, see benchmarks/loop.py. Rows, conditions and guidance scale are
arguments of the step, so that none of them recompiles it, and so are weights that change; the history of states and
estimates stays on the device. This is the one file that names backends in order to compile.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.replicas import gathered, spread
from unet_keras.diffusion.samplers import HISTORY, Row
from unet_keras.diffusion.variance import halves, learned


class Frame(NamedTuple):
    """One moment of sampling, on the device: the newest states and estimates, (HISTORY, N, H, W, C) each.

    ``extras``: what a network of several outputs gave besides the first, for the N images with their conditions.
    """

    states: object
    estimates: object
    extras: list

    @property
    def x(self):
        """The state x_{n+1}, (N, H, W, C)."""
        return self.states[0]

    @property
    def clean(self):
        """The estimate D_n of the clean image that led to it, (N, H, W, C)."""
        return self.estimates[0]


WRITTEN = 2**27
"""The most bytes of weights that are written into a program."""


def make_step(network, prediction, combine, threshold, *, jit=False, fixed=False) -> Callable:
    """Compile one row of sampling: (states, estimates, row, z, conditions, null) -> (states, estimates, extras).

    states and estimates hold the last HISTORY of them, newest first, (HISTORY, N, H, W, C) float32; ``row`` is a
    vector made by ``packed``; z is fresh noise (N, H, W, C). With ``null`` conditions, which replace the conditions in
    the second half of a doubled batch, ``combine`` makes one output of the two. Where the network learned the
    variance, the noise is c spread^f z; ``combine`` guides the prediction alone, and f is that of the conditions
    (as in GLIDE, Nichol et al. 2022, and DiT, Peebles & Xie 2023). ``fixed``: see ``compiled``.
    """
    learns = learned(network)

    def ask(x, t, scale, conditions, null):
        if null is not None:
            x = ops.concatenate([x, x])
            conditions = {name: ops.concatenate([value, null[name]]) for name, value in conditions.items()}
        timestep = ops.broadcast_to(t, (ops.shape(x)[0],))
        outputs = network({"image": x, "timestep": timestep, **conditions}, training=False)
        output, *extras = outputs if isinstance(outputs, list | tuple) else [outputs]
        output, *share = halves(output) if learns else [ops.cast(output, "float32")]
        if null is None:
            return output, share, extras
        share, extras = ([ops.split(v, 2)[0] for v in kept] for kept in (share, extras))
        return combine(*ops.split(output, 2), scale), share, extras

    def step(states, estimates, row, z, conditions, null):
        t, alpha, sigma, scale, c, spread = (row[i] for i in range(6))
        a, b = row[6 : 6 + HISTORY], row[6 + HISTORY :]
        output, share, extras = ask(states[0], t, scale, conditions, null)
        clean = threshold(prediction.estimate(states[0], output, alpha, sigma))
        estimates = ops.concatenate([clean[None], estimates[:-1]])
        c = c * ops.power(spread, share[0]) if learns else c
        x = _weighted(a, states) + _weighted(b, estimates) + c * z
        return ops.concatenate([x[None], states[:-1]]), estimates, extras

    return compiled(step, network.variables, jit=jit, fixed=fixed)


def _weighted(coefficients, stack):
    return ops.sum(ops.reshape(coefficients, (-1,) + (1,) * (len(stack.shape) - 1)) * stack, axis=0)


def packed(row: Row, scale: float) -> np.ndarray:
    """Write a row as the vector that the step takes: t, alpha, sigma, scale, c, spread, a (HISTORY), b (HISTORY)."""
    if max(len(row.a), len(row.b)) > HISTORY:
        raise ValueError(f"A row may use {HISTORY} states and estimates, got {len(row.a)} and {len(row.b)}.")
    a, b = (list(v) + [0.0] * (HISTORY - len(v)) for v in (row.a, row.b))
    vector = np.array([*row.point, scale, row.c, row.spread, *a, *b], "float32")
    if not np.isfinite(vector).all():
        raise ValueError(f"The sampler's row at timestep {row.point.timestep:g} is not finite: {row}.")
    return vector


def run(step, rows, x, noise: Callable[[int], np.ndarray], scale=1.0, conditions=None, null=None) -> Iterator[Frame]:
    """Take x, the noise to begin with (N, H, W, C), through the rows; yield a Frame after each.

    ``noise(n)`` gives row n's fresh noise (N, H, W, C); it is asked only where the row uses any. The guidance scale is
    a number, or a function of the row's Point.
    """
    x = spread(np.asarray(x, "float32"))
    nothing = ops.zeros_like(x)
    states = ops.stack([x] + [nothing] * (HISTORY - 1))
    estimates = ops.stack([nothing] * HISTORY)
    vectors = [packed(row, scale(row.point) if callable(scale) else scale) for row in rows]
    for n, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
        z = spread(np.asarray(noise(n), "float32")) if row.c else nothing
        frame = Frame(*step(states, estimates, ops.convert_to_tensor(vector), z, conditions or {}, null))
        states, estimates = frame.states, frame.estimates
        yield frame


def compiled(function, variables, *, jit=False, fixed=False):
    """Compile a function of tensors that reads ``variables``, so that it sees their values at each call.

    Where ``fixed`` says that they keep them, and it pays, they are written into the program: see ``Written``.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return _jax(function, variables)
    if backend == "tensorflow":
        return Written(function, variables) if fixed and not jit and _pays(variables) else _tensorflow(function, jit)
    if backend == "torch":
        import torch

        return torch.no_grad()(function)
    return function


def _tensorflow(function, jit=False):
    import tensorflow as tf

    return tf.function(function, jit_compile=jit, reduce_retracing=True, autograph=False)


class Written:
    """A program of TensorFlow's with the values of the variables written into it.

    On CPUs oneDNN orders the kernels of convolutions anew at each call, but for constants: see benchmarks/README.md for
    what that saves, and for the memory that the weights take some times more. Once ``outdated``, it must not be used.
    """

    def __init__(self, function, variables):
        import tensorflow as tf

        self.values = [(variable, np.array(ops.convert_to_numpy(variable))) for variable in variables]

        def run(*args):
            with keras.StatelessScope([(variable, tf.constant(value)) for variable, value in self.values]):
                return function(*args)

        self.run = _tensorflow(run)

    def __call__(self, *args):
        return self.run(*args)

    def outdated(self) -> bool:
        """Tell whether a variable has another value by now."""
        return any(value.tobytes() != variable.value.numpy().tobytes() for variable, value in self.values)


def _pays(variables):
    size = sum(math.prod(v.shape) * v.value.dtype.size for v in variables)
    return size <= WRITTEN and keras.distribution.list_devices()[0].startswith("cpu")


def _jax(function, variables):
    import jax

    @jax.jit
    def pure(values, *args):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*args)

    return lambda *args: pure([v.value for v in variables], *args)


def last(ways: Sequence[Iterator[Frame]], tick: Callable[[Frame], None] | None = None) -> np.ndarray:
    """Run through the frames of each way, in step, and give their last states as one NumPy array.

    ``tick`` is called with each frame of the first way. A frame is shown to it only when the next one is under way, so
    that waiting for it never idles the device.
    """
    moments = zip(*ways, strict=True)
    moment = next(moments)
    for following in moments:
        if tick is not None:
            tick(moment[0])
        moment = following
    found = np.concatenate([gathered(frame.x) for frame in moment])
    if tick is not None:
        tick(moment[0])
    return found


def progress_bar(total: int, *, patience: float = 3.0) -> Callable[[Frame], None]:
    """Make a function to be called for each frame, which shows a bar once ``patience`` seconds have passed."""
    start, done, bar = time.monotonic(), 0, keras.utils.Progbar(total, unit_name="step")

    def tick(frame):
        nonlocal done
        done += 1
        if keras.backend.backend() == "jax":  # which computes ahead
            frame.states.block_until_ready()
        if time.monotonic() - start > patience:
            bar.update(min(done, total), finalize=done == total)

    return tick
