"""Many devices: weak scaling as it can be simulated on a CPU, what to expect of real ones on paper, half precision.

    python benchmarks/scale.py                   1, 2 and 4 simulated devices, a fixed batch for each, a process each
    python benchmarks/scale.py --estimate        data parallel on 16 v5e and 8 H200: an estimate, nothing is measured
    python benchmarks/scale.py --estimate --step 0.31 --batch 128      the same from a step measured on one device
    python benchmarks/scale.py --precision       losses in half precision against float32's

Simulated devices share this machine's cores, so D of them have D times the work for the same cores: what is above D
times the seconds of one is what dividing and adding up costs. CPU seconds are those of all threads of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import product

FLAG = "--xla_force_host_platform_device_count={}"

LINKS = {
    # matrix rate of bfloat16 in operations/s, bytes/s a device sends to its neighbours, memory in bytes, devices
    "v5e-16": (197e12, 100e9, 16e9, 16),
    "8 x H200": (989e12, 450e9, 141e9, 8),
}
"""From the makers' data sheets; half of the links' figures, which count both directions."""

USED = 0.4
"""The share of the matrix rate that a U-Net is assumed to reach."""


def trained(images, batch, make, policy="float32", **options):
    import keras

    from unet_keras import DiffusionModel

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = DiffusionModel(make(), seed=0)
    model.compile(keras.optimizers.AdamW(1e-3))
    return model.fit(images, batch_size=batch, shuffle=False, verbose=0, **options)


def images_of(count):
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype="uint8")


def weak(devices, batch, steps):
    """Print one line of JSON: the median step with ``batch`` images on each of the simulated devices."""
    import contextlib

    import keras
    import numpy as np

    from unet_keras import build_unet

    wall, work = [], []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.start = time.perf_counter(), time.process_time()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # waits for the step
            for seconds, start, now in zip(
                (wall, work), self.start, (time.perf_counter(), time.process_time()), strict=True
            ):
                seconds.append(now - start)

    scope = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    elif devices > 1:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
        scope = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(devices)]).scope()
    with scope:
        trained(
            images_of((2 + steps) * batch * devices),
            batch * devices,
            partial(build_unet, (16, 16, 3), (16, 32)),
            callbacks=[Clock()],
        )
    middle = [round(float(np.median(seconds[2:])), 4) for seconds in (wall, work)]
    print(json.dumps({"backend": keras.backend.backend(), "devices": devices, "step s": middle[0], "CPU s": middle[1]}))


def estimate(batch, step):
    """Print what bounds data-parallel training: the step's arithmetic, the gradients' way, or memory."""
    from unet_keras import cost
    from unet_keras.zoo.outline import outline

    print("| network | devices | batch each | step, s | gradients, GB | their way, s | efficiency | memory of one |")
    names = {"ddpm-cifar10": 128, "stable-diffusion-1.5": 8, "stable-diffusion-xl": 4}
    for name, (where, (rate, link, memory, count)) in product(names, LINKS.items()):
        size = batch or names[name]
        costs = cost(outline(name, dtype="mixed_bfloat16"), size, backend="jax")
        compute = step or costs.training_flops / (USED * rate)
        sent = 2 * (count - 1) / count * costs.gradients / link
        hidden = min(sent, 2 / 3 * compute)
        least, most = (compute / (compute + late) for late in (sent, sent - hidden))
        fits = "fits" if costs.training < memory else "does not fit"
        print(
            f"| {name} | {where} | {size} | {compute:.3f} | {costs.gradients / 1e9:.2f} | {sent:.4f} | "
            f"{least:.0%} to {most:.0%} | {costs.training / 1e9:.0f} of {memory / 1e9:.0f} GB, {fits} |"
        )


def precision(steps):
    """Print the largest difference of the losses in half precision from those in float32, step by step."""
    import keras
    import numpy as np

    from unet_keras import small_unet

    make = partial(small_unet, (16, 16, 3), width=16)

    def losses(policy):
        return np.array(trained(images_of(8), 8, make, policy=policy, epochs=steps).history["loss"])

    full = losses("float32")
    for policy in ("mixed_bfloat16", "mixed_float16"):
        apart = np.abs(losses(policy) / full - 1)
        found = {
            "backend": keras.backend.backend(),
            "policy": policy,
            "steps": steps,
            "float32": full[[0, -1]].tolist(),
        }
        print(json.dumps(found | {"largest difference": float(apart.max()), "last": float(apart[-1])}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow"], choices=("jax", "tensorflow", "torch"))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, help="images on each device")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--step", type=float, help="seconds of a step of one device, as measured, for --estimate")
    parser.add_argument("--precision", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.estimate:
        return estimate(options.batch, options.step)
    if options.inside and options.precision:
        return precision(options.steps)
    if options.inside:
        return weak(options.devices[0], options.batch or 4, options.steps)
    mode = ["--precision"] if options.precision else ["--batch", str(options.batch or 4)]
    for backend, devices in product(options.backends, [1] if options.precision else options.devices):
        command = [
            sys.executable,
            __file__,
            "--inside",
            "--devices",
            str(devices),
            "--steps",
            str(options.steps),
            *mode,
        ]
        environment = {**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": FLAG.format(devices)}
        subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
