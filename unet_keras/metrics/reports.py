"""From pictures, or from a model, to figures that say how they came about.

A *measure* is a callable images (N, H, W, C) uint8 -> Report. ``sampled`` turns measures into a callable model ->
Report, for use after training or, in the callback ``Evaluate``, during it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from unet_keras.metrics.distances import clip_score, fid, inception_score
from unet_keras.metrics.extractors import features_of, name_of

Measure = Callable[[np.ndarray], "Report"]


@dataclass(frozen=True)
class Report:
    """Figures by name, and what they were measured with: extractor, numbers of images, seed."""

    values: dict[str, float]
    about: dict[str, object]

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.5g}" for name, value in self.values.items())
        return f"{values} ({', '.join(f'{name} {value}' for name, value in self.about.items())})"

    def __or__(self, other: "Report") -> "Report":
        """Join two; what both tell differently of how they came about is told of both."""
        twice = sorted(set(self.values) & set(other.values))
        if twice:
            raise ValueError(f"Two functions give {', '.join(twice)}: leave one out, or give it another name.")
        about = dict(self.about)
        for name, value in other.about.items():
            before = about.setdefault(name, value)
            if value != before and str(value) not in str(before).split(" and "):
                about[name] = f"{before} and {value}"
        return Report(self.values | other.values, about)


def compared(reference, extractor, functions: Sequence[Callable] = (fid,), *, cache: str | os.PathLike | None = None):
    """Make a measure of ``functions`` (real features, fake features) -> figures.

    They are ``fid``, ``kid``, ``precision_recall``, or the like. ``reference`` holds the real images (N, H, W, C),
    uint8, whose features are taken once, now; ``cache`` is a folder that keeps them, see ``features_of``. Raises
    ValueError unless ``functions`` holds functions, one or more.
    """
    if not isinstance(functions, Sequence) or not functions or not all(map(callable, functions)):
        raise ValueError(f"functions must be a tuple of functions, such as (fid, kid), got {functions!r:.80}.")
    real = features_of(extractor, reference, cache=cache)

    def measure(images):
        fake = features_of(extractor, images)
        report = Report({}, {"extractor": name_of(extractor), "n": len(images), "reference": len(real)})
        for function in functions:
            report |= Report(_named(function, function(real, fake)), {})
        return report

    return measure


def classified(classifier, function: Callable = inception_score):
    """Make a measure of a function of a classifier's logits alone, ``inception_score``."""

    def measure(images):
        values = _named(function, function(features_of(classifier, images)))
        return Report(values, {"extractor": name_of(classifier), "n": len(images)})

    return measure


def aligned(clip, prompts: Sequence[str]):
    """Make a measure of how well each image fits its prompt: ``clip_score`` with both halves of a ``clip``."""
    texts = np.asarray(clip.texts(list(prompts)))

    def measure(images):
        score = clip_score(features_of(clip.images, images), texts)
        return Report({"clip_score": score}, {"extractor": name_of(clip.images), "n": len(images)})

    return measure


def sampled(conditions, *measures: Measure, seed: int = 0, **options) -> Callable:
    """Make a callable model -> Report, which samples once and takes all measures of it.

    ``conditions`` and ``options`` are those of ``generate``: a count, prompts or conditions; steps, guidance,
    batch_size. The seed is the same each time, so that figures of one model at two times compare.
    """
    if not measures:
        raise ValueError("measures must be one or more, e.g. compared(images, emoji_features()).")

    def evaluate(model):
        images = model.generate(conditions, seed=seed, **{"progress": False, **options})
        if keras.config.image_data_format() == "channels_first":
            images = np.moveaxis(images, 1, -1)
        report = measures[0](images)
        for measure in measures[1:]:
            report |= measure(images)
        return report | Report({}, {"seed": seed, **_shown(options)})

    return evaluate


def _shown(options):
    """Give the options that a report shows: numbers, and functions by their names, with the numbers they were given."""
    shown = {name: value for name, value in options.items() if isinstance(value, int | float)}
    for name in (name for name, value in options.items() if callable(value)):
        function, given = getattr(options[name], "func", options[name]), getattr(options[name], "keywords", {})
        numbers = ", ".join(f"{key}={value}" for key, value in _shown(given).items())
        shown[name] = f"{name_of(function)}({numbers})" if numbers else name_of(function)
    return shown


def _named(function, found):
    """Name what a function found: a number by the function's name, a named tuple by its fields."""
    name = name_of(getattr(function, "func", function))
    if not hasattr(found, "_asdict"):
        return {name: float(found)}
    own = {"mean": name, "std": f"{name}_std"}
    return {own.get(field, field): float(value) for field, value in found._asdict().items()}
