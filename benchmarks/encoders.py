"""How far the text encoders are from those of transformers: the largest differences that the tests hold below 1e-4.

    python benchmarks/encoders.py                        the three backends, a process each
    python benchmarks/encoders.py --backends torch

Runs those tests of tests/text that compare hidden states and pooled outputs, in float32, and notes every difference
that they measure. CLIP, T5 and BERT are small, with random weights; all-MiniLM-L6-v2 has its own.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "CLIP": ["test_clip.py::test_hidden_states", "test_clip.py::test_pooled_outputs_and_the_mask"],
    "T5": ["test_t5.py::test_hidden_states"],
    "BERT": ["test_bert.py::test_hidden_states"],
    "all-MiniLM-L6-v2": ["test_bert.py::test_the_weights_of_minilm"],
}
BACKENDS = ("tensorflow", "jax", "torch")


class Noted:
    """A plugin for pytest that keeps what the tests' ``largest`` gives, by the test that asked."""

    def __init__(self):
        self.found, self.test = {}, None

    def pytest_collection_finish(self, session):
        for module in {item.module for item in session.items}:
            module.largest = self._noted(module.largest)

    def pytest_runtest_setup(self, item):
        self.test = f"{item.path.name}::{item.originalname}"

    def _noted(self, measure):
        def largest(a, b):
            difference = float(measure(a, b))
            self.found.setdefault(self.test, []).append(difference)
            return difference

        return largest


def measure():
    """Run the tests on this process's backend and print a row of the table."""
    import pytest

    noted = Noted()
    asked = [str(ROOT / "tests" / "text" / test) for tests in TESTS.values() for test in tests]
    if pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *asked], [noted]):
        raise SystemExit("A test failed or was not run.")
    cells = [max(max(noted.found[test]) for test in tests) for tests in TESTS.values()]
    count = sum(map(len, noted.found.values()))
    print(
        f"| {os.environ['KERAS_BACKEND']} | " + " | ".join(f"{cell:.1e}" for cell in cells) + f" | ({count} compared)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS), choices=BACKENDS)
    options = parser.parse_args()
    print("| | " + " | ".join(TESTS) + " |")
    for backend in options.backends:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, __file__, "--one"], env=environment, check=True)


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["--one"] else main()
