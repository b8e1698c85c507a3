"""The same batch and seed on one device and on many, simulated: the same losses, weights, validation and samples."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from .helpers import trainer

BACKEND = keras.backend.backend()
PROGRAM = Path(__file__).with_name("many_devices.py")


PATHS = os.pathsep.join([str(PROGRAM.parents[1]), str(PROGRAM.parents[2])])


def run(folder, arguments):
    """Run the program once for each list of arguments, at the same time; {name: what it found}."""
    environment = {**os.environ, "KERAS_BACKEND": BACKEND, "PYTHONPATH": PATHS, "PYTHONSAFEPATH": "1"}
    running = {}
    try:
        for name, more in arguments.items():
            with open(folder / f"{name}.log", "w") as log:
                command = [sys.executable, str(PROGRAM), f"{folder / name}.npz", *more]
                running[name] = subprocess.Popen(command, env=environment, stderr=log)
        failed = [name for name, process in running.items() if process.wait(timeout=1200)]
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    assert {name: (folder / f"{name}.log").read_text()[-3000:] for name in failed} == {}
    return {name: dict(np.load(f"{folder / name}.npz")) for name in arguments}


def two():
    """The arguments of two processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return {"first": ["0", address], "second": ["1", address]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process found on one device and, but for torch, on four; and each of two processes."""
    folder = tmp_path_factory.mktemp("devices")
    if BACKEND == "torch":
        found = run(folder, two())
        return {"one": found["first"], **found}
    return run(folder, {"one": []} | (two() if BACKEND == "jax" else {}))


def check(found, alone):
    np.testing.assert_allclose(found["losses"], alone["alone_losses"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["validation"], alone["alone_validation"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["weights"], alone["alone_weights"], rtol=0, atol=1e-5)
    assert found["images"].shape == (5, 8, 8, 3)
    assert np.abs(found["images"].astype(int) - alone["alone_images"]).max() <= 1
    assert found["losses"].shape == (20,) and found["losses"][-1] < found["losses"][0]


@pytest.mark.skipif(BACKEND == "torch", reason="on torch devices are in processes of their own")
def test_four_devices_compute_what_one_does(results):
    check(results["one"], results["one"])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="see below")
@pytest.mark.parametrize("process", ["first", "second"])
def test_two_processes_compute_what_one_does(results, process):
    check(results[process], results["one"])


def check_kept(found):
    np.testing.assert_array_equal(found["resumed"], found["whole"])
    assert found["rest"] == 3  # of six batches


@pytest.mark.skipif(BACKEND == "tensorflow", reason="see below")
def test_two_processes_go_on_from_one_folder(results):
    check_kept(results["first"])
    check_kept(results["second"])
    np.testing.assert_array_equal(results["first"]["resumed"], results["second"]["resumed"])


@pytest.mark.skipif(BACKEND == "torch", reason="on torch devices are in processes of their own")
def test_batches_that_devices_cannot_share_are_refused(results):
    assert "A batch of 6 examples cannot be shared by 4 devices" in str(results["one"]["refused"])


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX computes them in one program")
def test_samples_and_weights_are_spread_over_the_devices(results):
    found = results["one"]
    assert found["shards"] == 4 and found["cut"] > 0.7
    np.testing.assert_allclose(found["forward"], found["alone_forward"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["trained"], found["alone_trained"], rtol=0, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's strategies")
def test_each_device_samples_with_its_own_copy(results):
    assert results["one"]["copies"] == 3  # images at a time, one for each of as many devices


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's strategies")
def test_what_a_strategy_cannot_do_is_refused(results):
    assert "gradient_accumulation_steps cannot be used" in str(results["one"]["accumulated"])
    assert "steps_per_execution cannot be used" in str(results["one"]["together"])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's strategies")
def test_a_step_that_overflows_on_one_device_is_left_out_on_all(results):
    np.testing.assert_array_equal(results["one"]["scaled"], [2, 1 / 8, True])


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's strategies")
def test_two_workers_compute_what_one_does(results, tmp_path):
    found = run(tmp_path, two())
    check(found["first"], results["one"])
    check(found["second"], results["one"])
    check_kept(found["first"])
    check_kept(found["second"])


@pytest.mark.skipif(BACKEND != "torch", reason="of torch's processes")
def test_remat_in_several_processes_is_refused(results):
    assert "remat=True does not work in several processes" in str(results["first"]["refused"])


@pytest.mark.skipif(BACKEND == "jax", reason="whose own it is")
def test_a_distribution_that_keras_would_pass_over_is_refused(monkeypatch):
    monkeypatch.setattr(keras.distribution, "distribution", object)
    with pytest.raises(ValueError, match="keras.distribution works on JAX alone"):
        trainer()
