"""Group norm and silu in two passes over the map, and two backward, on TensorFlow's CPUs, each compiled by XLA.

With x' = (x - mean) r, the groups' means and r = 1 / deviation, and y = f(z), z = gamma x' + beta:

    dz = f'(z) dy,   dbeta = sum dz,   dgamma = sum dz x'
    dx = r (gamma dz - mean of gamma dz - x' mean of gamma dz x')        (Wu & He 2018, differentiated by hand)

Of what is as large as x, x itself is kept for the backward pass, in its own precision, and nothing else.
"""

from functools import cache, partial
from math import prod

import keras

NUMBERS = 2**16
"""The size of a map, all its numbers counted, from which on it pays: see benchmarks/README.md."""
USUAL = 16
"""The number of maps that is reckoned with where it is open."""
ACTIVATIONS = ("linear", "silu")
ROWS = 32
"""The most rows that are added up one by one."""


def pays(x) -> bool:
    """Tell whether it is faster: on a CPU, of maps that are not small, whose height and width are known.

    How many there are may be open: each number that comes is compiled for, which takes some two seconds a network.
    """
    count, *size = x.shape
    if keras.backend.backend() != "tensorflow" or None in size:
        return False
    return (count or USUAL) * prod(size) >= NUMBERS and keras.distribution.list_devices()[0].startswith("cpu")


def moments(x):
    """Give the mean and the mean square of each channel, (B, C) float32 each, of maps (B, H, W, C) of known size.

    Rows are added up first, element by element, for XLA's own sums over rows are slow.
    """
    import tensorflow as tf

    _, height, width, channels = x.shape
    pixels = height * width
    rows = max(n for n in range(1, ROWS + 1) if height % n == 0)
    # Two programs use both cores, where both sums in one use a single one; bfloat16 costs more to widen twice.
    programs = [(1,), (2,)] if x.dtype == tf.float32 else [(1, 2)]

    @tf.custom_gradient
    def both(x):
        def gradient(of_mean, of_square):
            of_mean, of_square = (v[:, None, None, :] / pixels for v in (of_mean, of_square))
            return _cast(of_mean + 2.0 * of_square * _float32(x), x)

        sums = [v for powers in programs for v in _compiled(_sums, (rows, powers))(x)]
        sums = (tf.ensure_shape(v, (x.shape[0], height // rows, width, channels)) for v in sums)
        return [tf.reduce_sum(tf.reduce_sum(v, 1), 1) / pixels for v in sums], gradient

    return both(x)


def normalize(x, mean, r, gamma, beta, activation: str):
    """Give f(gamma (x - mean) r + beta), in x's dtype, computed in float32.

    x is (B, H, W, C); ``mean`` and ``r`` are those of its groups, (B, groups, 1), and the gradient knows how they come
    from x; gamma and beta are (B, groups, C / groups), or (1, groups, C / groups).
    """
    import tensorflow as tf

    apply, weigh, pull_back = (_compiled(part, activation) for part in (_apply, _weigh, _pull_back))
    _, height, width, channels = x.shape
    groups = r.shape[1]
    gamma, beta = (tf.broadcast_to(v, tf.shape(r * v)) for v in (gamma, beta))

    def everywhere(v):
        return tf.reshape(tf.broadcast_to(v, tf.shape(gamma)), (-1, 1, 1, channels))

    def like_x(v):  # what comes from XLA has no known shape, without which silu and biases are not fused further on
        return tf.ensure_shape(v, x.shape)

    def total(v):
        return tf.reshape(tf.reduce_sum(tf.reduce_sum(like_x(v), 1), 1), (-1, groups, channels // groups))  # rows first

    @tf.custom_gradient
    def normalized(x, mean, r, gamma, beta):
        scale = r * gamma
        shift = everywhere(beta - mean * scale)
        scale = everywhere(scale)

        def gradient(dy):
            dz, dz_x = (total(v) for v in weigh(x, dy, scale, shift))
            of_gamma = r * (dz_x - mean * dz)
            count = height * width * channels // groups
            plain, along = (tf.reduce_sum(gamma * v, -1, keepdims=True) / count for v in (dz, of_gamma))
            b = -r * r * along
            a = -r * plain - b * mean
            dx = like_x(pull_back(x, dy, scale, shift, everywhere(a), everywhere(b)))
            return dx, None, None, of_gamma, dz

        return like_x(apply(x, scale, shift)), gradient

    return normalized(x, mean, r, gamma, beta)


@cache
def _compiled(part, option):
    import tensorflow as tf

    return tf.function(partial(part, option), jit_compile=True, autograph=False)


def _sums(option, x):
    """The sums of so many rows of x each, of its powers 1 or 2 or of both."""
    rows, powers = option
    _, height, width, channels = x.shape
    blocks = keras.ops.reshape(x, (-1, height // rows, rows, width, channels))
    single = [_float32(row) for row in keras.ops.unstack(blocks, axis=2)]
    return [sum(row * row if power == 2 else row for row in single) for power in powers]


def _apply(activation, x, scale, shift):
    z = _float32(x) * scale + shift
    return _cast(z * _sigmoid(z) if activation == "silu" else z, x)


def _weigh(activation, x, dy, scale, shift):
    """dz and dz * x."""
    dz = _of_z(activation, x, dy, scale, shift)
    return dz, dz * _float32(x)


def _pull_back(activation, x, dy, scale, shift, a, b):
    """dx = scale dz + a + b x."""
    return _cast(_of_z(activation, x, dy, scale, shift) * scale + a + b * _float32(x), x)


def _of_z(activation, x, dy, scale, shift):
    """dz; that of silu is sigmoid(z) (1 + z (1 - sigmoid(z)))."""
    if activation == "linear":
        return _float32(dy)
    z = _float32(x) * scale + shift
    share = _sigmoid(z)
    return _float32(dy) * share * (1.0 + z * (1.0 - share))


def _float32(x):
    """x in float32; bfloat16 is its upper half, and XLA is faster at shifting bits than at converting."""
    if keras.backend.standardize_dtype(x.dtype) != "bfloat16":
        return keras.ops.cast(x, "float32")
    import tensorflow as tf

    bits = tf.cast(tf.bitcast(x, tf.uint16), tf.uint32)
    return tf.bitcast(tf.bitwise.left_shift(bits, tf.constant(16, tf.uint32)), tf.float32)


def _cast(x, like):
    return keras.ops.cast(x, like.dtype)


def _sigmoid(x):
    return keras.ops.sigmoid(x)
