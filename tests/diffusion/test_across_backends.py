"""The same file on each backend: the same images of a seed, the same training step on the same corrupted batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from unet_keras import DiffusionModel, build_unet, class_label, timestep

from . import other_backend
from .helpers import pixels

HERE = keras.backend.backend()
THERE = {"tensorflow": "jax", "torch": "tensorflow"}.get(HERE)
"""One other: run on two backends, all three are compared."""
pytestmark = pytest.mark.skipif(THERE is None, reason="TensorFlow's tests compare themselves with JAX")


@pytest.fixture(scope="module", params=[3, 6], ids=["fixed", "learned"])
def file(request, tmp_path_factory):
    """A trained model, in a file of the present backend; with six channels out it learned the variance."""
    keras.utils.set_random_seed(0)
    net = build_unet((8, 8, 3), (4, 8), conditions=(timestep(), class_label(3)), out_channels=request.param)
    model = DiffusionModel(net, null={"label": 2}, drop=0.2, ema=0.9, seed=1)
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(pixels(8), np.arange(8) % 2, epochs=2, batch_size=4, verbose=0)
    path = tmp_path_factory.mktemp("across") / "model.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def here(file):
    return other_backend.doings(file)


@pytest.fixture(scope="module")
def there(file):
    if importlib.util.find_spec(THERE) is None:
        pytest.skip(f"{THERE} is not installed")
    written = file.with_name(f"{THERE}.npz")
    command = [sys.executable, str(Path(__file__).with_name("other_backend.py")), str(file), str(written)]
    environment = {**os.environ, "KERAS_BACKEND": THERE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(written) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ddpm_learned"])
def test_same_seed_same_images(here, there, sampler):
    if f"{sampler}_x" not in here:
        pytest.skip("this model has not learned the variance")
    np.testing.assert_allclose(there[f"{sampler}_x"], here[f"{sampler}_x"], atol=1e-4)
    difference = there[f"{sampler}_images"].astype(int) - here[f"{sampler}_images"]
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.02


def test_same_batch_same_training(here, there):
    np.testing.assert_allclose(there["losses"], here["losses"], rtol=1e-4)
    np.testing.assert_allclose(there["weights"], here["weights"], atol=1e-4)
    np.testing.assert_allclose(there["average"], here["average"], atol=1e-4)
    assert there["iterations"] == here["iterations"] == 7
    assert np.abs(here["weights"] - here["average"]).max() > 1e-3 and here["losses"][0] > here["losses"][2]
