"""What makes the tests of the zoo quick."""

import keras
import pytest


@pytest.fixture(autouse=True)
def untraced():
    """Let TensorFlow run its functions as Python: tracing a step costs more than running the few of these tests."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
