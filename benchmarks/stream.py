"""Measure folders too large for memory: the listing of many files, the first batch, and how fast images are decoded.

    python benchmarks/stream.py --files 1000000 --side 512 --size 64

The files are hard links to 20 photograph-like JPEGs, in 100 folders, made on the spot and removed afterwards.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from unet_keras.data import image_stream
from unet_keras.data.listing import listed


def memory(field):
    """A line of the process's status, in MB: VmRSS what it holds now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def make(folder, count, side):
    """Link files to smooth noise, which compresses about as photographs do."""
    rng, links = np.random.default_rng(0), []
    for i in range(20):
        noise = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        links.append(folder / f"{i}.original")
        Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(links[-1], "JPEG")
    for i in range(count):
        if i < 100:
            (folder / f"{i:03d}").mkdir()
        os.link(links[i % 20], folder / f"{i % 100:03d}" / f"{i:012d}.jpg")


def list_files(folder, count):
    before, start = memory("VmRSS"), time.perf_counter()
    names = listed(folder).images
    seconds, kept, most = time.perf_counter() - start, memory("VmRSS") - before, memory("VmHWM") - before
    print(f"listing {len(names):,} files: {seconds:.1f} s; {kept:.0f} MB kept, {most:.0f} MB at most")
    print(f"  the array of names: {names._names.nbytes / count:.0f} MB a million")


def decode(folder, size, batch_size, batches):
    for workers in (1, 2, 4)[: max(os.cpu_count().bit_length(), 2)]:
        start = time.perf_counter()
        stream = image_stream(folder, size, batch_size=batch_size, workers=workers, steps=batches + 1)
        ready = time.perf_counter()
        stream[0]
        first = time.perf_counter()
        for i in range(1, batches + 1):
            stream[i]
        rate = batch_size * batches / (time.perf_counter() - first)
        told = f"listing {ready - start:.1f} s, first batch {first - ready:.2f} s, then {rate:.0f} images a second"
        print(f"{workers} processes: {told}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--side", type=int, default=512, help="of the JPEGs")
    parser.add_argument("--size", type=int, default=64, help="to decode them to")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    a = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        make(folder, a.files, a.side)
        list_files(folder, a.files)
        decode(folder, a.size, a.batch_size, a.batches)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
