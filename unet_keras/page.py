"""A page in the browser to explore a model with: ask for an image, and look at every step and at every word."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from keras import ops

from unet_keras import pipeline, plots
from unet_keras.diffusion.multistep import dpmpp_2m, unipc
from unet_keras.diffusion.samplers import ddim, ddpm, euler, euler_ancestral
from unet_keras.diffusion.schedules import trailing

SAMPLERS = {s.__name__: s for s in (ddim, ddpm, euler, euler_ancestral, dpmpp_2m, unipc)}
PIXELS = 320
"""How large pictures are shown, at least half of it, in pixels."""
OPTIONS = {"size", "spacing", "combine", "threshold"}
"""What of ``generate``'s options the page neither asks for nor does without."""
SPAN = 3
"""Noise is shown from black, at minus so many standard deviations, to white."""


class Moment(NamedTuple):
    """What a network call saw and made of it: float32 (H, W, C) each."""

    x: np.ndarray  # the state
    clean: np.ndarray  # the estimate of the clean image
    noise: np.ndarray  # and of the noise


class Watched(NamedTuple):
    """An image, finished or not, and how it came to be."""

    image: np.ndarray  # (H, W, C) uint8
    moments: list[Moment]  # one a network call
    words: list[str]  # L words, "" for marks and padding; none where there is no prompt
    maps: np.ndarray | None  # (H, W, L): the mean share of attention that a word had


def watch(model, conditions, *, steps, sampler=ddim, spacing=trailing, **options) -> Iterator[Watched]:
    """Sample one image with the options of ``generate``, and yield after each network call what there is by then."""
    rows = sampler(model.schedule.points(spacing(len(model.schedule), steps)))
    options = {"steps": steps, "sampler": sampler, "spacing": spacing, **options}
    words, total, moments = [], None, []
    if "prompt" in conditions:
        (words,) = model.encoder.words(conditions["prompt"])
        frames = pipeline.attending(model, conditions, **options)
    else:
        frames = ((frame, [0.0]) for frame in model.denoising(conditions or 1, **options))
    for row, (frame, (maps,)) in zip(rows, frames, strict=True):
        x, clean = (ops.convert_to_numpy(stack)[0] for stack in (frame.states[1], frame.clean))
        moments.append(Moment(x, clean, (x - row.point.alpha * clean) / row.point.sigma))
        total = maps if total is None else total + maps
        image = clean if len(moments) < len(rows) else ops.convert_to_numpy(frame.x)[0]
        yield Watched(model.values.sampled(image), moments, words, total / len(moments) if words else None)


def explore(model, class_names=None, samplers=SAMPLERS, **options):
    """Make a page to sample from a model: a ``gradio.Blocks``, to be shown with ``launch()``, in a notebook too.

    It has a prompt for a model that reads, a class for one with labels, guidance where conditions were dropped in
    training; steps, sampler and seed. It shows the image as it comes to be, the way there as a strip, for any network
    call the state and the estimates of clean image and noise, and for each word where the image looked at it.

    class_names   what the classes are called, in the order of their numbers
    samplers      those to choose from: {name: sampler}
    options       further options of ``generate`` for every image: ``size``, ``spacing``, ``combine``, ``threshold``

    ``launch`` binds to this machine alone unless told ``server_name="0.0.0.0"``. Raises ValueError for a model whose
    images are no pictures or that takes further conditions, for more names than classes, and ImportError where gradio
    is not installed.
    """
    _check(model, class_names, options)
    gradio = _gradio()
    still = {"interactive": False, "format": "png", "buttons": ["download"]}
    with gradio.Blocks(title="unet_keras", analytics_enabled=False) as page:
        watched = gradio.State(None, time_to_live=3600)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=240):
                given = _questions(gradio, model, class_names, samplers)
                button = gradio.Button("Sample", variant="primary", elem_id="sample")
            with gradio.Column(scale=2, min_width=240):
                image = gradio.Image(label="image", elem_id="image", **still)
            with gradio.Column(scale=2, min_width=240, visible="prompt" in given):
                words = gradio.AnnotatedImage(label="hover a word: where the image looked at it", elem_id="words")
                gradio.HTML("<style>#words .mask:not(.active) {opacity: 0}</style>")
        strip = gradio.Image(label="from noise to image", elem_id="strip", **still)
        at = gradio.Slider(1, 2, step=1, label="network call to look at", elem_id="at", interactive=False)
        with gradio.Row():
            names = ("state", "clean image it expects", f"noise it sees, -{SPAN} to {SPAN} standard deviations")
            looks = [gradio.Image(label=name, elem_id=f"look{i}", **still) for i, name in enumerate(names)]

        def sample(*values):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    answers = _asked(model, dict(zip(given, values, strict=True)), samplers)
                    for found in watch(model, **answers, **options):
                        yield {image: _picture(found.image)}
                except ValueError as error:
                    raise gradio.Error(str(error), title="Not sampled", duration=None, print_exception=False) from error
            for message in dict.fromkeys(str(w.message) for w in warned if w.category is UserWarning):
                gradio.Warning(message)
            calls = len(found.moments)
            yield {
                watched: found,
                strip: plots.denoising([_shown(moment.clean)[None] for moment in found.moments], count=12),
                at: gradio.Slider(1, max(calls, 2), calls, interactive=calls > 1),
                **dict(zip(looks, look(found, calls), strict=True)),
                words: _annotated(found) if found.words else None,
            }

        def look(found, call):
            if found is None:  # forgotten after an hour
                return [None] * len(looks)
            return [_picture(_shown(part)) for part in _parts(found.moments[int(call) - 1])]

        results = [watched, image, words, strip, at, *looks]
        asking = [button.click, *(field.submit for field in given.values() if hasattr(field, "submit"))]
        gradio.on(asking, sample, list(given.values()), results, concurrency_limit=1, api_name=False)
        at.input(look, [watched, at], looks, show_progress="hidden", api_name=False)
    return page


