"""What each kind of layer computes, keeps for the backward pass, and needs beside its inputs and outputs.

To add a kind, register it: ``@operations.register(MyLayer)``, and so for ``kept`` and ``scratch``.
"""

import re
from functools import singledispatch
from math import prod

import keras
from keras import layers

from unet_keras.nn import fused_norm, one_pass
from unet_keras.nn.attention import Attention
from unet_keras.nn.convolution import Conv
from unet_keras.nn.gated import GeluGate
from unet_keras.nn.group_norm import GroupNorm, has_kernel
from unet_keras.nn.layers import (
    CropLike,
    FiLM,
    NearestLike,
    PixelsToSequence,
    SequenceToPixels,
    TimestepEmbedding,
)
from unet_keras.text.tokens import TokenEmbedding

VIEWS = (PixelsToSequence, SequenceToPixels, CropLike, layers.Reshape, layers.Flatten, layers.Identity)
FREE = (
    NearestLike, TimestepEmbedding, layers.Add, layers.Average, layers.Subtract, layers.Concatenate,
    layers.ZeroPadding2D, layers.UpSampling2D, layers.Cropping2D, layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
)  # fmt: skip
"""Layers whose gradient needs nothing but the output's."""

SPATIAL = layers.Conv2D, layers.Conv2DTranspose, layers.MaxPooling2D, layers.AveragePooling2D

OF_OUTPUT = ("relu", "sigmoid", "tanh", "softmax", "elu")
"""Activations whose gradient is computed from their output."""


def bytes_of(tensor) -> int:
    """The memory of a tensor or a variable of known shape."""
    return prod(tensor.shape) * width_of(tensor.dtype)


def is_view(layer, training: bool) -> bool:
    """Tell whether a layer's output lies in its input's memory."""
    return isinstance(layer, VIEWS) or (isinstance(layer, layers.Dropout) and not (training and layer.rate))


# ---- operations -----------------------------------------------------------------------------------------------------


@singledispatch
def operations(layer, inputs, outputs, backend) -> int | None:
    """Count additions and multiplications; None for a kind of layer that is not known: elementwise, as a rule."""
    return None


@operations.register(layers.Conv2D)
def _(layer, inputs, outputs, backend):
    return 2 * prod(layer.kernel.shape[:-1]) * prod(outputs[0].shape)


@operations.register(Conv)
def _(layer, inputs, outputs, backend):
    whole = 2 * prod(layer.kernel.shape[:-1]) * prod(outputs[0].shape)
    return whole * 4 // 9 if layer.doubled and backend != "jax" else whole


@operations.register(layers.Conv2DTranspose)
def _(layer, inputs, outputs, backend):
    return 2 * prod(layer.kernel.shape[:-1]) * prod(inputs[0].shape)


@operations.register(layers.Dense)
def _(layer, inputs, outputs, backend):
    return 2 * layer.kernel.shape[0] * prod(outputs[0].shape)


@operations.register(layers.Embedding)
@operations.register(TokenEmbedding)
def _(layer, inputs, outputs, backend):
    return 0


@operations.register(Attention)
def _(layer, inputs, outputs, backend):
    width, (batch, pixels, channels), (tokens, source) = _attention(layer, inputs)
    maps = pixels * channels + 2 * tokens * source + pixels * channels
    return 2 * batch * width * (maps + 2 * pixels * tokens)


@operations.register(layers.MultiHeadAttention)
def _(layer, inputs, outputs, backend):
    (batch, asked, channels), (_, tokens, source) = inputs[0].shape, inputs[1].shape
    keys, values = layer.num_heads * layer.key_dim, layer.num_heads * layer.value_dim
    maps = asked * channels * keys + tokens * source * (keys + values) + asked * values * outputs[0].shape[-1]
    return 2 * batch * (maps + asked * tokens * (keys + values))


# ---- kept for the backward pass -------------------------------------------------------------------------------------


