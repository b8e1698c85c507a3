"""Networks on shapes alone: no memory for weights until each has its value."""

from contextlib import contextmanager

import keras
from keras import ops
from keras.src.backend.common import global_state  # Keras has no public way to forget variables it would fill in


@contextmanager
def shapes_only():
    """Build networks whose variables have a shape and no value; ``fill`` gives them one.

    To count parameters and to compare networks of any size in no memory, and to load without random values first.
    """
    waiting = "uninitialized_variables"
    before = list(global_state.get_global_attribute(waiting, []) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Or the next scope that ends would fill them in.
        global_state.set_global_attribute(waiting, before)


def fill(variable, array) -> None:
    """Give a variable a value, also one that has had none."""
    if variable._value is not None:
        variable.assign(array)
        return
    variable._initializer = lambda shape, dtype: ops.cast(ops.convert_to_tensor(array), dtype)
    variable._deferred_initialize()


def fill_rest(network) -> None:
    """Give those variables of a network that have no value the one they begin with, e.g. Dropout's generator."""
    for variable in network.variables:
        if variable._value is None:
            variable._deferred_initialize()
