"""Time wide 3x3 convolutions in half the products (`unet_keras/nn/winograd.py`) beside TensorFlow's own, on a CPU.

    KERAS_BACKEND=tensorflow python benchmarks/convolutions.py --rounds 9

Forward, and forward with the gradients of map and kernel; the two in turn, medians. What `pays` takes is marked.
"""

import argparse
import statistics
import time

import numpy as np
import tensorflow as tf

from unet_keras.nn import winograd

SHAPES = [
    (1, 64, 192), (1, 64, 384), (1, 32, 256), (1, 32, 384), (2, 16, 384), (2, 32, 256), (4, 16, 192), (4, 16, 384),
    (4, 32, 128), (4, 32, 192), (4, 32, 256), (4, 64, 128), (4, 64, 192), (16, 16, 128), (16, 16, 192), (16, 16, 256),
    (16, 32, 128), (16, 32, 192), (16, 32, 256),
]  # fmt: skip
"""Images, height and width, channels in and out."""


def plain(x, kernel, bias):
    return tf.nn.conv2d(x, kernel, 1, "SAME") + bias


def timed(convolve, x, kernel, bias):
    """Make both functions to time; each ends with a number on the host."""

    @tf.function(autograph=False)
    def forward():
        return convolve(x, kernel, bias)

    @tf.function(autograph=False)
    def both():
        with tf.GradientTape() as tape:
            tape.watch([x, kernel, bias])
            y = convolve(x, kernel, bias)
        return y, *tape.gradient(y, [x, kernel, bias], output_gradients=x)

    return [lambda: forward()[0, 0, 0, 0].numpy(), lambda: [g[..., 0].numpy() for g in both()]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(0)
    print(f"{'images, pixels, channels':28}{'forward: theirs, ours, ms':>28}{'and backward':>20}{'off':>9}  pays")
    for count, size, channels in SHAPES:
        x, kernel = (rng.normal(size=s) for s in ((count, size, size, channels), (3, 3, channels, channels)))
        given = [tf.constant(v, "float32") for v in (x, kernel / (3 * channels**0.5), rng.normal(size=channels))]
        programs = [timed(convolve, *given) for convolve in (plain, winograd.convolve)]
        seconds = {(i, j): [] for j in range(2) for i in range(2)}
        for i, j in seconds:
            programs[i][j]()
        for _ in range(rounds):
            for i, j in seconds:
                start = time.perf_counter()
                programs[i][j]()
                seconds[i, j].append(time.perf_counter() - start)
        ms = {key: 1e3 * statistics.median(all_) for key, all_ in seconds.items()}
        expected = plain(*given).numpy()
        off = np.abs(winograd.convolve(*given).numpy() - expected).max() / np.abs(expected).max()
        cells = "".join(
            f"{ms[0, j]:>{w}.1f} ->{ms[1, j]:6.1f}{ms[0, j] / ms[1, j]:6.2f}" for j, w in enumerate((10, 8))
        )
        marked = "yes" if winograd.pays(*given[:2]) else ""
        print(f"{count:3}, {size:3} x {size:3}, {channels:4}{cells}{off:9.0e}  {marked}", flush=True)


if __name__ == "__main__":
    main()