def _gradio():
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The page to explore needs gradio: pip install "unet-keras[explore]"') from error
    return gradio


def _check(model, class_names, options):
    """Raise ValueError for a model that the page has no questions for, or no pictures, and for options that it sets."""
    taken = sorted(set(options) - OPTIONS)
    if taken:
        raise ValueError(f"options: {', '.join(taken)} is asked for on the page, or of no use; give {sorted(OPTIONS)}.")
    channels = model.named_inputs.image.shape[-1]
    if not model.values.bounded or channels not in (1, 3):
        raise ValueError(f"model: its images, of {channels} channels, are no pictures to show.")
    read = set(model.encoder([""])) if model.encoder is not None else set()
    unasked = sorted(set(model.named_inputs.conditions) - read - set(model.dropping.learned) - {"label"})
    if unasked:
        raise ValueError(f"model: the page does not know how to ask for the conditions {unasked}; use generate.")
    if class_names is None:
        return
    label = model.named_inputs.conditions.get("label")
    if label is None:
        raise ValueError(f"class_names: the model takes no labels, and {len(class_names)} names were given.")
    if label.classes and len(class_names) > label.classes:
        raise ValueError(f"class_names: the model knows {label.classes} classes, got {len(class_names)} names.")


def _questions(gradio, model, class_names, samplers):
    """Put the questions on the page: {option: field}."""
    asked = {}
    if model.encoder is not None:
        asked["prompt"] = gradio.Textbox(label="prompt", placeholder="a red apple", elem_id="prompt", autofocus=True)
    if "label" in model.named_inputs.conditions:
        any_ = "label" in model.dropping.learned
        open_ = any_ and model.encoder is not None  # with neither, guidance would have nothing to lead to
        if class_names is None:
            label = "class" + any_ * " (any, where left empty)"
            asked["label"] = gradio.Number(None if open_ else 0, label=label, precision=0, elem_id="label")
        else:
            choices = [("any", "any")] * any_ + [(str(name), number) for number, name in enumerate(class_names)]
            asked["label"] = gradio.Dropdown(choices, value="any" if open_ else 0, label="class", elem_id="label")
    if model.dropping.shares:
        asked["guidance"] = gradio.Slider(0, 12, 3, step=0.5, label="guidance", elem_id="guidance")
        if model.encoder is not None:
            asked["negative"] = gradio.Textbox(label="negative prompt", elem_id="negative")
    asked["steps"] = gradio.Slider(1, min(len(model.schedule), 250), 25, step=1, label="steps", elem_id="steps")
    asked["sampler"] = gradio.Dropdown(list(samplers), label="sampler", elem_id="sampler")
    asked["seed"] = gradio.Number(0, label="seed", precision=0, elem_id="seed")
    return asked


def _asked(model, given, samplers):
    """Bring the answers to what ``watch`` takes."""
    conditions, learned = {}, set(model.dropping.learned)
    prompt = given.pop("prompt", "").strip()
    if prompt:
        conditions["prompt"] = [prompt]
    elif model.encoder is not None and not set(model.encoder([""])) <= learned:
        raise ValueError('prompt: say what the image is to show, e.g. "a red apple".')
    if given["seed"] is None:
        raise ValueError("seed: give a whole number, 0 or more.")
    label = given.pop("label", None)
    if label not in (None, "any"):
        conditions["label"] = np.array([label])
    negative = given.pop("negative", None)
    if negative:
        given["negative"] = [negative]
    if not negative and not conditions and given.get("guidance", 1) != 1:
        warnings.warn("guidance: left out, for without a prompt or class it leads nowhere.", stacklevel=2)
        given["guidance"] = 1
    return {"conditions": conditions, **given, "sampler": samplers[given["sampler"]]}


def _parts(moment):
    return moment.x, moment.clean, moment.noise / SPAN


def _shown(values):
    return np.clip(values, -1, 1)


def _picture(image):
    """An image as a PIL image, enlarged without smoothing."""
    return plots.grid(image[None], scale=_scale(image), padding=0)


def _annotated(watched):
    """The image with a map for each word, each from its least share of attention to its greatest."""
    scale = _scale(watched.image)
    sections = []
    for number, word in enumerate(watched.words):
        if word:
            share = watched.maps[..., number]
            heat = (share - share.min()) / max(np.ptp(share), 1e-12)
            sections.append((heat.repeat(scale, 0).repeat(scale, 1), word))
    return np.asarray(_picture(watched.image)), sections


def _scale(image):
    return max(PIXELS // max(image.shape[:2]), 1)
