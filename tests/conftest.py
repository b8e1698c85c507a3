"""What every test starts from: the same seeds, float32, channels last. Warnings are errors: see pyproject.toml."""

import gc
import os

# JAX and TensorFlow optimise each small program for longer than these tests run it. Read when JAX is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras  # noqa: E402
import pytest  # noqa: E402

if keras.backend.backend() == "tensorflow":
    import tensorflow

    tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

# They look at source, tables in NumPy and pictures, never at a tensor, or read and write by what test_folder.py tests
# on every backend: once is enough.
RUN_ONCE = [
    "test_architecture.py",
    "test_convert.py",
    "test_events.py",
    "test_plots.py",
    "test_site.py",
    "data/test_decode.py",
    "data/test_metadata.py",
    "data/test_recoloured.py",
    "diffusion/test_samplers_of_diffusers.py",
    "diffusion/test_solvers.py",
    "metrics/test_distances.py",
]
collect_ignore = [] if keras.backend.backend() == "torch" else RUN_ONCE


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Let JAX compile the same program once, for all processes: most tests run the same few tiny networks."""
    if keras.backend.backend() == "jax":
        import jax

        folder = tmp_path_factory.getbasetemp()
        folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def same_start():
    """Seed every generator, and undo what a test does to Keras's settings."""
    policy, layout = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(layout)


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """Free what a file's tests compiled: all of it together is six gigabytes a process on JAX."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
    keras.utils.clear_session(free_memory=False)
    if keras.backend.backend() != "torch":  # which compiles nothing
        gc.collect()  # what clear_session let go of


@pytest.fixture
def untraced():
    """Let TensorFlow run its functions as Python: tracing a step costs more than running the few of some tests."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def pytest_collection_modifyitems(items):
    """Begin with the file that takes longest, or one process would be left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    for item in items:
        if item.get_closest_marker("once") and keras.backend.backend() != "torch":
            item.add_marker(pytest.mark.skip(reason="run on torch"))


def pytest_collection_finish():
    """Spare Python looking through everything that was imported, again and again, for what could be freed."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """Some plugins look for what refers to a thing, and do not find what is frozen."""
    gc.unfreeze()
