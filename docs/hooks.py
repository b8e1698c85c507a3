"""The pages of the site that are made of other files: the README, the reference, the measurements, the notebooks."""

import ast
import base64
import inspect
import json
import re
import textwrap
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def on_files(files, config):
    """Add the pages that are made."""
    pages = {"index.md": (ROOT / "README.md").read_text(), "reference.md": reference()}
    pages["measurements.md"] = (ROOT / "benchmarks" / "README.md").read_text()
    for path in NOTEBOOKS:
        pages |= written(path)
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
    """Write a notebook as Markdown, with what its cells showed: the pages {name: content}, its pictures among them."""
    parts, pictures = [], {}
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                name = f"{notebook.stem}_{len(pictures)}.png"
                pictures[f"notebooks/{name}"] = base64.b64decode(data["image/png"])
                parts.append(f"![what the cell above shows]({name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return {f"notebooks/{notebook.stem}.md": "\n\n".join(parts), **pictures}


def reference():
    """Write each public name with its signature and its docstring, as they stand in the code."""
    import unet_keras

    entries = [
        f"## {name}\n\n```text\n{described(getattr(unet_keras, name), name)}\n```" for name in unet_keras.__all__
    ]
    return "# Reference\n\n" + "\n\n".join(entries)


def described(thing, name):
    """Give a signature, if there is one, a docstring, and those of what a class or a module has of its own."""
    told = inspect.getdoc(thing) or ""
    if isinstance(thing, property):
        return f"{name}\n\n{told}"
    if inspect.ismodule(thing):
        inner = [
            n for n in getattr(thing, "__all__", vars(thing)) if n in vars(thing) and is_own(getattr(thing, n), thing)
        ]
        return "\n\n\n".join([told, *(described(getattr(thing, n), f"{name}.{n}") for n in inner)])
    if not callable(thing):
        return re.sub(r"<function (\w+) at 0x\w+>", r"\1", f"{name} = {thing!r}")
    parts = [f"{signature(thing, name)}\n\n{told}"]
    if inspect.isclass(thing):
        parts += [described(member, f"{name}.{n}") for n, member in members(thing).items()]
    return "\n\n\n".join(parts)


def is_own(thing, module):
    """Tell whether a function or a class is a module's, or one of its modules'."""
    made = inspect.isfunction(thing) or inspect.isclass(thing)
    return made and thing.__module__.startswith(module.__name__) and not thing.__name__.startswith("_")


def members(cls):
    """The public methods and properties of a class, class methods too, as far as this package wrote them."""
    found = {}
    for name in (name for name in dir(cls) if not name.startswith("_")):
        member = inspect.getattr_static(cls, name)
        member = member if isinstance(member, property) else getattr(cls, name)
        function = getattr(member, "fget", member)
        written = inspect.isfunction(function) or inspect.ismethod(function)
        if written and function.__doc__ and function.__module__.startswith("unet_keras"):
            found[name] = member
    return found


def signature(thing, name):
    """Give name(arguments) -> result with the defaults as they are written in the code, where Python can be read."""
    function = inspect.unwrap(thing.__init__ if inspect.isclass(thing) else thing)
    node = written_as(function)
    if node is None:
        text = re.sub(r"<function (\w+)[\w.<>]* at 0x\w+>", r"\1", f"{name}{inspect.signature(thing)}")
    else:
        if node.args.args and node.args.args[0].arg in ("self", "cls"):
            del node.args.args[0]
        text = f"{name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return textwrap.fill(text, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def written_as(function):
    """Parse a function's source; None where it has none, as what ``dataclass`` makes."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None
