"""What a network costs, before anything is allocated: parameters, operations, memory in training and in sampling.

A functional ``keras.Model`` is read call by call in the order in which Keras runs it; its variables need no memory,
see ``outline.py``. What a layer computes and keeps is said once for each kind of layer, in ``layer_costs.py``.

    activations of training    what the backward pass needs of the forward pass, each tensor counted once
    activations of sampling    the most that is held at a time while one forward pass runs

Backends differ, so the figures are those of one: Keras on torch holds every layer's output until the forward pass ends
and copies convolutions' kernels into torch's layout; TensorFlow and JAX let go of a tensor after its last reader and
write attention's weights out, which torch's fused kernel does not. What compilers save beyond, and the workspace of
kernels, is not known here: benchmarks/README.md says how far off the figures are.
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import keras

from unet_keras.checks import check_counts
from unet_keras.nn.convolution import Conv
from unet_keras.zoo.layer_costs import bytes_of, is_view, kept, operations, scratch, width_of

OPTIMIZER_COPIES = 2
"""AdamW's: the mean and the mean square of each gradient."""


@dataclass(frozen=True)
class Cost:
    """What a batch costs; memory in bytes.

    An operation is an addition or a multiplication, of convolutions, dense layers and attention: the others' are few.
    """

    batch: int
    parameters: int
    forward_flops: int
    weights: int
    trainable: int  # of the weights, those that are trained
    weight_copies: int  # that live from the forward to the backward pass: other precision, other layout
    training_activations: int
    sampling_activations: int
    uncounted: tuple[str, ...] = ()  # kinds of layers with weights whose operations are not known

    @property
    def training_flops(self) -> int:
        """Of a training step: forward, and twice that backward, for the gradients of inputs and of weights."""
        return 3 * self.forward_flops

    @property
    def average(self) -> int:
        """Memory of the weights' running average, where one is kept."""
        return self.weights

    @property
    def gradients(self) -> int:
        """Memory of the gradients, each as large as its weight."""
        return self.trainable

    @property
    def optimizer(self) -> int:
        """Memory of AdamW's state."""
        return OPTIMIZER_COPIES * self.trainable

    @property
    def training(self) -> int:
        """All memory of training, with AdamW and an average; gradients and activations as if whole at one time."""
        state = self.weights + self.average + self.optimizer
        return state + self.gradients + self.weight_copies + self.training_activations

    @property
    def sampling(self) -> int:
        """All memory of sampling without guidance, which doubles the batch."""
        return self.weights + self.sampling_activations


class Call(NamedTuple):
    """One call of a layer; inputs and outputs are KerasTensors of known shapes."""

    layer: keras.Layer
    inputs: list
    outputs: list


def cost(network: keras.Model, batch: int = 1, *, size=None, tokens: int = 77, backend: str | None = None) -> Cost:
    """Say what a functional network costs for a batch of images.

        cost(ddpm_cifar10(), 128).training / 2**30      # GiB

    size      height and width of the images, or of the latents: a number or (height, width); the network's own unless
              given, and needed where it leaves them open
    tokens    the length of a context that may have any
    backend   "tensorflow", "jax" or "torch", whose memory is meant; the one in use unless given

    Memory is that of tensors; the process that trains took up to 1.7 times as much where it was measured, on CPUs.

    Raises ValueError for a batch or tokens below one, for an open size that is not given or one that does not fit the
    network, and for a model that is not functional.
    """
    check_counts(batch=batch, tokens=tokens)
    backend = backend or keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        raise ValueError(f"backend must be tensorflow, jax or torch, got {backend!r}.")
    inputs = _inputs(network, int(batch), size, tokens)
    try:
        calls = calls_of(network, inputs)
        _check_sizes(calls)
    except ValueError as error:
        told = " ".join(str(error).split())
        raise ValueError(f"{network.name} cannot be followed on size={size}: {told}") from error
    sizes, roots = _storage(calls, inputs, training=True)
    keeps = {}
    for call in calls:
        keeps |= kept(call.layer, call, roots, sizes, backend)
    if backend == "torch":
        # Keras's graph holds on to every output until the forward pass has ended, with nothing to free it earlier.
        keeps |= {roots[id(y)]: sizes[roots[id(y)]] for call in calls for y in call.outputs}
    counted = [operations(call.layer, call.inputs, call.outputs, backend) for call in calls]
    heavy = {type(c.layer).__name__ for c, n in zip(calls, counted, strict=True) if n is None and _multiplies(c.layer)}
    return Cost(
        batch=int(batch),
        parameters=sum(prod(v.shape) for v in network.weights),
        forward_flops=sum(filter(None, counted)),
        weights=_memory(network.weights),
        trainable=_memory(network.trainable_weights),
        weight_copies=_copies(network, backend),
        training_activations=sum(keeps.values()),
        sampling_activations=_most_at_once(calls, inputs, backend),
        uncounted=tuple(sorted(heavy)),
    )


# ---- the graph ------------------------------------------------------------------------------------------------------


