"""Wide 3x3 convolutions in half the products, on TensorFlow's CPUs: Winograd's F(4, 3) along the height.

Four rows of the output are made of six rows of the input and three of the kernel (Lavin and Gray 2016, section 4.3):

    y = A' [(G g) * (B' d)],      d six rows, g the kernel's three, y four rows

where * is, for each of six, a convolution along the width alone: 6 x 3 products in the place of 4 x 9. The sums before
and after are products with the matrices below, which cost less the more channels there are.
"""

from functools import cache

import keras
import numpy as np

KERNEL = np.array(
    [[-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6]]
)
"""G's rows but the first and the last (4, 3). Those are (1, 0, 0), where Lavin and Gray have a quarter of it and four
times the first row of B' instead, and (0, 0, 1): rows of the kernel itself."""
INPUT = np.array(
    [
        [1, 0, -5 / 4, 0, 1 / 4, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
"""B' (6, 6)."""
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
"""A' (4, 6)."""
CHANNELS = 180
"""The mean of channels in and out, geometric, from which on it pays: see benchmarks/README.md."""
PRODUCTS = 1e9
"""The products of the plain convolution from which on it pays, for the kernel's sums are made each time."""
HEIGHTS = range(16, 65, 4)
"""Of maps: the matrices grow with the height's square."""


def pays(x, kernel) -> bool:
    """Tell whether ``convolve`` is faster than oneDNN: for many channels, on a CPU, in float32, where sizes are known.

    In half precision the sums would be off by too much. ``x`` and ``kernel`` may be anything with a shape and a dtype.
    """
    if keras.backend.backend() != "tensorflow" or None in x.shape or tuple(kernel.shape[:2]) != (3, 3):
        return False
    if keras.backend.standardize_dtype(x.dtype) != "float32" or x.shape[1] not in HEIGHTS:
        return False
    channels = kernel.shape[2] * kernel.shape[3]
    if channels < CHANNELS**2 or 9 * channels * np.prod(x.shape[:3]) < PRODUCTS:
        return False
    return keras.distribution.list_devices()[0].startswith("cpu")


def convolve(x, kernel, bias):
    """Convolve x (B, H, W, in) of known shape with a kernel (3, 3, in, out), "same", and add a bias: (B, H, W, out).

    Off by less than 1e-5 of the largest output. Its gradients are TensorFlow's, which are as fast.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def convolved(x, kernel, bias):
        def gradient(upstream):
            given = {"out_backprop": upstream, "strides": (1, 1, 1, 1), "padding": "SAME"}
            of_x = tf.raw_ops.Conv2DBackpropInput(input_sizes=x.shape, filter=kernel, **given)
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, **given)
            return of_x, of_kernel, tf.reduce_sum(upstream, (0, 1, 2))

        return _convolved(x, kernel, bias), gradient

    return convolved(x, *(tf.convert_to_tensor(v) for v in (kernel, bias)))


def _convolved(x, kernel, bias):
    import tensorflow as tf

    (count, height, width, channels), filters = x.shape, kernel.shape[-1]
    before, after = _sums(height)
    rows = tf.reshape(x, (count, height, width * channels))
    kernels = tf.matmul(KERNEL.astype("float32"), tf.reshape(kernel, (3, -1)))
    kernels = [kernel[:1], *tf.unstack(tf.reshape(kernels, (4, 1, 3, channels, filters))), kernel[2:]]
    maps = [tf.reshape(tf.matmul(sums, rows), (count, height // 4, width, channels)) for sums in before]
    products = [tf.nn.conv2d(a, b, 1, "SAME") for a, b in zip(maps, kernels, strict=True)]
    products = tf.concat([*products, tf.broadcast_to(bias, (count, 1, width, filters))], axis=1)
    products = tf.reshape(products, (count, 6 * height // 4 + 1, width * filters))
    return tf.reshape(tf.matmul(after, products), (count, height, width, filters))


@cache
def _sums(height):
    """Give the sums of a map's rows before (6, H / 4, H) and after (H, 6 H / 4 + 1) the products; the last is the bias.

    Rows outside the map are zero.
    """
    before, after = np.zeros((6, height // 4, height + 2), "float32"), np.zeros((height, 6, height // 4), "float32")
    for i in range(height // 4):
        before[:, i, 4 * i : 4 * i + 6] = INPUT
        after[4 * i : 4 * i + 4, :, i] = OUTPUT
    return before[:, :, 1:-1], np.pad(after.reshape(height, -1), ((0, 0), (0, 1)), constant_values=1)