@singledispatch
def kept(layer, call, roots, sizes, backend) -> dict:
    """Give {tensor: bytes} of what the backward pass reads: layers' tensors by who holds their memory, own ones by
    (layer, part). Of a layer that is not known, what it reads.
    """
    return {} if isinstance(layer, FREE) or is_view(layer, True) else _read(layer, call, roots, sizes, backend)


@kept.register(layers.Conv2D)
@kept.register(layers.Conv2DTranspose)
@kept.register(layers.Dense)
def _(layer, call, roots, sizes, backend):
    return _read(layer, call, roots, sizes, backend) | _for_activation(layer, call, roots, sizes)


def _for_activation(layer, call, roots, sizes):
    """What the gradient of a layer's own activation is computed from: its output, or what stands before it."""
    name = keras.activations.serialize(layer.activation)
    if name in OF_OUTPUT:
        return _made(call, roots, sizes)
    return {} if name == "linear" else {(id(call), "before"): bytes_of(call.outputs[0])}


@kept.register(layers.Activation)
def _(layer, call, roots, sizes, backend):
    name = keras.activations.serialize(layer.activation)
    return _made(call, roots, sizes) if name in OF_OUTPUT else _read(layer, call, roots, sizes, backend)


@kept.register(GeluGate)
def _(layer, call, roots, sizes, backend):
    read = _read(layer, call, roots, sizes, backend)
    if backend == "tensorflow" and one_pass.pays(call.inputs[0]):
        return read
    return read | {(id(call), "gelu"): bytes_of(call.outputs[0])}


