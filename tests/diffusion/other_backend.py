"""What a saved model does on the present backend. Run as a program, it reads a model and writes arrays for a test."""

import sys

import keras
import numpy as np
from keras import ops

from unet_keras import ddim, ddpm, ddpm_learned


def doings(path):
    """Sample, and train two steps on a given corrupted batch."""
    model = keras.saving.load_model(path)
    found = {}
    for sampler in (ddim, ddpm) if model.bound is None else (ddim, ddpm, ddpm_learned):
        options = {"steps": 10, "sampler": sampler, "seed": 5}
        *_, frame = model.denoising([0, 1, 1], guidance=2.0, **options)
        found[f"{sampler.__name__}_x"] = ops.convert_to_numpy(frame.x)
        images = model.generate([0, 1, 1], guidance=2.0, progress=False, **options)
        found[f"{sampler.__name__}_images"] = images
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, 4, 8, 8, 3)).astype("float32")
    t, label = np.array([0, 50, 500, 999], "float32"), np.array([0, 1, 2, 0], "int32")

    def corrupted(data, generator, dropping=None):
        inputs = {"image": x, "timestep": t, "label": label}
        tensors = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
        return tensors, ops.convert_to_tensor(target), ops.convert_to_tensor(np.array([1, 2, 0, 1], "float32"))

    model.corrupted = corrupted
    images = np.zeros((4, 8, 8, 3), "uint8")
    found["losses"] = np.array([float(model.train_on_batch(images, label)) for _ in range(3)])
    for name, net in (("weights", model.network), ("average", model.ema_network)):
        found[name] = np.concatenate([w.ravel() for w in net.get_weights()])
    found["iterations"] = np.array(int(model.optimizer.iterations))
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], **doings(sys.argv[1]))
