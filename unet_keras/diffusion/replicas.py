"""Where one step runs on many devices: each replica's share of the global batch, and images spread over devices.

Noise is drawn for the global batch, from a state that is the same on every replica, and each takes the rows of its own
examples: the same seed gives the same noise on one device and on many. JAX runs one step on the global batch, so there
is nothing to do. TensorFlow's strategies and the processes of torch.distributed run a step on a part of it; all then
draw for all, which costs little beside a U-Net. This is the one file that names what distributes.
"""

from functools import partial
from typing import NamedTuple

import keras
import numpy as np
from keras import ops


class Share(NamedTuple):
    """The examples of this replica: ``count`` of a ``total``, from number ``start`` on; ``add`` sums over replicas."""

    start: int
    count: int
    total: int
    replicas: int
    add: callable

    def rows(self, draw):
        """Give this replica's rows of ``draw(n)``, which draws for n examples."""
        return draw(self.total)[self.start : self.start + self.count]

    def of_all(self, loss):
        """Turn the mean loss of these examples into that of all, with this replica's part of its gradient.

        What is divided by the number of replicas, as Keras does on TensorFlow, stays so. Keras averages replicas, or
        adds up what it has divided: right only where all have as many examples, and the last batch may not.
        """
        if self.replicas == 1:
            return loss
        count, total = (ops.cast(n, loss.dtype) for n in (self.count, self.total))
        own = self.replicas * count / total * loss
        return own + ops.stop_gradient(self.add(count * loss) / total - own)


def share_of(count) -> Share:
    """Find the share of a replica that was given ``count`` examples; call it in every replica alike."""
    rank, replicas, add, even = _here()
    if replicas == 1:
        return Share(0, count, count, 1, add)
    if even:
        return Share(rank * count, count, replicas * count, replicas, add)
    numbers = ops.arange(replicas, dtype="int32")
    counts = add(ops.cast(numbers == rank, "float32") * ops.cast(count, "float32"))
    start, total = (ops.cast(ops.sum(v), "int32") for v in (ops.where(numbers < rank, counts, 0.0), counts))
    return Share(start, count, total, replicas, add)


def _here():
    """This replica's number, how many there are, the sum over them, and whether all have as many examples."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context and context.num_replicas_in_sync > 1:
            add = partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
            even = isinstance(context.strategy, tf.distribute.TPUStrategy)  # whose shapes are fixed
            return context.replica_id_in_sync_group, context.num_replicas_in_sync, add, even
    elif (world := _world()) > 1:
        import torch.distributed as dist

        def add(x):
            x = x.detach().clone()
            dist.all_reduce(x)
            return x

        return dist.get_rank(), world, add, False
    return 0, 1, lambda x: x, True


def _world():
    """The number of torch.distributed's processes."""
    if keras.backend.backend() != "torch":
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# ---- JAX: one program on many devices ---------------------------------------------------------------------------------


def spread(x):
    """Make a tensor of a NumPy array (N, ...), its rows spread over the devices of ``keras.distribution`` on JAX.

    Each process gives all rows. Where they cannot be dealt out evenly, every device has them all.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or keras.backend.backend() != "jax":
        return ops.convert_to_tensor(x)
    import jax

    layout = distribution.get_data_layout(x.shape).backend_layout
    if len(x) % parts():
        layout = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())
    return jax.make_array_from_callback(x.shape, layout, lambda rows: x[rows])


def gathered(x) -> np.ndarray:
    """Give a tensor as a NumPy array, also where other processes hold a part of it."""
    if keras.backend.backend() == "jax" and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)
    return ops.convert_to_numpy(x)


def parts() -> int:
    """Into how many equal parts ``keras.distribution`` divides a batch on JAX."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None or keras.backend.backend() != "jax" else distribution.num_model_replicas
