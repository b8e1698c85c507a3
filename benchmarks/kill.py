"""Kill a short training at random moments, resume it each time, and compare its end with an uninterrupted one.

    KERAS_BACKEND=torch python benchmarks/kill.py --kills 20

Each run is ``unet-keras train`` on a folder of random pictures of two classes, with random flips, dropout, dropped
labels and a validation, in a process of its own that SIGKILL ends: a random time after its first batch, or for every
fifth after it began. In the end every number in the two runs' model files, the optimizer's and the random
generators' too, and every ``val_loss``, should be the same to the last bit. A third run, uninterrupted as well, tells
whether the backend computes the same numbers twice at all.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

TRAIN = "--data photos --size 8 --batch-size 4 --classes --samples-every 1000 --save-every 0.2".split()


def work(arguments):
    """Be the process that trains: the command line, with a network of the tests' size."""
    from unet_keras import build_unet, cli, res_block
    from unet_keras.cli import train
    from unet_keras.nn.blocks import conv

    block = partial(res_block, groups=2, dropout=0.1)
    train.NETWORKS["patch"] = partial(build_unet, levels=(8, 8), block=block, stem=partial(conv, filters=8))
    return cli.main(["train", *arguments])


def pictures(folder, count=44):
    """Write random pictures in two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype="uint8")).save(path)


def start(home, run, epochs):
    """Begin training in a process of its own, or go on with it; its output goes to ``log``."""
    go_on = ["--resume"] if (home / run / "settings.json").exists() else [*TRAIN, "--epochs", str(epochs)]
    command = [sys.executable, str(Path(__file__).resolve()), "--work", "--out", run, *go_on]
    log = open(home / "log", "w")
    return subprocess.Popen(command, cwd=home, stdout=log, stderr=subprocess.STDOUT)


def finish(home, run, epochs):
    """Train to the end. Raises RuntimeError where that fails."""
    if start(home, run, epochs).wait():
        raise RuntimeError((home / "log").read_text())


def kill(home, run, epochs, within, rng, at_start):
    """Train for a random time and kill; returns whether it was killed before it ended by itself."""
    process = start(home, run, epochs)
    while not at_start and process.poll() is None and "loss" not in (home / "log").read_text():
        time.sleep(0.01)
    began, wait = time.monotonic(), rng.uniform(0, 8 if at_start else within)
    while process.poll() is None and time.monotonic() - began < wait:
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    if process.wait() > 0:
        raise RuntimeError((home / "log").read_text())
    return process.returncode < 0


def numbers(file):
    """Read every array in a model's file, by its place in it."""
    import h5py

    found = {}
    with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
        weights.visititems(lambda name, item: found.update({name: item[()]}) if hasattr(item, "dtype") else None)
    return found


def compare(one, other):
    """Print how two runs' ends differ; returns whether they do."""
    a, b = (numbers(run / "model.keras") for run in (one, other))
    odd = {name: float(np.abs(a[name] - b[name].astype("float64")).max()) for name in a if (a[name] != b[name]).any()}
    losses = [json.loads((run / "settings.json").read_text())["losses"]["val_loss"] for run in (one, other)]
    print(f"{len(odd)} of {len(a)} arrays differ, by {max(odd.values(), default=0.0):.3g} at most; "
          f"the same val_loss at all {len(losses[0])} epochs: {losses[0] == losses[1]}")  # fmt: skip
    return bool(odd) or set(a) != set(b) or losses[0] != losses[1]


def main():
    """Run the test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--within", type=float, default=10.0, help="seconds of training before a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    rng, home, killed, tries, parts = random.Random(options.seed), Path(tempfile.mkdtemp()), 0, 0, set()
    pictures(home / "photos")
    while killed < options.kills and tries < 2 * options.kills:
        tries += 1
        killed += kill(home, "killed", options.epochs, options.within, rng, tries % 5 == 0)
        # What a kill left half written: one that comes before the next clean-up finds it again.
        parts |= {max([p.stat().st_mtime for p in (home / "killed").rglob("part.*")], default=0)} - {0}
        kept = [path.name for path in (home / "killed").glob("checkpoints/[0-9]*")]
        print(f"kill {killed}: {max(kept, default='0')[:9].lstrip('0') or 0} batches kept", flush=True)
    finish(home, "killed", options.epochs)
    finish(home, "whole", options.epochs)
    finish(home, "again", options.epochs)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    print(f"{backend}: {killed} kills, {len(parts)} of them while a file was written")
    print("two uninterrupted runs: ", end="")
    compare(home / "whole", home / "again")
    print("killed, and uninterrupted: ", end="")
    return compare(home / "whole", home / "killed")


if __name__ == "__main__":
    sys.exit(work(sys.argv[2:]) if sys.argv[1:2] == ["--work"] else main())
