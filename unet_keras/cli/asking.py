"""What a model of the command line is asked for: prompts, classes, or a number of images."""

import numpy as np


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
