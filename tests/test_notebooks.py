"""Every notebook runs from a clean kernel, first cell to last."""

from pathlib import Path

import keras
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.filterwarnings("ignore")  # of the notebook client itself; the notebook's own go to its kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_first_cell_to_last(path, tmp_path):
    """On torch, which has nothing to trace: their code is that of the tests, which run on all three."""
    if keras.backend.backend() != "torch":
        pytest.skip("the notebooks are run on torch")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert all("error" not in {out.output_type for out in cell.get("outputs", [])} for cell in notebook.cells)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    printed = "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stdout")
    assert "False" not in printed  # each formula is checked beside its code
