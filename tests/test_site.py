"""The site of the documentation is built without a warning, and its made pages hold what they are made of."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import unet_keras

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def described():
    """What the reference says of a public name, on one line."""
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    return lambda name: " ".join(hooks["described"](getattr(unet_keras, name), name).split())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("DiffusionModel", "schedule: Schedule=linear(), prediction: Prediction=noise, *, values: Values=pixels,"),
        ("DiffusionModel", "DiffusionModel.averaged "),
        ("DiffusionModel", "DiffusionModel.generate(conditions, *, steps=50, sampler=ddim, spacing=trailing,"),
        ("build_unet", "block=conv_block, down=max_pool,"),
        ("build_unet", "conditions=(timestep(),),"),
        ("TokenEncoder", "TokenEncoder.from_texts(texts: Iterable[str], *, least: int=1, **options)"),
        ("ClipEncoder", "ClipEncoder.from_hf(folder, *,"),
        ("Schedule", "Schedule.snr The signal-to-noise ratio"),
        ("noise", "noise = Prediction(target=noise_target, estimate=noise_estimate)"),
        ("metrics", "metrics.kid(real, fake, *, subsets: int=100,"),
        ("metrics", "metrics.Extractor(name: str, function:"),
        ("metrics", "metrics.Spread(mean: float, std: float) The mean of an estimate"),
        ("plots", "plots.grid(images, *, columns: int | None=None,"),
    ],
)
def test_the_reference_shows_signatures_as_they_are_written(described, name, told):
    assert told in described(name)


def test_the_reference_is_for_reading(described):
    for name in unet_keras.__all__:
        text = described(name)
        assert 20 < len(text) < 10_000, name
        assert " at 0x" not in text and "array([" not in text, name


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "reference" / "index.html").read_text()
    assert [name for name in unet_keras.__all__ if f'id="{name.lower()}"' not in reference] == []
    for path in NOTEBOOKS:
        page = tmp_path / "notebooks" / path.stem / "index.html"
        pictures = sorted(page.parents[1].glob(f"{path.stem}_*.png"))
        assert pictures or "plots." not in path.read_text(), path.name
        assert [picture.name for picture in pictures if f"../{picture.name}" not in page.read_text()] == []
