"""Which model the command line opens, and what it is asked for: prompts, classes, or a number of images."""

from pathlib import Path

import numpy as np

from unet_keras import runs
from unet_keras.zoo.presets import from_preset, preset_facts


def opened(preset, path):
    """Load a preset, or a run folder or ``.keras`` file: the model, its classes' names, where its pictures go."""
    if preset:
        return from_preset(preset), preset_facts(preset).get("class_names"), Path()
    if not path:
        raise ValueError("There is no model: give a run folder, a .keras file, or --preset NAME.")
    path = Path(path)
    names = runs.read_settings(path).get("class_names") if path.is_dir() else None
    return from_preset(path), names, path if path.is_dir() else path.parent


def asked(model, names, prompts, count, label=None):
    """Write down what ``generate`` is to be asked for, and the captions of its images.

    ``count`` images of each prompt; without prompts, of each class in turn, or of the one named; or of anything.
    """
    if prompts and model.encoder is None:
        raise ValueError(f"prompts: got {prompts[0]!r}, but the model reads none (train --text).")
    repeated = [prompt for prompt in prompts for _ in range(count)]
    total = len(repeated) or count
    labels = None if prompts and label is None else _labels(names, total, label)
    if not prompts:
        captions = None if labels is None else [names[i] for i in labels]
        return (total if labels is None else {"label": labels}), captions
    return {"prompt": repeated} | ({} if labels is None else {"label": labels}), repeated


def _labels(names, count, label):
    """Give a class for each image, all in turn unless one is named; None for a model without."""
    if not names:
        if label is not None:
            raise ValueError(f"--class {label}: the model was trained without classes (train --classes).")
        return None
    if label is None:
        return np.arange(count) % len(names)
    if label in names:
        return np.full(count, names.index(label))
    if label.isdecimal() and int(label) < len(names):
        return np.full(count, int(label))
    raise ValueError(f"--class {label} is none of the model's classes: {', '.join(names)}.")