@kept.register(GroupNorm)
def _(layer, call, roots, sizes, backend):
    x, *more = call.inputs
    own = keras.activations.serialize(layer.activation)
    if backend == "tensorflow" and one_pass.pays(x) and own in fused_norm.ACTIVATIONS:
        return {roots[id(x)]: sizes[roots[id(x)]]}
    widths = [v.shape[-1] // x.shape[layer.axis] for v in more]  # 1 of what is added before, 2 of what modulates
    read = _normalised(layer, call, roots, sizes, backend)
    if 1 in widths and backend == "torch":
        read = {(id(call), "sum"): bytes_of(call.outputs[0])}
    scaled = {(id(call), "normalised"): bytes_of(call.outputs[0])} if 2 in widths else {}
    return read | scaled | _for_activation(layer, call, roots, sizes)


@kept.register(layers.LayerNormalization)
def _normalised(layer, call, roots, sizes, backend):
    x = call.inputs[0]
    if x.dtype == "float32" or _by_kernel(layer, backend):
        return {roots[id(x)]: sizes[roots[id(x)]]}
    return {(id(call), "float32"): prod(x.shape) * 4}  # statistics are in float32 whatever comes in


@kept.register(FiLM)
def _(layer, call, roots, sizes, backend):
    x = call.inputs[0]
    return {roots[id(x)]: sizes[roots[id(x)]]}


@kept.register(layers.Dropout)
def _(layer, call, roots, sizes, backend):
    width = width_of(layer.compute_dtype) if backend == "torch" else 1
    return {(id(call), "mask"): prod(call.outputs[0].shape) * width} if layer.rate else {}


@kept.register(layers.MaxPooling2D)
def _(layer, call, roots, sizes, backend):
    where = {(id(call), "where"): 8 * prod(call.outputs[0].shape)} if backend == "torch" else {}
    return _read(layer, call, roots, sizes, backend) | where


@kept.register(Attention)
def _(layer, call, roots, sizes, backend):
    return _read(layer, call, roots, sizes, backend) | {
        (id(call), n): b for n, b in _inner(layer, call.inputs, backend).items()
    }


@kept.register(layers.MultiHeadAttention)
def _(layer, call, roots, sizes, backend):
    (batch, asked, _), (_, tokens, _) = call.inputs[0].shape, call.inputs[1].shape
    width = width_of(layer.compute_dtype) * batch * layer.num_heads
    inner = {"q": asked, "k": tokens, "v": tokens, "answer": asked}
    own = {(id(call), name): width * layer.key_dim * count for name, count in inner.items()}
    return _read(layer, call, roots, sizes, backend) | own | {(id(call), "weights"): width * asked * tokens}


def _read(layer, call, roots, sizes, backend):
    """The inputs as the layer reads them: copies, where it casts them or moves their channels."""
    found = {}
    for x in call.inputs:
        width = width_of(layer.compute_dtype if _is_cast(layer, x) else x.dtype)
        if _is_cast(layer, x) or is_moved(layer, backend):
            found[(id(call), "copy", id(x))] = prod(x.shape) * width
        else:
            found[roots[id(x)]] = sizes[roots[id(x)]]
    return found


def is_moved(layer, backend) -> bool:
    """Tell whether Keras copies the layer's input, to bring its channels to where torch's kernels look for them."""
    copied = isinstance(layer, SPATIAL) and not isinstance(layer, Conv)
    return backend == "torch" and copied and layer.data_format == "channels_last"


def _is_cast(layer, x):
    return "float" in x.dtype and layer.autocast and x.dtype != layer.compute_dtype


def _made(call, roots, sizes):
    return {roots[id(y)]: sizes[roots[id(y)]] for y in call.outputs}


# ---- scratch --------------------------------------------------------------------------------------------------------


@singledispatch
def scratch(layer, inputs, outputs, backend) -> int:
    """The memory that a call needs beside its inputs and outputs, while it runs."""
    return 0


@scratch.register(Attention)
def _(layer, inputs, outputs, backend):
    return sum(_inner(layer, inputs, backend).values())


@scratch.register(layers.Conv2D)
@scratch.register(layers.Conv2DTranspose)
def _(layer, inputs, outputs, backend):
    if not is_moved(layer, backend):
        return 0
    x, y = (prod(t.shape) * width_of(layer.compute_dtype) for t in (inputs[0], outputs[0]))
    return x + max(x, y)  # two copies of the input; then one, and the output before its bias


@scratch.register(Conv)
def _(layer, inputs, outputs, backend):
    if layer.doubled and backend == "jax":
        return prod(outputs[0].shape[1:3]) * inputs[0].shape[0] * inputs[0].shape[3] * width_of(layer.compute_dtype)
    return prod(outputs[0].shape) * width_of(layer.compute_dtype) if backend == "torch" else 0  # before its bias


@scratch.register(GroupNorm)
def _(layer, inputs, outputs, backend):
    if backend != "torch":
        return 0
    if _by_kernel(layer, backend):  # what is normalised, where it is then modulated or activated
        return bytes_of(outputs[0]) if len(inputs) > 1 or layer.activation is not keras.activations.linear else 0
    return 4 * prod(inputs[0].shape)  # x * scale, to which the shift is added


def _by_kernel(layer, backend):
    return isinstance(layer, GroupNorm) and backend == "torch" and has_kernel()


# ---- attention ------------------------------------------------------------------------------------------------------


def _attention(layer, inputs):
    """Its width, (batch, pixels, channels) of who asks, (tokens, width) of who answers."""
    x = inputs[0]
    source = inputs[1] if len(inputs) > 1 and len(inputs[1].shape) == 3 else x
    return layer.heads * layer.head_dim, x.shape, source.shape[1:]


def _inner(layer, inputs, backend):
    """The memory of what is inside: queries, keys, values, the answer, and the weights unless the kernel is fused."""
    width, (batch, pixels, _), (tokens, _) = _attention(layer, inputs)
    unit = batch * width * width_of(layer.compute_dtype)
    inner = {"q": pixels * unit, "k": tokens * unit, "v": tokens * unit, "answer": pixels * unit}
    if backend != "torch":
        inner["weights"] = batch * layer.heads * pixels * tokens * 4
    return inner


def width_of(dtype: str) -> int:
    """Bytes of a number: "bfloat16" 2, "bool" 1."""
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1
