"""Keras's convolution, with less work around it and, of enlarged maps, less work in it."""

from functools import partial

import keras
from keras import layers, ops

from unet_keras.nn import winograd

serializable = keras.saving.register_keras_serializable("unet_keras")

# XLA's gradient of a transposed convolution is some ten times slower than the detour, on a CPU: benchmarks/README.md.
REPEATED = keras.backend.backend() == "jax"


@serializable
class Conv(layers.Conv2D):
    """Conv2D; with ``doubled``, of the map that repeats each pixel 2x2: (B, H, W, C) -> (B, 2H, 2W, filters).

    3x3 products with repeated pixels are products of sums of the kernel with single ones: a transposed convolution of
    stride 2 with the kernel that ``spread`` gives, 16 products a pixel in the place of 36, and no enlarged map in
    memory. The weights are those of the 3x3 convolution. On JAX the map is repeated after all, see ``REPEATED``.

    Raises ValueError for ``doubled`` with other than a 3x3 kernel, "same" padding and no strides, dilation or groups.
    """

    def __init__(self, filters, kernel_size=3, *, padding="same", doubled=False, **kwargs):
        super().__init__(filters, kernel_size, padding=padding, **kwargs)
        self.doubled = doubled
        self.plain = (self.strides, self.dilation_rate, self.groups) == ((1, 1), (1, 1), 1)
        if doubled and not (self.plain and self.kernel_size == (3, 3) and self.padding == "same"):
            raise ValueError(
                f"doubled=True is for a plain 3x3 convolution with padding='same', got {self.kernel_size} with "
                f"padding={self.padding!r}, strides={self.strides}, dilation_rate={self.dilation_rate}, "
                f"groups={self.groups}: put an UpSampling2D before it."
            )

    def call(self, inputs):
        """Convolve, with the bias in the kernel where there is a better one than Keras's, which adds it in a pass."""
        whole = self.padding == "same" and all(size % 2 for size in self.kernel_size)
        if not (self.plain and whole and self.use_bias and not self.doubled):
            return super().call(inputs)
        last = self.data_format == "channels_last"
        if last and winograd.pays(inputs, self.kernel):
            return self.activation(winograd.convolve(inputs, self.kernel, self.bias))
        if not takes_views():
            return super().call(inputs)
        from torch.nn.functional import conv2d

        x, kernel, bias = (ops.convert_to_tensor(v) for v in (inputs, self.kernel, self.bias))
        y = conv2d(x.permute(0, 3, 1, 2) if last else x, kernel.permute(3, 2, 0, 1), bias, padding="same")
        return self.activation(y.permute(0, 2, 3, 1) if last else y)

    def convolution_op(self, inputs, kernel):
        convolve = partial(ops.conv, strides=self.strides, padding=self.padding, dilation_rate=self.dilation_rate)
        if self.doubled and REPEATED:
            first = 1 if self.data_format == "channels_last" else 2
            inputs = ops.repeat(ops.repeat(inputs, 2, axis=first), 2, axis=first + 1)
        elif self.doubled:
            convolve, kernel = partial(ops.conv_transpose, strides=2, padding="same"), spread(kernel)
        if self.data_format == "channels_last" and takes_views():
            y = convolve(ops.transpose(inputs, (0, 3, 1, 2)), kernel, data_format="channels_first")
            return ops.transpose(y, (0, 2, 3, 1))
        return convolve(inputs, kernel, data_format=self.data_format)

    def compute_output_shape(self, x_shape):
        shape = list(super().compute_output_shape(x_shape))
        if self.doubled:
            first = 1 if self.data_format == "channels_last" else 2
            shape[first : first + 2] = [None if n is None else 2 * n for n in x_shape[first : first + 2]]
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), "doubled": self.doubled}


def spread(kernel):
    """(3, 3, in, out) -> (4, 4, out, in): the kernel K' of the transposed convolution, K'_j = K_{2-j} + K_{3-j}."""
    kernel = ops.transpose(kernel, (0, 1, 3, 2))
    for axis in (0, 1):
        first, middle, last = ops.split(kernel, 3, axis=axis)
        kernel = ops.concatenate([last, last + middle, middle + first, first], axis=axis)
    return kernel


def takes_views() -> bool:
    """Tell whether the convolution is torch's: for it Keras copies a map twice, where a transposed view is enough.

    torch.compile sees to copies by itself, and its compiler fails on such views where the batch size is open.
    """
    if keras.backend.backend() != "torch":
        return False
    import torch

    return not torch.compiler.is_compiling()
