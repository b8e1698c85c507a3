"""The gate of a Transformer's feed-forward part, in one pass on TensorFlow's CPUs, and one backward.

With y = v g P(g), where P and p are the normal distribution and its density, so that g P(g) is gelu of g:

    dv = g P(g) dy,   dg = v (P(g) + g p(g)) dy        (Hendrycks & Gimpel 2016, differentiated by hand)
"""

import math

import keras
from keras import layers, ops

from unet_keras.nn.one_pass import compiled, narrowed, pays, widened

serializable = keras.saving.register_keras_serializable("unet_keras")


@serializable
class GeluGate(layers.Layer):
    """value * gelu(gate), (B, N, C) each -> (B, N, C) (Shazeer 2020, equation 6: GEGLU)."""

    def call(self, value, gate):
        if pays(value) and self.compute_dtype in ("float32", "bfloat16"):
            return gated(value, gate)
        return value * ops.gelu(gate, approximate=False)

    def compute_output_shape(self, value_shape, gate_shape):
        return value_shape


def gated(value, gate):
    """Give value * gelu(gate) in their dtype, computed in float32."""
    import tensorflow as tf

    @tf.custom_gradient
    def one_pass(value, gate):
        def gradient(dy):
            return [tf.ensure_shape(v, value.shape) for v in compiled(_pull_back)(value, gate, dy)]

        return tf.ensure_shape(compiled(_apply)(value, gate), value.shape), gradient

    return one_pass(value, gate)


def _apply(option, value, gate):
    g = widened(gate)
    return narrowed(widened(value) * g * _share(g), value)


def _pull_back(option, value, gate, dy):
    v, g, dy = map(widened, (value, gate, dy))
    share = _share(g)
    density = ops.exp(-0.5 * g * g) * (1 / math.sqrt(2 * math.pi))
    return narrowed(dy * g * share, value), narrowed(dy * v * (share + g * density), value)


def _share(g):
    """P(g), the share of a normal distribution below g."""
    return 0.5 + 0.5 * ops.erf(g * math.sqrt(0.5))
