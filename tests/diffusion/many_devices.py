"""What a model does on some number of simulated devices. Run as a program, it writes arrays for a test.

    python many_devices.py OUT.npz 4                       that many devices of one process
    python many_devices.py OUT.npz 2 HOST:PORT 0           a device in each of two processes; this is number 0
"""

import os
import sys

DEVICES, HERE = int(sys.argv[2]), sys.argv[3:]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={1 if HERE else DEVICES}"

import keras  # noqa: E402
import numpy as np  # noqa: E402

if HERE:
    keras.distribution.initialize(HERE[0], DEVICES, int(HERE[1]))

from unet_keras import ddpm  # noqa: E402
from unet_keras.diffusion.replicas import gathered  # noqa: E402

from diffusion.helpers import pixels, trainer  # noqa: E402

IMAGES, LABELS = pixels(8), np.arange(8, dtype="int32") % 3
SETTINGS = {"drop": 0.5, "ema": 0.9, "seed": 1}


def made():
    """A model, on all devices where there are several."""
    if DEVICES == 1:
        return trainer(4, **SETTINGS)
    if keras.backend.backend() == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
        return trainer(4, **SETTINGS)
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES)
    with tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(DEVICES)]).scope():
        return trainer(4, **SETTINGS)


def doings(model):
    """Train 20 steps, validate and sample."""
    mine = slice(4 * int(HERE[1]), 4 * int(HERE[1]) + 4) if HERE else slice(None)
    images, labels = IMAGES[mine], LABELS[mine]
    options = {"batch_size": len(images), "shuffle": False, "verbose": 0}
    found = {"losses": model.fit(images, labels, epochs=20, **options).history["loss"]}
    found["validation"] = model.evaluate(images, labels, batch_size=len(images), verbose=0)
    weights = np.concatenate([w.ravel() for w in model.get_weights()])
    found["weights"] = weights
    options = {"steps": 3, "guidance": 2.0, "seed": 3, "progress": False, "sampler": ddpm}
    found["images"] = model.generate([0, 1, 2, 0, 1], **options, batch_size=3)
    *_, frame = model.denoising([0, 1, 2, 0], steps=2, seed=3)
    found["frame"] = gathered(frame.x)
    found["sharding"] = str(getattr(frame.x, "sharding", ""))
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **doings(made()))
