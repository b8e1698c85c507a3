"""Group norm and silu in one pass over the map, and two backward, on TensorFlow's CPUs, each compiled by XLA.

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


def pays(x, activation: str) -> bool:
    """Tell whether ``normalize`` is faster: on a CPU, of maps that are not small, whose height and width are known.

    How many there are may be open: each number that comes is compiled for, which takes some two seconds a network.
    """
    count, *size = x.shape
    if keras.backend.backend() != "tensorflow" or activation not in ACTIVATIONS or None in size:
        return False
    return (count or USUAL) * prod(size) >= NUMBERS and keras.distribution.list_devices()[0].startswith("cpu")


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
            return dx, tf.zeros_like(mean), tf.zeros_like(r), of_gamma, dz

        return like_x(apply(x, scale, shift)), gradient

    return normalized(x, mean, r, gamma, beta)


@cache
def _compiled(part, activation):
    import tensorflow as tf

    return tf.function(partial(part, activation), jit_compile=True, autograph=False)


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
    return keras.ops.cast(x, "float32")


def _cast(x, like):
    return keras.ops.cast(x, like.dtype)


def _sigmoid(x):
    return keras.ops.sigmoid(x)
