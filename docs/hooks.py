"""The pages of the site that are made of other files: the README, the reference, the measurements, the notebooks."""

import inspect
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def on_files(files, config):
    """Add the pages that are made."""
    pages = {"index.md": (ROOT / "README.md").read_text(), "reference.md": reference()}
    pages["measurements.md"] = (ROOT / "benchmarks" / "README.md").read_text()
    pages |= {f"notebooks/{path.stem}.md": written(path) for path in NOTEBOOKS}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, page, **_):
    """Let links between the repository's files lead to the site's pages."""
    up = "../" * page.file.src_uri.count("/")
    for there, here in (("benchmarks/README.md", "measurements.md"), (r"notebooks/(\w+)\.ipynb", r"notebooks/\1.md")):
        markdown = re.sub(rf"\]\((?:\.\./)*{there}\)", rf"]({up}{here})", markdown)
    return re.sub(r"\]\((?:\.\./)?docs/", f"]({up}", markdown)


def written(notebook):
    """Write a notebook's cells as Markdown."""
    cells = json.loads(notebook.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    return "\n\n".join(
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells, texts, strict=True)
    )


def reference():
    """Write each public name with its signature and its docstring, as they stand in the code."""
    import unet_keras

    entries = [
        f"## {name}\n\n```text\n{described(getattr(unet_keras, name), name)}\n```" for name in unet_keras.__all__
    ]
    return "# Reference\n\n" + "\n\n".join(entries)


def described(thing, name):
    """Give a signature, if there is one, a docstring, and those of a class's own public methods."""
    told = inspect.getdoc(thing) or ""
    if inspect.ismodule(thing):
        inner = [getattr(thing, n) for n in getattr(thing, "__all__", vars(thing)) if not n.startswith("_")]
        own = [v for v in inner if inspect.isfunction(v) and v.__module__.startswith(thing.__name__)]
        return "\n\n\n".join([told, *(described(v, f"{name}.{v.__name__}") for v in own)])
    if not callable(thing):
        return f"{name} = {thing!r}"
    head = f"{name}{inspect.signature(thing)}"
    if not inspect.isclass(thing):
        return f"{head}\n\n{told}"
    methods = [v for n in dir(thing) if not n.startswith("_") and inspect.isfunction(v := getattr(thing, n))]
    own = [v for v in methods if v.__module__.startswith("unet_keras") and v.__doc__]
    return "\n\n\n".join([f"{head}\n\n{told}", *(described(v, f"{name}.{v.__name__}") for v in own)])
