"""Attention: pixels that look at pixels, or at the words of a text."""

import math

import keras
from keras import layers, ops

from unet_keras.nn.layers import near_zero
from unet_keras.nn.linear import Linear
from unet_keras.nn.lora import LoraLinear

serializable = keras.saving.register_keras_serializable("unet_keras")


@serializable
class Attention(layers.Layer):
    """Multi-head attention softmax(Q K' / sqrt(d)) V over sequences (Vaswani et al. 2017, equation 1).

    x (B, N, C) asks; context (B, L, D), or x itself, answers. ``context_mask`` (B, L), true where a token counts,
    leaves the other tokens out; an example none of whose tokens counts gets the output of an all-zero attention.
    Returns (B, N, C). ``lora`` is what a configuration remembers of LoRA, {role: options of that Dense}.
    """

    def __init__(self, heads, head_dim, *, qkv_bias=True, lora=None, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.head_dim, self.qkv_bias, self.lora = heads, head_dim, qkv_bias, dict(lora or {})
        for role in ("query", "key", "value"):
            setattr(self, role, self.dense(role, heads * head_dim, use_bias=qkv_bias))

    def dense(self, role, units, **options):
        """Make one of the four linear maps; where some have LoRA, the others are frozen."""
        if role in self.lora:
            return LoraLinear(units, dtype=self.dtype_policy, name=role, **options, **self.lora[role])
        # Keras tells a layer's parts that it is frozen when that is set, not when it is made from its configuration.
        options["trainable"] = self.trainable and not self.lora
        return Linear(units, dtype=self.dtype_policy, name=role, **options)

    def build(self, x_shape, context_shape=None):
        source = context_shape or x_shape
        self.query.build(x_shape)
        self.key.build(source)
        self.value.build(source)
        self.out = self.dense("out", x_shape[-1], kernel_initializer=near_zero())
        self.out.build((None, None, self.heads * self.head_dim))

    def call(self, x, context=None, context_mask=None):
        return self.look(x, context, context_mask)[0]

    def look(self, x, context=None, context_mask=None):
        """Give the layer's output, and what ``shares`` makes the attention's weights of."""
        source = x if context is None else context
        # What the fused kernel does to the scores is done to Q where there is none, at the price of a small kernel.
        q = self.query(x, scale=None if has_kernel() else 1 / math.sqrt(self.head_dim))
        q, k, v = map(self.split, (q, self.key(source), self.value(source)))
        if context_mask is None:
            return self.out(self.merge(attended(q, k, v))), (q, k, None)
        mask = ops.cast(context_mask, "bool")
        some = ops.any(mask, axis=-1, keepdims=True)
        # A row without any token would be a softmax of nothing (NaN on some kernels): let it see all, then zero it.
        seen = ops.logical_or(mask, ops.logical_not(some))[:, None, None, :]
        y = self.merge(attended(q, k, v, mask=seen)) * ops.cast(some, v.dtype)[:, :, None]
        return self.out(y), (q, k, mask)

    def shares(self, q, k, mask):
        """softmax(Q K' / sqrt(d)) averaged over the heads, (B, N, L) float32: the fused kernel keeps it to itself."""
        q, k = (ops.transpose(ops.cast(v, "float32"), (0, 2, 1, 3)) for v in (q, k))
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) / (math.sqrt(self.head_dim) if has_kernel() else 1.0)
        if mask is None:
            return ops.mean(ops.softmax(scores), axis=1)
        mask = mask[:, None, None, :]
        return ops.mean(ops.softmax(ops.where(mask, scores, -1e9)) * ops.cast(mask, "float32"), axis=1)

    def split(self, y):
        """(B, N, heads * head_dim) -> (B, N, heads, head_dim)."""
        return ops.reshape(y, (-1, ops.shape(y)[1], self.heads, self.head_dim))

    def merge(self, y):
        """(B, N, heads, head_dim) -> (B, N, heads * head_dim)."""
        return ops.reshape(y, (-1, ops.shape(y)[1], self.heads * self.head_dim))

    def compute_output_shape(self, x_shape, context_shape=None):
        return x_shape

    def get_config(self):
        config = {"heads": self.heads, "head_dim": self.head_dim, "qkv_bias": self.qkv_bias}
        return {**super().get_config(), **config, **({"lora": lora} if (lora := self.remembered()) else {})}

    def remembered(self):
        """{role: options} of the linear maps that have LoRA now."""
        if not self.built:
            return dict(self.lora)
        maps = {role: getattr(self, role) for role in ("query", "key", "value", "out")}
        keys = ("lora_rank", "lora_alpha")
        return {r: {k: getattr(d, k) for k in keys} for r, d in maps.items() if isinstance(d, LoraLinear)}


def has_kernel() -> bool:
    """Tell whether attention is computed by the backend's fused kernel, which TensorFlow's CPUs have none of."""
    return keras.backend.backend() != "tensorflow" or _on_gpu()


def _on_gpu() -> bool:
    return keras.distribution.list_devices()[0].startswith("gpu")


def attended(q, k, v, mask=None):
    """softmax(Q K' / sqrt(d)) V of (B, N, heads, d) in the backend's fused kernel.

    TensorFlow's CPUs have none: there some queries' scores are taken at a time, of Q that is scaled already, see
    ``_in_pieces``. On JAX in float16 the kernel takes a product that XLA has on GPUs alone; elsewhere it is computed in
    float32.
    """
    if not has_kernel():
        return _in_pieces(q, k, v, mask)
    half = keras.backend.standardize_dtype(v.dtype) == "float16"
    if half and keras.backend.backend() == "jax" and not _on_gpu():
        q, k, v = (ops.cast(x, "float32") for x in (q, k, v))
        return ops.cast(ops.dot_product_attention(q, k, v, mask=mask), "float16")
    return ops.dot_product_attention(q, k, v, mask=mask)


def _in_pieces(q, k, v, mask):
    """The same by formula, for 256 queries at a time: their scores are read again before they have left the caches."""
    dtype = keras.backend.standardize_dtype(q.dtype)
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    k = ops.swapaxes(k, -1, -2)

    def looked(piece):
        scores = ops.matmul(piece, k)
        if mask is not None:
            scores = ops.where(mask, scores, ops.cast(-3e4, dtype))
        if dtype == "float16":  # in bfloat16 the kernel itself sums in float32
            return ops.matmul(ops.cast(ops.softmax(ops.cast(scores, "float32")), dtype), v)
        return ops.matmul(ops.softmax(scores), v)

    count = q.shape[2]
    size = max(256, math.ceil(count / 32)) if count else None
    pieces = [looked(q[:, :, i : i + size]) for i in range(0, count, size)] if count else [looked(q)]
    return ops.transpose(ops.concatenate(pieces, axis=2) if len(pieces) > 1 else pieces[0], (0, 2, 1, 3))
