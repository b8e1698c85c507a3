"""Where one step runs on many devices: each replica's share of the global batch, and images spread over devices.

Noise is drawn for the global batch, from a state that is the same on every replica, and each takes the rows of its own
examples: the same seed gives the same noise on one device and on many. JAX runs one step on the global batch, so there
is nothing to do. TensorFlow's strategies and the processes of torch.distributed run a step on a part of it; all then
draw for all, which costs little beside a U-Net. This is the one file that names what distributes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    add: Callable

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


def process(strategy=None) -> tuple[int, int]:
    """This process's number, and of how many that train a model together, on TensorFlow under a ``strategy``."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index(), jax.process_count()
    if keras.backend.backend() == "torch":
        return _here()[:2]
    import tensorflow as tf

    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    cluster = strategy.cluster_resolver
    return cluster.task_id or 0, max(len(cluster.cluster_spec().as_dict().get("worker", [])), 1)


def meet(strategy=None) -> None:
    """Wait until every process is here."""
    if process(strategy)[1] == 1:
        return
    if keras.backend.backend() == "jax":
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("unet_keras")
    elif keras.backend.backend() == "torch":
        import torch.distributed as dist

        dist.barrier()
    else:
        strategy.reduce("SUM", strategy.run(lambda: ops.ones(())), axis=None)


def alone(function: Callable) -> None:
    """Call a function in a thread of its own, where no strategy is in force and no distribution.

    One of several processes can so do without the others, with which Keras would share what it makes on the way.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(function).result()


# ---- what Keras leaves to do ----------------------------------------------------------------------------------------


def together(model, train):
    """Make ``train``, a model's training pass, one whose gradients torch.distributed's processes average.

    All processes begin with the first one's seed and variables. Raises ValueError for a model that rematerialises.
    """
    if _world() == 1:
        return train
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if model.remat:
        raise ValueError("remat=True does not work in several processes of torch: leave it out, or use JAX.")
    seed = ops.convert_to_tensor([model.seed], "int64")
    for tensor in (seed, *(v.value.data for v in model.variables)):
        dist.broadcast(tensor, 0)
    model.seed = int(seed[0])
    return partial(DistributedDataParallel(model.network), training=True)


def apply_whole(optimizer) -> None:
    """Make an optimizer take TensorFlow's gradients whole, as those of JAX and torch are.

    Keras clips each replica's part under a strategy, and not their sum; of an embedding's gradient it squares and
    measures the parts of rows that a batch meets twice one by one. Where it scales the loss, it asks the first replica
    alone whether the gradients are finite.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of the one that scales the loss
    apply, clips = partial(type(inner).apply, inner), inner.clipnorm or inner.global_clipnorm or inner.clipvalue

    def whole(grads, trainable_variables=None):  # named as Keras calls it
        grads = [None if g is None else tf.convert_to_tensor(g) for g in grads]
        _, replicas, add, _ = _here()
        if replicas > 1 and clips:
            clipped = inner._clip_gradients([None if g is None else add(g) for g in grads])
            grads = [None if g is None else g / replicas for g in clipped]  # to be added up, with nothing to clip
        apply(grads, trainable_variables)

    inner.apply = whole
    if inner is not optimizer:
        optimizer.check_finite = partial(_finite_everywhere, partial(type(optimizer).check_finite, optimizer))


def _finite_everywhere(finite, gradients):
    """Ask on every replica whether its gradients are finite: all leave a step out, or none does."""
    here, (_, replicas, add, _) = finite(gradients), _here()
    return here if replicas == 1 else ops.equal(add(ops.cast(here, "float32")), float(replicas))


def logged(logs: dict) -> dict:
    """Give a step's logs the shape in which Keras can average those of TensorFlow's workers: it does so by rows."""
    if keras.backend.backend() != "tensorflow":
        return logs
    import tensorflow as tf

    several = process(tf.distribute.get_strategy())[1] > 1
    return {name: value[None] for name, value in logs.items()} if several else logs


def batch_rule() -> Callable[[int], None]:
    """Make the check whether the devices that are there now can share a batch of so many examples.

    Raises ValueError where Keras would pass over the devices that it was given.
    """
    backend, distribution = keras.backend.backend(), keras.distribution.distribution()
    if distribution is not None and backend != "jax":
        raise ValueError(
            "keras.distribution works on JAX alone: make the model within tf.distribute.MirroredStrategy().scope() on "
            "TensorFlow, and start as many processes with torchrun on torch; see docs/scale.md."
        )
    if backend == "tensorflow":
        import tensorflow as tf

        n = tf.distribute.get_strategy().num_replicas_in_sync
        return partial(_check_count, n, lambda count: -(-count // n) * (n - 1) < count)
    here = max(parts() // distribution.num_processes, 1) if distribution is not None else 1
    return partial(_check_count, here, lambda count: count % here == 0)


def _check_count(devices, shared, count):
    if not shared(count):
        raise ValueError(
            f"A batch of {count} examples cannot be shared by {devices} devices: choose batch_size a multiple of "
            f"{devices} and leave out the last images, images[:len(images) // {devices} * {devices}]; or drop the "
            "dataset's last batch."
        )


def check_strategy(strategy, optimizer, options: dict):
    """Raise ValueError for what Keras or TensorFlow cannot do under a strategy of several replicas."""
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    asked = {
        "gradient_accumulation_steps": (getattr(optimizer, "gradient_accumulation_steps", None) or 1) > 1,
        "steps_per_execution": options.get("steps_per_execution", 1) > 1,
        "jit_compile": options.get("jit_compile") is True,
    }
    if any(asked.values()):
        names = ", ".join(name for name, given in asked.items() if given)
        raise ValueError(f"{names} cannot be used under a tf.distribute strategy: leave it out, or use JAX.")


# ---- images on many devices -----------------------------------------------------------------------------------------


def places(strategy) -> list[str | None]:
    """The devices of this process that TensorFlow's ``strategy`` has; [None], wherever that is, without one.

    TPUs, on which nothing has been tried, count as one.
    """
    if strategy is None or strategy.num_replicas_in_sync == 1 or type(strategy).__name__.startswith("TPU"):
        return [None]
    return list(strategy.extended.worker_devices)


def placed(strategy, place: str | None, values: Iterator) -> Iterator:
    """Compute each of the values at a place, with the copy of the weights that lies there."""
    if place is None:
        yield from values
        return
    import tensorflow as tf

    done = object()
    while True:
        with strategy.scope(), tf.device(place):
            value = next(values, done)
        if value is done:
            return
        yield value


# ---- JAX: one program on many devices -------------------------------------------------------------------------------


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
