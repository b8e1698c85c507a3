"""How the time of sampling grows with steps, batch and resolution, what is compiled on the way, what watching costs.

    KERAS_BACKEND=tensorflow python benchmarks/growth.py

Each table gives seconds, and seconds for each step, image and pixel relative to the first line: 1 is linear growth.
"""

import argparse
import contextlib
import io
import statistics
import time

import keras
import numpy as np

from unet_keras import DiffusionModel, TokenEncoder, ddim, dpmpp_2m, patch_unet, text_unet
from unet_keras.diffusion import loop


class Counted(keras.layers.Layer):
    """Passes its input on and counts how often Python runs it: once a trace where steps are compiled."""

    runs = 0

    def call(self, x):
        Counted.runs += 1
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def model_of(size, width):
    inner = patch_unet((size, size, 3), width=width)
    image = Counted()(inner.input["image"])
    return DiffusionModel(keras.Model(inner.input, inner({**inner.input, "image": image})), ema=None)


def reader():
    """A small model that reads prompts."""
    encoder = TokenEncoder(["blue", "red"], length=4, width=32)
    inner = text_unet((32, 32, 3), width=32, context=encoder.context)
    image = Counted()(inner.input["image"])
    network = keras.Model(inner.input, inner({**inner.input, "image": image}))
    return DiffusionModel(network, encoder=encoder, drop=0.1, ema=None)


def seconds(functions, rounds):
    """Call each once unmeasured; then time all, round by round; returns their medians."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def table(title, cases, rounds):
    """``cases``: {name: (function, work)}."""
    found = seconds({name: function for name, (function, _) in cases.items()}, rounds)
    first = None
    for name, (_, work) in cases.items():
        first = first or found[name] / work
        print(f"{title:12}{name!s:>8}{found[name]:10.3f} s{found[name] / work / first:8.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    model = model_of(32, a.width)

    def sampled(model, count, steps, **options):
        return lambda: model.generate(count, steps=steps, seed=0, progress=False, **options)

    print(keras.backend.backend())
    table("steps", {n: (sampled(model, 4, n), n) for n in (10, 20, 40, 80)}, a.rounds)
    table("images", {n: (sampled(model, n, 10), n) for n in (2, 4, 8, 16)}, a.rounds)
    sizes = {n: (sampled(model if n == 32 else model_of(n, a.width), 4, 10), n * n) for n in (16, 32, 64)}
    table("pixels", sizes, a.rounds)
    before = Counted.runs
    for options in ({"steps": 7}, {"seed": 3}, {"sampler": dpmpp_2m}, {"start": np.zeros((4, 32, 32, 3), "uint8")}):
        model.generate(4, **{"steps": 5, "progress": False, **options})
    print(f"compiled anew for other steps, seeds, samplers: {Counted.runs - before if not eager() else 'eager'}")
    reads = reader()
    reads.generate(["red"], steps=2, guidance=2.0, progress=False)
    before = Counted.runs
    for prompt, scale in (("blue", 2.0), ("red blue", 7.5), ("", 0.5)):
        reads.generate([prompt], steps=3, guidance=scale, progress=False)
    print(f"for other prompts and guidance scales: {Counted.runs - before if not eager() else 'eager'}")
    bars = loop.progress_bar

    def shown(patience):
        def run():
            loop.progress_bar = lambda total: bars(total, patience=patience)
            model.generate(4, steps=50, sampler=ddim, seed=0)
            loop.progress_bar = bars

        return run

    with contextlib.redirect_stdout(io.StringIO()):
        found = seconds({"silent": sampled(model, 4, 50), "bar": shown(0.0)}, 2 * a.rounds)
    print(f"a bar drawn at every step: {found['bar'] / found['silent'] - 1:+.1%}")


def eager():
    """Tell whether each step is a Python call."""
    return keras.backend.backend() == "torch"


if __name__ == "__main__":
    main()
