"""Imports point one way, and ``import unet_keras`` loads little. Read from the source with ``ast``."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "unet_keras"

# Which of our own parts a part may import, besides itself. A part is a folder or a file of the package.
OURS = {
    "checks": set(),
    "nn": {"checks"},
    "diffusion": {"checks", "optimizers"},
    "files": set(),
    "text": {"checks", "files"},
    "data": {"checks"},
    "metrics": {"checks"},
    "plots": {"checks"},
    "events": set(),
    "callbacks": {"checks", "events", "plots"},
    "checkpoints": {"checks", "runs"},
    "pipeline": {"nn", "diffusion", "text"},
    "page": {"diffusion", "pipeline", "plots"},
    "lora": {"nn", "diffusion"},
    "optimizers": set(),
    "zoo": {"checks", "files", "nn", "diffusion", "text", "pipeline", "lora"},
    "runs": {"files"},
    "cli": {
        "nn",
        "diffusion",
        "text",
        "data",
        "metrics",
        "plots",
        "callbacks",
        "checkpoints",
        "optimizers",
        "page",
        "pipeline",
        "zoo",
        "runs",
    },
    "__main__": {"cli"},
}
OURS["__init__"] = set(OURS) - {"__main__"}

# Where the installed packages are few: everything else is the standard library.
THEIRS = {
    "nn": {"keras", "numpy"},
    "nn/convolution.py": {"keras", "torch"},
    "nn/fused_norm.py": {"keras", "tensorflow"},
    "nn/gated.py": {"keras", "tensorflow"},
    "nn/group_norm.py": {"keras", "tensorflow", "torch"},
    "nn/linear.py": {"keras", "tensorflow"},
    "nn/one_pass.py": {"keras", "tensorflow"},
    "nn/winograd.py": {"keras", "numpy", "tensorflow"},
}
NO_KERAS = {"diffusion/samplers.py", "diffusion/multicall.py", "diffusion/multistep.py"}
# Optional, heavy or another backend: imported in the function that needs them.
LAZY = {
    "gradio", "huggingface_hub", "jax", "keras_hub", "keras_nlp", "matplotlib", "safetensors", "sklearn", "tensorflow",
    "tokenizers", "torch",
}  # fmt: skip


def imports(tree, package):
    """Yield each import of a module as (dotted name, whether it is inside a function); ``package`` is its own."""
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -node.level + 1 or None] if node.level else []
            names = [".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def violations(source, path):
    """Yield a sentence for each import that breaks a rule; ``path`` is the module's, below the package."""
    part = Path(path).parts[0].removesuffix(".py")
    if part not in OURS:
        yield f"{path}: no rule says what {part!r} may import; add one to {Path(__file__).name}"
        return
    for name, inside in imports(ast.parse(source), ".".join(["unet_keras", *Path(path).parent.parts])):
        top, *rest = name.split(".")
        if top == "unet_keras":
            target = rest[0] if rest else "__init__"
            if target != part and target not in OURS[part]:
                yield f"{path}: imports {name}"
        elif top not in sys.stdlib_module_names and top not in (theirs := THEIRS.get(path, THEIRS.get(part, {top}))):
            yield f"{path}: imports {name}; {part} uses {sorted(theirs)} alone"
        elif top == "keras" and path in NO_KERAS:
            yield f"{path}: imports {name}"
        elif top in LAZY and not inside:
            yield f"{path}: imports {name} outside a function"


def modules():
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def test_the_modules_are_found():
    assert {"__init__.py", "nn/unet.py", "diffusion/samplers.py", "plots.py"} <= set(modules())


@pytest.mark.parametrize("path", modules())
def test_imports_point_one_way(path):
    assert list(violations((ROOT / path).read_text(), path)) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nn/blocks.py", "from unet_keras.diffusion.schedules import linear"),
        ("nn/blocks.py", "from unet_keras.diffusion import schedules"),
        ("nn/blocks.py", "from unet_keras import diffusion"),
        ("nn/blocks.py", "from unet_keras import DiffusionModel"),
        ("nn/blocks.py", "import unet_keras.zoo"),
        ("nn/blocks.py", "import unet_keras"),
        ("nn/blocks.py", "from ..diffusion import schedules"),
        ("nn/blocks.py", "from .. import text"),
        ("nn/blocks.py", "def f():\n    from unet_keras.text import encode"),
        ("nn/blocks.py", "import scipy"),
        ("nn/blocks.py", "def f():\n    import torch"),
        ("diffusion/loop.py", "from unet_keras.nn.unet import build_unet"),
        ("diffusion/loop.py", "import torch"),
        ("diffusion/loop.py", "class C:\n    import jax.numpy"),
        ("diffusion/samplers.py", "from keras import ops"),
        ("diffusion/samplers.py", "def f():\n    import keras"),
        ("text/clip.py", "from unet_keras.nn.attention import Attention"),
        ("text/clip.py", "import keras_hub"),
        ("text/vocabulary.py", "from tokenizers import Tokenizer"),
        ("data/folder.py", "from unet_keras import plots"),
        ("plots.py", "from unet_keras.data import load_emoji"),
        ("plots.py", "from matplotlib import pyplot"),
        ("metrics/reports.py", "import unet_keras.diffusion.model"),
        ("metrics/inception.py", "import torch"),
        ("callbacks.py", "from unet_keras.diffusion.model import DiffusionModel"),
        ("page.py", "import gradio"),
        ("nn/convolution.py", "import torch"),
        ("pipeline.py", "from unet_keras.zoo import small_unet"),
        ("zoo/ddpm.py", "from unet_keras.cli import main"),
        ("extras/new.py", "import math"),
    ],
)
def test_the_rules_catch(path, line):
    assert len(list(violations(f"import math\n{line}\n", path))) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("nn/blocks.py", "from unet_keras.nn.layers import FiLM"),
        ("nn/blocks.py", "from . import layers"),
        ("nn/blocks.py", "from .layers import FiLM"),
        ("nn/blocks.py", "import keras, numpy as np\nfrom keras import ops"),
        ("diffusion/loop.py", "def f():\n    import torch"),
        ("diffusion/samplers.py", "import numpy as np\nfrom unet_keras.diffusion.schedules import Point"),
        ("callbacks.py", "from unet_keras import plots"),
        ("zoo/ddpm.py", "from unet_keras.nn.unet import build_unet"),
        ("__init__.py", "from unet_keras.diffusion.model import DiffusionModel"),
    ],
)
def test_the_rules_allow(path, line):
    assert list(violations(line, path)) == []


IMPORT = """
import sys
import keras
before = set(sys.modules)
import unet_keras
print(*sys.modules)
print(*(set(sys.modules) - before))
"""


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_the_package_loads_one_backend_and_nothing_heavy(backend):
    """Keras itself loads matplotlib, and jax with every backend; we add nothing heavy to what it loads."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True)
    loaded, by_us = ({name.split(".")[0] for name in line.split()} for line in done.stdout.splitlines())
    assert backend in loaded and "unet_keras" in by_us
    assert loaded & ({"tensorflow", "torch"} - {backend}) == set()
    assert by_us & LAZY == set()
