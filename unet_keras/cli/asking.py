"""Which model the command line opens, and what it is asked for: prompts, classes, or a number of images."""

from pathlib import Path

import numpy as np

from unet_keras import runs
from unet_keras.zoo.presets import from_preset, preset_facts

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
"""Of the networks that train."""


def opened(preset, path, dtype=None):
    """Load a preset, or a run folder or ``.keras`` file: the model, its classes' names, where its pictures go.

    ``dtype`` is the policy to compute under, if another than it was saved with.
    """
    source = preset or path
    if not source:
        raise ValueError("There is no model: give a run folder, a .keras file, or --preset NAME.")
    home = Path() if preset else _run_of(source) or Path()
    return from_preset(source, dtype=dtype), facts(source).get("class_names"), home


def facts(source):
    """Read what a run, also one of its ``.keras`` files, or a preset says of itself: ``class_names``, ``losses`` ..."""
    folder = _run_of(source)
    if folder is None or not (folder / runs.SETTINGS).is_file():
        return preset_facts(source)
    settings = runs.read_settings(folder)
    about = {key: settings[key] for key in ("class_names", "epochs_done") if settings.get(key)}
    return {**about, "losses": {name: values[-1] for name, values in settings.get("losses", {}).items() if values}}


def check_empty(folder):
    """Raise ValueError for a folder to write to that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: give another folder.")


def _run_of(source):
    """Give the folder of a run, or of a ``.keras`` file, which may lie in one."""
    path = Path(source)
    if path.is_file():
        return path.parent
    return path if (path / runs.SETTINGS).is_file() else None


def asked(model, names, prompts, count, label=None):
    """Write down what ``generate`` is to be asked for, and the captions of its images.

    ``count`` images of each prompt; without prompts, of each class in turn, or of the one named; or of anything.
    """
    if prompts and model.encoder is None:
        raise ValueError(f"prompts: got {prompts[0]!r}, but the model reads none (train --text).")
    repeated = [prompt for prompt in prompts for _ in range(count)]
    total = len(repeated) or count
    labels = None if prompts and label is None else _labels(model, names, total, label)
    if not prompts:
        captions = [names[i] for i in labels] if names else None
        return (total if labels is None else {"label": labels}), captions
    return {"prompt": repeated} | ({} if labels is None else {"label": labels}), repeated


def _labels(model, names, count, label):
    """Give a class for each image, all in turn unless one is named; None for a model without, or without names."""
    if not names and label is None:
        return None
    if "label" not in model.named_inputs.conditions:
        raise ValueError(f"--class {label}: the model was trained without classes (train --classes).")
    if not names:
        if not label.isdecimal():
            raise ValueError(f"--class {label}: nothing says what the model's classes are called; give a number.")
        return np.full(count, int(label))
    if label is None:
        return np.arange(count) % len(names)
    if label in names:
        return np.full(count, names.index(label))
    if label.isdecimal() and int(label) < len(names):
        return np.full(count, int(label))
    raise ValueError(f"--class {label} is none of the model's classes: {', '.join(names)}.")
