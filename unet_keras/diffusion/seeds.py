"""Random numbers that can be had again: seeds far apart, and streams an image."""

import numpy as np


def derived(seed: int, stream: int) -> int:
    """Make the seed of one of several streams, far from the others.

    On torch, draw k + 1 of seed s is draw k of seed s + 1: neighbouring seeds would repeat each other's noise.
    """
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0] >> 1)


def image_streams(seed: int, numbers) -> list[np.random.Generator]:
    """Give each image its own NumPy generator, so that image i of a seed is the same in whatever batch it is made."""
    return [np.random.default_rng([seed, number]) for number in numbers]


def draw(streams, shape) -> np.ndarray:
    """Draw standard normal noise (N, *shape) float32, one stream an image."""
    return np.stack([stream.standard_normal(shape, dtype="float32") for stream in streams])
