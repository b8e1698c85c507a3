"""Every notebook runs from a clean kernel, first cell to last."""

import runpy
import shutil
from pathlib import Path

import keras
import nbformat
import pytest
from nbclient import NotebookClient

HURRIED = {
    "EPOCHS = 2\n": "EPOCHS = 1\n",
    "steps=20,": "steps=4,",
    "steps=25,": "steps=4,",
    '"steps": 20,': '"steps": 4,',
}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_shown_is_kept_and_small(path):
    """Nothing is compared with it; python notebooks/run.py writes it anew."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    assert path.stat().st_size < 400_000
    assert outputs and "plots." not in path.read_text() or any("image/png" in out.get("data", {}) for out in outputs)
    assert {out.get("name", "stdout") for out in outputs} == {"stdout"}


def test_badges_and_addresses_are_written_and_nothing_else_is_changed(tmp_path):
    namespace = runpy.run_path(str(NOTEBOOKS[0].with_name("badges.py")))
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    for address in ("someone/first", "some-one/second"):
        namespace["main"](address, tmp_path)
    for path in NOTEBOOKS:
        before, after = path.read_text(), (tmp_path / path.name).read_text()
        link = f"](https://colab.research.google.com/github/some-one/second/blob/main/notebooks/{path.name})"
        first, install, *rest = nbformat.reads(after, as_version=4).cells
        assert first.source.startswith("[![Open in Colab](") and first.source.count(link) == 1
        assert "first" not in first.source.partition("\n")[0]
        title, installed, *cells = nbformat.reads(before, as_version=4).cells
        assert rest == cells and first.source.endswith(title.source)
        line = installed.source.splitlines()[-1]
        assert line.endswith(']"')
        assert install.source == installed.source.replace(
            line, f'{line[:-1]} @ git+https://github.com/some-one/second"'
        )
        assert len(set(before.splitlines()) - set(after.splitlines())) == 1
    with pytest.raises(ValueError, match="OWNER/NAME"):
        namespace["main"]("nowhere", tmp_path)


@pytest.mark.filterwarnings("ignore:checkpoint has no scheduler_config.json")
def test_the_checkpoint_may_be_one_of_the_hub(tmp_path, monkeypatch):
    """The fifth notebook as far as the checkpoint is read; the hub hands out the folder that it wrote before."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: tmp_path / "checkpoint")
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS[4], as_version=4).cells[:8] if cell.cell_type == "code"]
    imports, writes, reads = cells[1], cells[3], cells[4]
    names = {}
    for cell in (imports, writes, writes.replace('"checkpoint"', '"hf://some/one"'), reads):
        exec(cell, names)
    assert names["CHECKPOINT"] == "hf://some/one" and names["scheduler"]["prediction_type"] == "epsilon"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "checkpoint"]


@pytest.mark.filterwarnings("ignore")  # of the notebook client itself; the notebook's own go to its kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_first_cell_to_last(path, tmp_path):
    """On torch, which has nothing to trace: their code is that of the tests, which run on all three. In fewer steps."""
    if keras.backend.backend() != "torch":
        pytest.skip("the notebooks are run on torch")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for long, short in HURRIED.items():
            cell.source = cell.source.replace(long, short)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert all("error" not in {out.output_type for out in cell.get("outputs", [])} for cell in notebook.cells)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    printed = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stdout")
    assert "False" not in printed  # each formula is checked beside its code
