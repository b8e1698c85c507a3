"""Group norm and silu in two passes over the map, and two backward, on TensorFlow's CPUs, each compiled by XLA.

With x' = (x + added - mean) r, the groups' means and r = 1 / deviation, and y = f(z), z = gamma x' + beta:

    dz = f'(z) dy,   dbeta = sum dz,   dgamma = sum dz x',   dadded = sum dx
    dx = r (gamma dz - mean of gamma dz - x' mean of gamma dz x')        (Wu & He 2018, differentiated by hand)

Of what is as large as x, x itself is kept for the backward pass, in its own precision, and nothing else. All else is
(B, C), a number for each channel of an image.
"""

from keras import ops

from unet_keras.nn.one_pass import bits, compiled, is_bfloat16, narrowed, widened

ACTIVATIONS = ("linear", "silu")
BLOCK, LEFT, ALL = 8, 32, 64
"""The most neighbouring pixels that are added up one by one, and what must be more than is left then, or XLA sums one
number after the other; of a map alone so many are all added up, and none left."""


def normalize(x, gamma, beta, added, *, groups: int, epsilon: float, activation: str):
    """Give f(gamma (x + added - mean) r + beta), in x's dtype, computed in float32.

    x is (B, H, W, C), of known size; gamma, beta and ``added`` are float32, (B, C) or (1, C).
    """
    import tensorflow as tf

    option = groups, epsilon, activation
    fold, apply, fold_back, pull_back = (compiled(part, option) for part in (_fold, _apply, _fold_back, _pull_back))

    def like_x(v):  # what comes from XLA has no known shape, without which silu and biases are not fused further on
        return tf.ensure_shape(v, x.shape)

    @tf.custom_gradient
    def normalized(x, gamma, beta, added):
        known = means, scale, shift = fold(x, gamma, beta, added)

        def gradient(dy):
            a, b, *others = fold_back(x, dy, gamma, beta, added, *known)
            return like_x(pull_back(x, dy, a, b, scale, shift)), *others

        return like_x(apply(x, scale, shift)), gradient

    return normalized(x, gamma, beta, added)


def _fold(option, x, gamma, beta, added):
    """The means of each channel and its square, one complex number; what x is multiplied by, and what is added then."""
    means = _totals(lambda x: (x, x * x), x) / _pixels(x)
    taken, r = _of_groups(option, means, added)
    return means, r * gamma, beta - taken * r * gamma


def _apply(option, x, scale, shift):
    *_, activation = option
    z = widened(x) * _everywhere(scale) + _everywhere(shift)
    return narrowed(z * _sigmoid(z, is_bfloat16(x)) if activation == "silu" else z, x)


def _fold_back(option, x, dy, gamma, beta, added, means, scale, shift):
    """a and b of dx = scale dz + a + b x; the gradients of gamma, beta and ``added``."""
    *_, activation = option
    pixels, half = _pixels(x), is_bfloat16(x)

    def sums(x, dy):
        dz = _of_z(activation, x, dy, scale[:, None], shift[:, None], half)
        return dz, dz * x

    taken, r = _of_groups(option, means, added)
    dz, dz_x = _pair(_totals(sums, x, dy))
    of_gamma = r * (dz_x - taken * dz)
    plain, along = _group_means(option, gamma * dz, gamma * of_gamma)
    b = -r * r * along / pixels
    a = -r * plain / pixels - b * taken
    of_added = scale * dz + pixels * (a + b * _pair(means)[0])
    return a, b, *(_like(*pair) for pair in ((of_gamma, gamma), (dz, beta), (of_added, added)))


def _pull_back(option, x, dy, a, b, scale, shift):
    *_, activation = option
    wide, half = widened(x), is_bfloat16(x)
    scale, shift, a, b = (_everywhere(v) for v in (scale, shift, a, b))
    return narrowed(_of_z(activation, wide, widened(dy), scale, shift, half) * scale + a + b * wide, x)


def _totals(part, *maps):
    """The sums over all pixels of the two numbers that ``part`` makes of the maps (B, H, W, C): (B, C).

    As one complex number, for which XLA reads the maps once; and some neighbours are added up before, for its own sums
    over pixels are slow.
    """
    import tensorflow as tf

    pixels, channels = _pixels(maps[0]), maps[0].shape[-1]
    block = max(n for n in range(1, BLOCK + 1) if pixels % n == 0 and (n == 1 or pixels // n > LEFT))
    block = pixels if len(maps) == 1 and LEFT < pixels <= ALL else block
    cut = (tf.unstack(tf.reshape(bits(v), (-1, pixels // block, block, channels)), axis=2) for v in maps)
    pairs = [tf.complex(*part(*map(widened, pieces))) for pieces in zip(*cut, strict=True)]
    return tf.reduce_sum(sum(pairs), axis=1)


def _of_groups(option, means, added):
    """What is taken from x, and r, of each channel: its group's."""
    _, epsilon, _ = option
    plain, square = _pair(means)
    mean, square = _group_means(option, plain + added, square + added * (2.0 * plain + added))
    return mean - added, ops.rsqrt(ops.maximum(square - mean * mean, 0.0) + epsilon)


def _group_means(option, *two):
    """The means of two numbers over each channel's group, (B, C) each."""
    import tensorflow as tf

    groups, *_ = option
    channels = two[0].shape[-1]
    grouped = tf.reshape(tf.complex(*two), (-1, groups, channels // groups))
    means = tf.reduce_mean(grouped, axis=-1, keepdims=True)
    return _pair(tf.reshape(tf.broadcast_to(means, tf.shape(grouped)), (-1, channels)))


def _pair(number):
    import tensorflow as tf

    return tf.math.real(number), tf.math.imag(number)


def _of_z(activation, x, dy, scale, shift, half):
    """dz; that of silu is sigmoid(z) (1 + z (1 - sigmoid(z)))."""
    if activation == "linear":
        return dy
    z = x * scale + shift
    share = _sigmoid(z, half)
    return dy * share * (1.0 + z * (1.0 - share))


def _sigmoid(z, half):
    """The sigmoid; for maps in bfloat16 by tanh, which is faster, and off by no more than 1e-7."""
    return 0.5 + 0.5 * ops.tanh(0.5 * z) if half else ops.sigmoid(z)


def _like(gradient, v):
    """The gradient of v, summed over the batch where v is one for all."""
    return ops.sum(gradient, axis=0, keepdims=True) if v.shape[0] == 1 else gradient


def _everywhere(v):
    return v[:, None, None]


def _pixels(x):
    return x.shape[1] * x.shape[2]
