"""Random numbers that can be had again: seeds far apart, noise that differs between replicas, streams an image."""

import keras
import numpy as np
from keras import ops


def derived(seed: int, stream: int) -> int:
    """Make the seed of one of several streams, far from the others.

    On torch, draw k + 1 of seed s is draw k of seed s + 1: neighbouring seeds would repeat each other's noise.
    """
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0] >> 1)


class TensorSeed(keras.random.SeedGenerator):
    """A seed that is a tensor (2,) made elsewhere: the form that every backend takes inside a compiled step."""

    def __init__(self, value):
        self.value = value

    def next(self, ordered=True):
        return self.value


def next_seed(generator):
    """Advance a SeedGenerator; replicas, which hold equal generators, get different seeds."""
    value, rank = generator.next(), _rank()
    if isinstance(rank, int) and rank == 0:
        return TensorSeed(value)
    return TensorSeed(value + ops.cast(ops.stack([ops.cast(rank, "int32") * 1000003, 0]), value.dtype))


def _rank():
    """Number this replica. JAX draws one global noise for all of its devices, and needs none."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        return context.replica_id_in_sync_group if context and context.num_replicas_in_sync > 1 else 0
    if keras.backend.backend() == "torch":
        import torch.distributed as dist

        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return 0


def image_streams(seed: int, numbers) -> list[np.random.Generator]:
    """Give each image its own NumPy generator, so that image i of a seed is the same in whatever batch it is made."""
    return [np.random.default_rng([seed, number]) for number in numbers]


def draw(streams, shape) -> np.ndarray:
    """Draw standard normal noise (N, *shape) float32, one stream an image."""
    return np.stack([stream.standard_normal(shape, dtype="float32") for stream in streams])
