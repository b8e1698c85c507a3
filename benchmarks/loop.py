"""Time sampling as a compiled step a row, which the package does, against the whole loop in one program.

    KERAS_BACKEND=jax python benchmarks/loop.py --width 64 --count 16 --steps 50

Prints the median over interleaved runs of both, and of the compiled step without the bar that waits for each frame.
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import ops

from unet_keras import DiffusionModel, classifier_free, clipped, ddim, patch_unet, trailing
from unet_keras.diffusion import loop
from unet_keras.diffusion.samplers import HISTORY


def whole_loop(model, rows):
    """Make a function that runs all rows inside one compiled program."""

    def run(x, table):
        def body(i, x):
            row = ops.take(table, i, axis=0)
            t = ops.broadcast_to(row[0], (ops.shape(x)[0],))
            output = model.averaged({"image": x, "timestep": t}, training=False)
            clean = clipped(model.prediction.estimate(x, output, row[1], row[2]))
            return row[6] * x + row[6 + HISTORY] * clean  # as packed: of DDIM, the first state and estimate alone

        return ops.fori_loop(0, len(rows), body, x)

    compiled = loop.compiled(run, model.averaged.variables)
    table = ops.convert_to_tensor(np.stack([loop.packed(row, 1.0) for row in rows]))
    return lambda x: ops.convert_to_numpy(compiled(ops.convert_to_tensor(x), table))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    model = DiffusionModel(patch_unet(width=a.width))
    rows = ddim(model.schedule.points(trailing(1000, a.steps)))
    step = loop.make_step(model.averaged, model.prediction, classifier_free, clipped)
    x = np.random.default_rng(0).standard_normal((a.count, 32, 32, 3), dtype="float32")

    def stepwise(tick=None):
        return loop.last([loop.run(step, rows, x, noise=None)], tick)

    one = whole_loop(model, rows)
    programs = {
        "a compiled step a row": stepwise,
        "the same, with progress bar": lambda: stepwise(loop.progress_bar(len(rows), patience=1e9)),
        "whole loop in one program": lambda: one(x),
    }
    results = {name: run() for name, run in programs.items()}
    worst = max(float(np.abs(r - results["whole loop in one program"]).max()) for r in results.values())
    if worst > 1e-4:
        raise SystemExit(f"The programs do not make the same images: they differ by {worst:.1e}.")
    seconds = {name: [] for name in programs}
    for _ in range(a.rounds):
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"{keras.backend.backend()}: {a.count} images, {a.steps} steps; the images differ by at most {worst:.1e}")
    for name, times in seconds.items():
        print(f"{name:32}{statistics.median(times):8.3f} s")


if __name__ == "__main__":
    main()
