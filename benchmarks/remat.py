"""Measure what ``DiffusionModel(..., remat=True)`` saves in memory and costs in time.

    python benchmarks/remat.py                             the three backends, a process each
    python benchmarks/remat.py --backend torch --batch 32 --steps 3

Training of DDPM's CIFAR-10 network with AdamW and an average. Memory: the greatest of the process, over what it held
after a tiny network had been trained to load all libraries. On torch also what its allocator held at most, over the
state, in the last step. Time: the median step after the first.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from cost import status

BACKENDS = ("torch", "tensorflow", "jax")
KEEP_BARRIERS = "--xla_disable_hlo_passes=cse_barrier_expander"
"""Without it XLA joins what is computed again with what was computed first, on CPUs, and keeps it."""


def measure(options):
    """Print one line of JSON for one backend, with or without."""
    import keras
    import numpy as np

    from unet_keras import DiffusionModel, build_unet, ddpm_cifar10

    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            seconds.append(time.perf_counter() - self.start)

    images = np.random.default_rng(0).integers(0, 256, ((1 + options.steps) * options.batch, 32, 32, 3), dtype="uint8")

    def train(network, count, **more):
        model = DiffusionModel(network, seed=0, **more)
        model.compile(keras.optimizers.AdamW())
        history = model.fit(images[:count], batch_size=options.batch, verbose=0, callbacks=[Clock()])
        return model, history.history["loss"][-1]

    train(build_unet((32, 32, 3), (4, 8)), options.batch)
    before = status("VmRSS")
    seconds.clear()
    keras.utils.set_random_seed(0)
    model, loss = train(ddpm_cifar10(), len(images), remat=options.remat)
    found = {"backend": keras.backend.backend(), "remat": options.remat, "batch": options.batch, "loss": round(loss, 5)}
    found |= {
        "process MiB": round((status("VmHWM") - before) / 2**20),
        "step s": round(float(np.median(seconds[1:])), 2),
    }
    if found["backend"] == "torch":
        found["allocated MiB"] = round(_allocated(model, images[: options.batch]) / 2**20)
    print(json.dumps(found), flush=True)


def _allocated(model, images):
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model.train_on_batch(images)
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument(
        "--keep-barriers", action="store_true", help="leave out the pass of XLA's that undoes it on CPUs"
    )
    parser.add_argument("--remat", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.remat is not None:
        return measure(options)
    for backend in [options.backend] if options.backend else BACKENDS:
        for remat in ("--no-remat", "--remat"):
            more = ["--batch", str(options.batch), "--steps", str(options.steps), remat]
            environment = {**os.environ, "KERAS_BACKEND": backend}
            if backend == "jax" and options.keep_barriers:
                environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {KEEP_BARRIERS}"
            subprocess.run([sys.executable, __file__, *more], check=True, env=environment)


if __name__ == "__main__":
    main()
