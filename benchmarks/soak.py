"""Train and sample in turn for an hour, and watch the process's memory.

    KERAS_BACKEND=torch python benchmarks/soak.py --minutes 60

A round trains an epoch on a folder of images, validates, samples with another sampler, number of steps and guidance
scale each time, saves and loads a checkpoint. Prints the memory after each tenth of the time, and the growth of the
second half in MB an hour (least squares).
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from unet_keras import (
    Checkpoint,
    DiffusionModel,
    LossGuard,
    by_label,
    class_label,
    ddim,
    ddpm,
    dpmpp_2m,
    emoji_table,
    heun,
    image_folder,
    patch_unet,
    timestep,
)


def memory():
    """Give the memory of this process, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def write_images(folder):
    table = emoji_table()
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
        for n, image in enumerate(table.images[100 * label : 100 * label + 70]):
            Image.fromarray(image).save(folder / str(label) / f"{n}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    a = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    write_images(root / "images")
    train, held = image_folder(root / "images", 32, batch_size=16, conditions=by_label, seed=0).split(0.1)
    network = patch_unet((32, 32, 3), width=16, conditions=(timestep(), class_label(4)))
    model = DiffusionModel(network, null={"label": 3}, drop=0.1, seed=0)
    model.compile(keras.optimizers.AdamW(1e-4))
    checkpoint = Checkpoint(root / "run", train, every=1e9)
    callbacks = [LossGuard(train[0], checkpoint), checkpoint]
    samplers, begin = itertools.cycle([ddim, ddpm, heun, dpmpp_2m]), time.monotonic()
    seen, images, due = [], 0, 0.0
    for epoch in itertools.count():
        place = {**checkpoint.resume(model), "initial_epoch": epoch}
        history = model.fit(train, epochs=epoch + 1, validation_data=held, callbacks=callbacks, verbose=0, **place)
        guidance, steps = 1.0 + epoch % 7 / 2, 3 + epoch % 11
        images += len(
            model.generate(
                {"label": np.arange(8) % 3}, sampler=next(samplers), steps=steps, guidance=guidance, progress=False
            )
        )
        minutes = (time.monotonic() - begin) / 60
        seen.append((minutes, memory()))
        if minutes >= due:
            due += a.minutes / 10
            loss = history.history["loss"][-1]
            print(
                f"{minutes:5.1f} min, {epoch + 1} rounds, {images} images, {memory():.0f} MB, loss {loss:.3f}",
                flush=True,
            )
        if minutes >= a.minutes:
            break
    late = np.array([point for point in seen if point[0] >= a.minutes / 2])
    print(f"{keras.backend.backend()}: growth in the second half {60 * np.polyfit(*late.T, 1)[0]:+.1f} MB an hour")


if __name__ == "__main__":
    main()
