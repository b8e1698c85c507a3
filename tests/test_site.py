"""The site of the documentation is built without a warning, and its made pages hold what they are made of."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unet_keras

ROOT = Path(__file__).parents[1]


def test_the_site_is_built_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert [name for name in unet_keras.__all__ if f'id="{name.lower()}"' not in reference] == []
    pages = {path.parent.name for path in tmp_path.rglob("index.html")}
    assert {path.stem.lower() for path in (ROOT / "notebooks").glob("*.ipynb")} <= {name.lower() for name in pages}
