"""Group norm and silu in two passes over the map, and two backward, on TensorFlow's CPUs, each compiled by XLA.

With x' = (x + added - mean) r, the groups' means and r = 1 / deviation, and y = f(z), z = gamma x' + beta:

    dz = f'(z) dy,   dbeta = sum dz,   dgamma = sum dz x',   dadded = sum dx
    dx = r (gamma dz - mean of gamma dz - x' mean of gamma dz x')        (Wu & He 2018, differentiated by hand)

Of what is as large as x, x itself is kept for the backward pass, in its own precision, and nothing else.
"""

import keras

from unet_keras.nn.one_pass import compiled, is_bfloat16, narrowed, widened

ACTIVATIONS = ("linear", "silu")
ROWS = 32
"""The most rows that are added up one by one."""


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
            return narrowed(of_mean + 2.0 * of_square * widened(x), x)

        sums = [v for powers in programs for v in compiled(_sums, (rows, powers))(x)]
        sums = (tf.ensure_shape(v, (x.shape[0], height // rows, width, channels)) for v in sums)
        return [tf.reduce_sum(tf.reduce_sum(v, 1), 1) / pixels for v in sums], gradient

    return both(x)


def normalize(x, of_channels, added, mean, r, gamma, beta, activation: str):
    """Give f(gamma (x + added - mean) r + beta), in x's dtype, computed in float32.

    x is (B, H, W, C), ``of_channels`` (B, C) the mean of each of its channels, ``added`` (B, C) or None; ``mean`` and
    ``r`` are those of the sum's groups, (B, groups, 1), and the gradient knows how they come from x and ``added``;
    gamma and beta are (B, groups, C / groups), or (1, groups, C / groups).
    """
    import tensorflow as tf

    apply, weigh, pull_back = (compiled(part, activation) for part in (_apply, _weigh, _pull_back))
    _, height, width, channels = x.shape
    groups = r.shape[1]
    gamma, beta = (tf.broadcast_to(v, tf.shape(r * v)) for v in (gamma, beta))
    of_channels, added = (
        tf.reshape(v, tf.shape(gamma)) for v in (of_channels, tf.zeros_like(of_channels) if added is None else added)
    )

    def everywhere(v):
        return tf.reshape(tf.broadcast_to(v, tf.shape(gamma)), (-1, 1, 1, channels))

    def like_x(v):  # what comes from XLA has no known shape, without which silu and biases are not fused further on
        return tf.ensure_shape(v, x.shape)

    def total(v):
        return tf.reshape(tf.reduce_sum(tf.reduce_sum(like_x(v), 1), 1), (-1, groups, channels // groups))  # rows first

    @tf.custom_gradient
    def normalized(x, of_channels, added, mean, r, gamma, beta):
        mean = mean - added  # what is taken from x itself
        of_x = r * gamma
        shift = everywhere(beta - mean * of_x)
        scale = everywhere(of_x)

        def gradient(dy):
            dz, dz_x = (total(v) for v in weigh(x, dy, scale, shift))
            of_gamma = r * (dz_x - mean * dz)
            count = height * width * channels // groups
            plain, along = (tf.reduce_sum(gamma * v, -1, keepdims=True) / count for v in (dz, of_gamma))
            b = -r * r * along
            a = -r * plain - b * mean
            dx = like_x(pull_back(x, dy, scale, shift, everywhere(a), everywhere(b)))
            of_added = of_x * dz + height * width * (a + b * of_channels)
            return dx, None, of_added, None, None, of_gamma, dz

        return like_x(apply(x, scale, shift)), gradient

    return normalized(x, of_channels, added, mean, r, gamma, beta)


def _sums(option, x):
    """The sums of so many rows of x each, of its powers 1 or 2 or of both."""
    rows, powers = option
    _, height, width, channels = x.shape
    blocks = keras.ops.reshape(x, (-1, height // rows, rows, width, channels))
    single = [widened(row) for row in keras.ops.unstack(blocks, axis=2)]
    return [sum(row * row if power == 2 else row for row in single) for power in powers]


def _apply(activation, x, scale, shift):
    z = widened(x) * scale + shift
    return narrowed(z * _sigmoid(z, x) if activation == "silu" else z, x)


def _weigh(activation, x, dy, scale, shift):
    """dz and dz * x."""
    dz = _of_z(activation, x, dy, scale, shift)
    return dz, dz * widened(x)


def _pull_back(activation, x, dy, scale, shift, a, b):
    """dx = scale dz + a + b x."""
    return narrowed(_of_z(activation, x, dy, scale, shift) * scale + a + b * widened(x), x)


def _of_z(activation, x, dy, scale, shift):
    """dz; that of silu is sigmoid(z) (1 + z (1 - sigmoid(z)))."""
    if activation == "linear":
        return widened(dy)
    z = widened(x) * scale + shift
    share = _sigmoid(z, x)
    return widened(dy) * share * (1.0 + z * (1.0 - share))


def _sigmoid(z, x):
    """The sigmoid of z; for x in bfloat16 by tanh, which is faster, and off by no more than 1e-7."""
    return 0.5 + 0.5 * keras.ops.tanh(0.5 * z) if is_bfloat16(x) else keras.ops.sigmoid(z)
