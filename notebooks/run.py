"""Run each notebook from a clean kernel and keep what it shows, which the site and GitHub show too.

python notebooks/run.py                          all of them, or those named: python notebooks/run.py 03_samplers

Of the outputs stay what is printed and the pictures, with few colours where they would be large; no warnings, no times.
"""

import base64
import json
import re
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
LARGE = 40_000
"""Bytes of base64 from which on a picture is kept with 128 colours."""
TIMES = re.compile(r" - \d+s - \d+m?s/step")


def main(*names: str) -> None:
    """Run, and write the notebooks."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            notebook = nbformat.read(path, as_version=4)
            with tempfile.TemporaryDirectory() as folder:
                NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
            keep(path, notebook)
            print(path.name, f"{path.stat().st_size / 1000:.0f} kB", flush=True)


def keep(path, executed) -> None:
    """Write the outputs of an executed notebook into its file, of which nothing else changes."""
    notebook = json.loads(path.read_text())
    for cell, done in zip(notebook["cells"], executed.cells, strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = joined(shown(out) for out in done.outputs if is_kept(out))
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def is_kept(out) -> bool:
    """Tell warnings and progress bars from what is worth keeping."""
    return out.get("name") != "stderr" and "━" not in out.get("text", "")


def shown(out) -> dict:
    """An output as nbformat writes it, counted by no one."""
    kept = {key: value for key, value in out.items() if key != "execution_count"}
    if out.output_type == "execute_result":
        kept["execution_count"] = None
    if "text" in kept:
        kept["text"] = TIMES.sub("", kept["text"]).splitlines(keepends=True)
    if "data" in kept:
        best = "image/png" if "image/png" in kept["data"] else "text/plain"
        value = kept["data"][best]
        kept["data"] = {best: few_colours(value) if best == "image/png" else value.splitlines(keepends=True)}
    return kept


def joined(outputs) -> list[dict]:
    """Make one of what was printed at different moments."""
    found = []
    for out in outputs:
        if found and found[-1]["output_type"] == out["output_type"] == "stream":
            found[-1]["text"] += out["text"]
        else:
            found.append(out)
    return found


def few_colours(png: str) -> str:
    """Make a large picture, base64, smaller."""
    if len(png) < LARGE:
        return png.strip()
    small = BytesIO()
    picture = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return min(base64.b64encode(small.getvalue()).decode(), png.strip(), key=len)


if __name__ == "__main__":
    main(*sys.argv[1:])
