"""What TensorFlow's CPUs compute in one pass over their memory, compiled by XLA: its own operations take one each."""

from functools import cache, partial
from math import prod

import keras

NUMBERS = 2**16
"""The size of a map, all its numbers counted, from which on it pays: see benchmarks/README.md."""
USUAL = 16
"""The number of maps or sequences that is reckoned with where it is open."""


def pays(x, numbers: int | None = None, extra: int = 0) -> bool:
    """Tell whether it is faster: on a CPU, of what is not small and of known size; how many there are may be open.

    How many comes to be known when they come, and is compiled for, which takes some two seconds a network. ``numbers``
    in the place of NUMBERS; ``extra`` channels are counted as well.
    """
    count, *size = x.shape
    if keras.backend.backend() != "tensorflow" or None in size:
        return False
    *size, channels = size
    large = (count or USUAL) * prod(size) * (channels + extra) >= (NUMBERS if numbers is None else numbers)
    return large and keras.distribution.list_devices()[0].startswith("cpu")


@cache
def compiled(part, option=None):
    """Give a function of tensors whose first argument, an ``option``, is known, compiled anew for each shape."""
    import tensorflow as tf

    return tf.function(partial(part, option), jit_compile=True, autograph=False)


def bits(x):
    """x, or of bfloat16 its bits, uint16: a slice of those is read where it lies, where XLA copies one of bfloat16."""
    if not is_bfloat16(x):
        return x
    import tensorflow as tf

    return tf.bitcast(x, tf.uint16)


def widened(x):
    """x, or what ``bits`` made of it, in float32; XLA is faster at shifting bits than at converting."""
    x = bits(x)
    if x.dtype != "uint16":
        return keras.ops.cast(x, "float32")
    import tensorflow as tf

    return tf.bitcast(keras.ops.left_shift(tf.cast(x, tf.uint32), 16), tf.float32)


def narrowed(x, like):
    """x, float32, in the precision of ``like``; bfloat16 by its bits, rounded to the nearest, to even between two."""
    if not is_bfloat16(like):
        return keras.ops.cast(x, like.dtype)
    import tensorflow as tf

    bits = tf.bitcast(x, tf.uint32)
    bits = bits + 0x7FFF + keras.ops.right_shift(bits, 16) % 2
    return tf.bitcast(tf.cast(keras.ops.right_shift(bits, 16), tf.uint16), tf.bfloat16)


def is_bfloat16(x) -> bool:
    """Tell whether a tensor is in bfloat16."""
    return keras.backend.standardize_dtype(x.dtype) == "bfloat16"