def calls_of(network: keras.Model, inputs: list) -> list[Call]:
    """Give the calls of a functional network's layers, in order, on inputs of known shapes; networks in it opened."""
    calls = []

    def note(layer):
        if isinstance(layer, keras.Model):
            return lambda *args, **options: _through(layer, keras.tree.flatten((args, options)), note)

        def call(*args, **options):
            outputs = layer.compute_output_spec(*args, **options)
            given = [x for x in keras.tree.flatten((args, options)) if isinstance(x, keras.KerasTensor)]
            calls.append(Call(layer, given, keras.tree.flatten(outputs)))
            return outputs

        return call

    _through(network, inputs, note)
    return calls


def _through(network, inputs, note):
    """Run the graph with ``note(layer)`` in each layer's place."""
    if not isinstance(network, keras.Model) or not hasattr(network, "_run_through_graph"):
        raise ValueError(f"{network.name} is not a functional keras.Model: its layers' calls are not known.")
    return network._run_through_graph(inputs, operation_fn=note)


def _inputs(network, batch, size, tokens):
    """The network's inputs as KerasTensors without open sizes."""
    if not getattr(network, "inputs", None):
        raise ValueError(f"{network!r} is not a functional keras.Model: its inputs are not known.")
    pair = size if isinstance(size, tuple | list) else (size, size)
    if size is not None and (len(pair) != 2 or any(isinstance(n, bool) or n != int(n) or n < 1 for n in pair)):
        raise ValueError(f"size must be a number or (height, width), 1 or more, got {size!r}.")
    return [_input(x, batch, pair, tokens) for x in network.inputs]


def _input(x, batch, pair, tokens):
    shape = list(x.shape[1:])
    if len(shape) == 3:
        at = 1 if keras.config.image_data_format() == "channels_first" else 0
        shape[at : at + 2] = [own if n is None else int(n) for own, n in zip(shape[at : at + 2], pair, strict=True)]
        if None in shape:
            raise ValueError(f"The network leaves the size of {x.name!r} open: give size=(height, width).")
    shape = [tokens if n is None else n for n in shape]
    return keras.KerasTensor((batch, *shape), dtype=x.dtype, name=x.name)


def _check_sizes(calls):
    """Keras itself compares sizes only when it runs; a size may not fit where it is not one that halves."""
    for call in calls:
        if isinstance(call.layer, keras.layers.Concatenate):
            axis = call.layer.axis % len(call.inputs[0].shape)
            if len({(*x.shape[:axis], *x.shape[axis + 1 :]) for x in call.inputs}) > 1:
                met = " and ".join(str(tuple(x.shape)) for x in call.inputs)
                raise ValueError(f"{call.layer.name} cannot put {met} side by side; build the network for that size")


# ---- memory ---------------------------------------------------------------------------------------------------------


def _storage(calls, inputs, training):
    """{tensor: bytes} of each tensor that has memory of its own, and {tensor: the one that holds its memory}."""
    sizes, roots = {}, {}
    for x in inputs:
        sizes[id(x)], roots[id(x)] = bytes_of(x), id(x)
    for call in calls:
        for y in call.outputs:
            if is_view(call.layer, training):
                roots[id(y)] = roots[id(call.inputs[0])]
            elif id(y) not in roots:
                sizes[id(y)], roots[id(y)] = bytes_of(y), id(y)
    return sizes, roots


def _most_at_once(calls, inputs, backend):
    """Follow a forward pass: what is held before each call, its outputs, and what it needs for itself."""
    sizes, roots = _storage(calls, inputs, training=False)
    last = {roots[id(x)]: i for i, call in enumerate(calls) for x in (*call.inputs, *call.outputs)}
    held = {roots[id(x)] for x in inputs}
    most = 0
    for i, call in enumerate(calls):
        held |= {roots[id(y)] for y in call.outputs}
        most = max(most, sum(sizes[x] for x in held) + scratch(call.layer, call.inputs, call.outputs, backend))
        if backend != "torch":
            held -= {x for x in held if last.get(x, -1) <= i and i < len(calls) - 1}
    return most


def _copies(network, backend):
    """Weights in the precision that they are multiplied in, and torch's copies of convolutions' kernels."""
    kinds = keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.Dense, keras.layers.EinsumDense
    heavy = [layer for layer in network._flatten_layers(include_self=False) if isinstance(layer, kinds)]
    return sum(_copy(layer, backend) for layer in heavy)


def _copy(layer, backend):
    moved = backend == "torch" and isinstance(layer, keras.layers.Conv2D) and not isinstance(layer, Conv)
    cast = layer.kernel.dtype != layer.compute_dtype
    spread = isinstance(layer, Conv) and layer.doubled and backend != "jax"
    return (moved or cast) * _kernel(layer) + spread * _kernel(layer) * 16 // 9


def _kernel(layer):
    return prod(layer.kernel.shape) * width_of(layer.compute_dtype)


def _memory(variables):
    return sum(bytes_of(v) for v in variables)


def _multiplies(layer):
    return any(len(v.shape) > 1 for v in layer.weights)
