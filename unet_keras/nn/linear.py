"""Keras's Dense layer, with the bias in the product where that is faster."""

import keras
from keras import layers

from unet_keras.nn import one_pass

serializable = keras.saving.register_keras_serializable("unet_keras")

NUMBERS = 2**19
"""The size of input and output together, all their numbers counted, from which on it pays: see benchmarks/README.md."""


@serializable
class Linear(layers.Dense):
    """Dense; of sequences (B, N, C) on TensorFlow's CPUs as a 1x1 convolution, whose kernel adds the bias at once.

    ``scale``, where a layer without activation is called, multiplies its output; there K and b instead, being smaller.
    """

    def call(self, inputs, training=None, scale=None):
        if not (self.use_bias and pays(inputs, self.units)):
            y = super().call(inputs, training=training)
            return y if scale is None else y * scale
        kernel, bias = (v if scale is None else v * scale for v in (self.kernel, self.bias))
        y = convolved(inputs, kernel, bias)
        return y if self.activation is None else self.activation(y)


def pays(x, units) -> bool:
    """Tell whether it is faster: on a CPU, of sequences that are not small, whose length is known."""
    known = keras.backend.standardize_dtype(x.dtype) in ("float32", "bfloat16") and len(x.shape) == 3
    return known and one_pass.pays(x, NUMBERS, units)


def convolved(x, kernel, bias):
    """Give x (B, N, in) times a kernel (in, out), plus a bias; the gradients are those of the product of matrices."""
    import tensorflow as tf

    length, channels = x.shape[1:]

    @tf.custom_gradient
    def mapped(x, kernel, bias):
        y = tf.nn.conv2d(tf.reshape(x, (-1, 1, length, channels)), kernel[None, None], 1, "SAME")
        y = tf.reshape(tf.nn.bias_add(y, bias), (-1, length, kernel.shape[1]))

        def gradient(dy):
            flat = tf.reshape(dy, (-1, kernel.shape[1]))
            of_x = tf.matmul(flat, kernel, transpose_b=True)
            of_kernel = tf.matmul(tf.reshape(x, (-1, channels)), flat, transpose_a=True)
            return tf.reshape(of_x, tf.shape(x)), of_kernel, tf.raw_ops.BiasAddGrad(out_backprop=flat)

        return tf.ensure_shape(y, (x.shape[0], length, kernel.shape[1])), gradient

    return mapped(x, *(tf.convert_to_tensor(v, x.dtype) for v in (kernel, bias)))
