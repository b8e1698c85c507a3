"""Rematerialisation: blocks forget their activations, and the backward pass computes them again (Chen et al. 2016).

Memory of activations for time: what stays is what passes from block to block. The network itself is as before, in its
layers, names and files; only how a training pass runs through it differs.

Keras's own ``keras.remat`` around layers is not enough: the second run draws another Dropout mask (on TensorFlow and
torch without a word, and the gradients are wrong), and it does not know that it is in training. So a block becomes a
pure function here, of its inputs and its weights; its random generators begin both runs in the same state.

On JAX's CPUs a pass of XLA's joins the second run with the first and keeps all as before, unless it is left out:
``XLA_FLAGS=--xla_disable_hlo_passes=cse_barrier_expander``.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

BLOCKS = r".*?(block|attend)\d+"
"""What begins the names of all layers of a block, as ``build_unet`` names them."""


def rematerialised(network: keras.Model, blocks: str = BLOCKS) -> Callable:
    """Make the function inputs -> outputs of a training pass of a functional network that keeps no block's activations.

    blocks    a regular expression for the beginnings of layers' names: layers with the same beginning are a block

    Outputs, gradients and what the pass changes (random generators, moving statistics) are those of
    ``network(inputs, training=True)``. Raises ValueError for a network that is not functional, where no layer has such
    a name, and for a block through which data pass more than once.
    """
    if not hasattr(network, "_nodes_by_depth"):
        raise ValueError(f"{network.name} is not a functional keras.Model: it has no blocks to rematerialise.")
    return Run(network, _parts(network, re.compile(blocks))).__call__


class Part(NamedTuple):
    """Calls of layers that run together: ``inputs`` and ``outputs`` are ids of the tensors that come in and go out."""

    block: str | None
    nodes: list
    inputs: list
    outputs: list


class Run(keras.Layer):
    """A training pass, part by part. A layer, so that weights are read as they are: without one, Keras would cast them.

    The backward pass would see them in another dtype than the forward pass, of which TensorFlow dies.
    """

    def __init__(self, network, parts):
        super().__init__(dtype="float32", autocast=False)
        self.network, self.parts = network, parts

    def call(self, inputs):
        given = keras.tree.flatten(inputs)
        known = {id(x): ops.convert_to_tensor(v, x.dtype) for x, v in zip(self.network.inputs, given, strict=True)}
        for part in self.parts:
            _run_part(part, known)
        return keras.tree.pack_sequence_as(self.network.output, [known[id(x)] for x in self.network.outputs])


def _parts(network, pattern):
    """Divide a network into its blocks and the single layers between them, in an order in which they can run."""
    nodes = [n for depth in sorted(network._nodes_by_depth)[::-1] for n in network._nodes_by_depth[depth]]
    groups = defaultdict(list)
    for node in nodes:
        if not node.is_input:
            found = pattern.match(node.operation.name)
            groups[found[0] if found else id(node)].append(node)
    if not any(isinstance(key, str) for key in groups):
        raise ValueError(f"No layer of {network.name} has a name like {pattern.pattern}: there is nothing to remat.")
    readers = defaultdict(set)
    for key, group in groups.items():
        for x in (x for node in group for x in node.input_tensors):
            readers[id(x)].add(key)
    kept = {id(x) for x in network.outputs}
    parts, known = [], {id(x) for x in network.inputs}
    while groups:
        key = next((k for k, group in groups.items() if _outside(group) <= known), None)
        if key is None:
            blocks = sorted(k for k in groups if isinstance(k, str))
            raise ValueError(f"Data leave one of {blocks} and come back to it: blocks={pattern.pattern!r} is too wide.")
        group = groups.pop(key)
        made = [id(x) for node in group for x in node.outputs]
        outputs = [x for x in made if x in kept or readers[x] - {key}]
        parts.append(Part(key if isinstance(key, str) else None, group, sorted(_outside(group)), outputs))
        known.update(made)
    return parts


def _outside(group):
    """The ids of the tensors that a group of calls reads from others."""
    made = {id(x) for node in group for x in node.outputs}
    return {id(x) for node in group for x in node.input_tensors} - made


def _run_part(part, known):
    if part.block is None:
        _run(part.nodes, known)
        return
    layers = {id(node.operation): node.operation for node in part.nodes}.values()
    trained = [v for layer in layers for v in layer.trainable_variables]
    begun = [(v, ops.stop_gradient(v)) for layer in layers for v in layer.non_trainable_variables]
    given = {x: known[x] for x in part.inputs}
    # What has a gradient is handed in; TensorFlow allows nothing else there.
    smooth = [x for x, tensor in given.items() if keras.backend.is_float_dtype(tensor.dtype)]
    changed = []

    def body(*tensors):
        inner = given | dict(zip(smooth, tensors[len(trained) :], strict=True))
        with keras.StatelessScope([*zip(trained, tensors, strict=False), *begun]) as scope:
            _run(part.nodes, inner)
            changed[:] = [v for v, value in begun if scope.get_current_value(v) is not value]
            states = [ops.stop_gradient(scope.get_current_value(v)) for v in changed]
        return [*(inner[x] for x in part.outputs), *states]

    outputs = keras.remat(body)(*(ops.convert_to_tensor(v) for v in trained), *(given[x] for x in smooth))
    known.update(zip(part.outputs, outputs, strict=False))
    # The second run begins where the first one did: what is about to change is kept, frozen weights are not.
    begun[:] = [(v, ops.copy(value) if any(v is c for c in changed) else value) for v, value in begun]
    for v, state in zip(changed, outputs[len(part.outputs) :], strict=True):
        v.assign(state)


def _run(nodes, known):
    """Call layers in training, as their nodes in the graph say."""
    for node in nodes:
        args, options = node.arguments.fill_in(known)
        if getattr(node.operation, "_call_has_training_arg", False):
            options["training"] = True
        outputs = node.operation(*args, **options)
        known.update(zip((id(x) for x in node.outputs), keras.tree.flatten(outputs), strict=True))
