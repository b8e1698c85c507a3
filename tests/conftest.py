"""What every test starts from: the same seeds, float32, channels last. Warnings are errors: see pyproject.toml."""

import os

# JAX optimises each small program that it compiles for longer than these tests run it. Read when JAX is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras  # noqa: E402
import pytest  # noqa: E402

# They look at source, tables in NumPy and pictures, and never at a tensor: once is enough.
WITHOUT_TENSORS = [
    "test_architecture.py",
    "test_events.py",
    "test_plots.py",
    "test_site.py",
    "data/test_decode.py",
    "data/test_metadata.py",
    "diffusion/test_samplers_of_diffusers.py",
    "diffusion/test_solvers.py",
    "metrics/test_distances.py",
]
collect_ignore = [] if keras.backend.backend() == "torch" else WITHOUT_TENSORS


@pytest.fixture(autouse=True)
def same_start():
    """Seed every generator, and undo what a test does to Keras's settings."""
    policy, layout = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(layout)
