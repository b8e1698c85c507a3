"""Pictures: grids of images, schedules, samplers, strips and animations of denoising, loss curves.

Every function returns its picture and also saves it where a path is given. Knows nothing of networks or samplers:
images are arrays, a schedule is anything with `alpha` and `sigma`, a row anything with `point`, `a`, `b` and `c`, a
history is a dictionary of lists.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unet_keras.checks import check_counts, is_whole

MIN_CELL = 64  # pixels; images smaller than this are enlarged
MIN_CAPTIONED_CELL = 96  # two lines of a caption need more room than an image does
FLOAT32_STEP = 1e-7  # networks compute in float32: to them, a factor below this is 0 beside one of about 1


def grid(
    images,
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    scale: int | None = None,
    padding: int = 2,
    path: str | Path | None = None,
) -> Image.Image:
    """Lay images out in a grid on white, near-square unless `columns` is given.

    `images` (N, H, W, 3) or (N, H, W, 1): uint8, or floats in [-1, 1]; ValueError for anything else. Each pixel is
    drawn as `scale` × `scale` pixels; None picks the factor that makes a cell 64 pixels or more, 96 with captions.
    `captions`, one an image, are cut to two lines; Pillow's font has Latin letters only, and no accents: these are
    dropped, other scripts come out as boxes. `padding` is in pixels of the grid.
    """
    pixels = _pixels(images, "images")
    if captions is not None and len(captions) != len(pixels):
        raise ValueError(f"captions: one an image is needed, got {len(captions)} captions for {len(pixels)} images.")
    smallest = MIN_CELL if captions is None else MIN_CAPTIONED_CELL
    tiles = _enlarge(pixels, math.ceil(smallest / max(pixels.shape[1:3])) if scale is None else scale)
    if captions is not None:
        tiles = np.concatenate([tiles, _letter(captions, tiles.shape[2])], axis=1)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    sheet = Image.fromarray(_tile(tiles, columns, padding))
    if path is not None:
        sheet.save(_with_parents(path))
    return sheet


def schedule(schedules: Mapping[str, Any], *, path: str | Path | None = None):
    """Plot noise schedules, a colour each, and return the matplotlib Figure.

    `schedules`: name → object with arrays `alpha` and `sigma` (T,). Left, both over the timestep; right, the
    signal-to-noise ratio 10·log10(alpha² / sigma²) in dB, left out where alpha or sigma is 0, to float32 rounding.
    """
    if not schedules:
        raise ValueError("schedules: got none; pass a dictionary of name → schedule.")
    figure = _figure(width=10.0, height=3.6)
    left, right = figure.subplots(1, 2)
    for index, (name, noise) in enumerate(schedules.items()):
        left.plot(noise.alpha, color=f"C{index}")
        left.plot(noise.sigma, color=f"C{index}", linestyle="--")
        right.plot(_decibels(noise.alpha, noise.sigma), color=f"C{index}", label=name)
    left.plot([], [], color="0.3", label="alpha: image")
    left.plot([], [], color="0.3", linestyle="--", label="sigma: noise")
    _label(left, x="timestep (index)", y="alpha, sigma (dimensionless)")
    _label(right, x="timestep (index)", y="signal-to-noise ratio (dB)")
    return _finished(figure, path)


def sampler(rows: Sequence[Any], *, path: str | Path | None = None):
    """Plot a sampler's rows, one a network call, and return the matplotlib Figure.

    `rows`: objects with `point` (timestep, alpha, sigma), `a`, `b` and `c`. Left, sigma / alpha where the network is
    called, left out where alpha is 0; right, the coefficients of states (a), estimates (b) and fresh noise (c),
    a colour for each row back. Coefficients that are 0 in every row are left out.
    """
    if not rows:
        raise ValueError("rows: got none; pass what a sampler makes of points, such as ddim(schedule.points(...)).")
    figure = _figure(width=10.0, height=3.6)
    left, right = figure.subplots(1, 2)
    count = np.arange(len(rows))
    ratio = [sigma / alpha if alpha else math.nan for _, alpha, sigma in (row.point for row in rows)]
    left.plot(count, ratio, color="0.3", marker="o", markersize=3)
    left.set_yscale(_scale(np.array(ratio)))
    for name, style, of in (("a", "-", "x"), ("b", "--", "D")):
        for back, values in enumerate(_columns([getattr(row, name) for row in rows])):
            if values.any():
                label = f"{name}: {of}, {back} back" if back else f"{name}: {of}"
                right.plot(count, values, color=f"C{back}", linestyle=style, marker="o", markersize=3, label=label)
    right.plot(count, [row.c for row in rows], color="0.3", linestyle=":", marker="o", markersize=3, label="c: noise")
    _label(left, x="row (network call)", y="sigma / alpha (dimensionless)")
    _label(right, x="row (network call)", y="coefficient (dimensionless)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _finished(figure, path)


def denoising(frames: Iterable, *, count: int = 8, path: str | Path | None = None) -> Image.Image:
    """Lay the way from noise to image out as a strip: a row an image, `count` evenly chosen frames as columns.

    `frames`: arrays (N, H, W, C) of one shape, uint8 or floats; floats are clipped to [-1, 1], as noise lies outside.
    The first and the last frame are always among the chosen; fewer frames than `count` are all shown.
    """
    if not is_whole(count, 2):
        raise ValueError(f"count: the first and the last frame make 2 at least, got {count!r}.")
    frames = _frames(frames)
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    strip = np.stack([frames[index] for index in chosen], axis=1)  # (N, count, H, W, C)
    return grid(strip.reshape(-1, *strip.shape[2:]), columns=len(chosen), path=path)


def attention(
    image, words: Sequence[str], maps, *, scale: int | None = None, path: str | Path | None = None
) -> Image.Image:
    """Show which pixels looked at which word: the image, and beside it a copy for each word, red where they did.

    `image` (H, W, 3), `words` L texts, `maps` (H, W, L) shares of attention; a word "" is left out. Each word's red
    goes from its least to its greatest share; the caption tells its mean share of all attention.
    """
    image, maps = _pixels(np.asarray(image)[None], "image")[0], np.asarray(maps, "float32")
    if maps.shape != (*image.shape[:2], len(words)) or not np.isfinite(maps).all():
        raise ValueError(
            f"maps: expected finite numbers (H, W, words) = {(*image.shape[:2], len(words))}, got {maps.shape}."
        )
    shown = [index for index, word in enumerate(words) if word]
    tiles = [image, *(_reddened(image, maps[..., index]) for index in shown)]
    captions = ["", *(f"{words[index]} {maps[..., index].mean():.0%}" for index in shown)]
    return grid(np.stack(tiles), columns=len(tiles), captions=captions, scale=scale, path=path)


def _reddened(image, share):
    """Fade the image to grey and mix red in, by how far the share (H, W) is between its least and its greatest."""
    heat = ((share - share.min()) / max(np.ptp(share), 1e-12))[..., None]
    grey = 128 + 0.4 * (image.mean(axis=-1, keepdims=True) - 128)
    return np.rint((1 - heat) * grey + heat * np.array([220, 30, 30])).astype(np.uint8)


def animation(frames: Iterable, path: str | Path, *, milliseconds: int = 60, hold: int = 1500) -> Path:
    """Write the way from noise to image as a GIF that repeats for ever, and return its path.

    `frames` as for `denoising`; each is a grid, shown for `milliseconds`, the last one for `hold`. GIF counts in
    hundredths of a second; equal frames that follow each other are stored as one, shown for as long.
    """
    # Browsers play frames of 10 ms and less at 100 ms.
    if min(milliseconds, hold) < 20:
        raise ValueError(f"milliseconds, hold: must be 20 or more, got {milliseconds} and {hold}.")
    first, *rest = [grid(frame) for frame in _frames(frames)]
    durations = [milliseconds] * len(rest) + [hold]
    path = _with_parents(path)
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return path


def loss(history: Mapping[str, Sequence[float]], *, path: str | Path | None = None):
    """Plot losses over the epoch, training solid and validation dashed, and return the matplotlib Figure.

    `history`: name → a value an epoch, as in Keras's `History.history`; `val_` before a name marks its validation.
    The axis is logarithmic if every finite value is positive. ValueError if there is nothing to plot.
    """
    # Keras's callbacks write the learning rate into the same dictionary.
    curves = {name: np.asarray(history[name], float) for name in history if name != "learning_rate"}
    if not any(len(values) for values in curves.values()):
        raise ValueError("history: no values; pass the `history` of what `fit` returned, after an epoch at least.")
    figure = _figure(width=7.0, height=3.6)
    axes = figure.subplots()
    names = list(dict.fromkeys(map(_trained, curves)))
    for name, values in curves.items():
        style = dict(color=f"C{names.index(_trained(name))}", linestyle="-" if name in names else "--")
        marker = "o" if len(values) < 20 else None  # a single epoch has no line to see
        axes.plot(_epochs(name, curves), values, **style, marker=marker, markersize=3, label=name)
    _label(axes, x="epoch", y="loss")
    axes.set_xlim(0.5, max(map(len, curves.values())) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_yscale(_scale(np.concatenate(list(curves.values()))))
    return _finished(figure, path)


# Images as arrays of pixels


def _pixels(images, name) -> np.ndarray:
    """Return images as uint8 (N, H, W, 3)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{name}: expected a shape (N, H, W, 3) or (N, H, W, 1), none of them 0, got {images.shape}.")
    if np.issubdtype(images.dtype, np.floating):
        images = _quantise(images.astype(np.float32), name)
    if images.dtype != np.uint8:
        raise ValueError(f"{name}: expected uint8 or floats in [-1, 1], got {images.dtype}; convert with `astype`.")
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _quantise(images, name):
    if np.isnan(images).any():
        raise ValueError(f"{name}: {np.isnan(images).sum()} of {images.size} values are NaN.")
    if np.abs(images).max() > 1:
        extent = f"{images.min():.4g} to {images.max():.4g}"
        raise ValueError(f"{name}: floats must lie in [-1, 1], got {extent}; scale or clip them first.")
    return ((images + 1) * 127.5).round().astype(np.uint8)


def _frames(frames) -> list[np.ndarray]:
    """Return frames as uint8 (N, H, W, 3), floats clipped; converted as they come, so only bytes are kept."""
    frames = [_pixels(_clip(np.asarray(frame)), f"frames[{index}]") for index, frame in enumerate(frames)]
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise ValueError(f"frames: expected one shape for all, got {sorted(shapes) or 'no frames'}.")
    return frames


def _clip(frame):
    return frame.clip(-1, 1) if np.issubdtype(frame.dtype, np.floating) else frame


def _enlarge(pixels, scale):
    check_counts(scale=scale)
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _tile(tiles, columns, padding):
    """Return tiles (N, H, W, 3) as one array (rows · (H + padding) + padding, …, 3), white around and between."""
    if not is_whole(columns) or not is_whole(padding, 0):
        raise ValueError(f"columns must be a whole number from 1, padding from 0, got {columns!r} and {padding!r}.")
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    missing = rows * columns - len(tiles)
    tiles = np.pad(tiles, ((0, missing), (0, padding), (0, padding), (0, 0)), constant_values=255)
    _, height, width, _ = tiles.shape
    sheet = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return np.pad(sheet, ((padding, 0), (padding, 0), (0, 0)), constant_values=255)


# Captions


def _letter(captions, width):
    """Return captions as pictures (N, height, width, 3), all as high as the longest needs."""
    font = ImageFont.load_default(size=min(max(width // 8, 11), 20))
    # Half a letter's height is kept free, so that captions side by side do not run into each other.
    wrapped = [_wrap(_plain(str(caption)), font, width - font.size // 2) for caption in captions]
    line = sum(font.getmetrics())
    # Half a line below keeps a caption nearer to its own image than to the next.
    height = line * max(map(len, wrapped)) + line // 2
    return np.stack([_write(lines, font, (width, height)) for lines in wrapped])


def _write(lines, font, size):
    picture = Image.new("RGB", size, "white")
    for index, line in enumerate(lines):
        top = index * sum(font.getmetrics())
        ImageDraw.Draw(picture).text((size[0] / 2, top), line, fill="black", font=font, anchor="ma")
    return np.asarray(picture)


def _plain(text):
    """Return text on one line and without accents, which Pillow's font lacks and would draw as boxes."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _wrap(text, font, width) -> list[str]:
    """Return text as one or two lines that fit; they break at a space if there is one, and may end in an ellipsis."""
    first = _fitting(text, font, width)
    if first == text:
        return [text]
    if text[len(first)] != " ":
        first = first.rpartition(" ")[0] or first
    rest = text[len(first) :].strip()
    second = _fitting(rest, font, width)
    if second != rest:
        second = _fitting(_fitting(rest, font, width - font.getlength("…")).rstrip() + "…", font, width)
    return [first.rstrip(), second]


def _fitting(text, font, width) -> str:
    """Return the longest beginning of text that is at most `width` pixels long."""
    for end in range(1, len(text) + 1):
        if font.getlength(text[:end]) > width:
            return text[: end - 1]
    return text


# Curves


def _figure(width, height):
    """Return an empty Figure, made without pyplot: no global state, no display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plotting curves needs matplotlib: pip install "unet-keras[plot]"') from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _decibels(alpha, sigma):
    alpha, sigma = np.asarray(alpha), np.asarray(sigma)
    finite = (alpha > FLOAT32_STEP) & (sigma > FLOAT32_STEP)
    ratio = np.divide(alpha, sigma, out=np.ones(alpha.shape), where=finite)
    return np.ma.masked_array(20 * np.log10(ratio), mask=~finite)


def _columns(lists):
    """Return lists of unequal length as the columns of a table, filled up with 0."""
    table = np.zeros((max(map(len, lists)), len(lists)))
    for index, values in enumerate(lists):
        table[: len(values), index] = values
    return table


def _trained(name) -> str:
    """Return the name of the training curve that a curve belongs to."""
    return name.removeprefix("val_")


def _epochs(name, curves):
    """Return the epochs, from 1, of a curve; `fit(validation_freq=k)` validates at every k-th one only."""
    count = len(curves[name])
    every = len(curves.get(_trained(name), ())) // max(count, 1)
    return np.arange(1, count + 1) * max(every, 1)


def _scale(values):
    finite = values[np.isfinite(values)]
    # A logarithmic axis without any value cannot be drawn.
    return "log" if finite.size and finite.min() > 0 else "linear"


def _label(axes, x, y):
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def _finished(figure, path):
    """Add the legend, save figure where a path is given, and let notebooks show it."""
    # Outside the axes the legend hides no curve, and matplotlib need not search for a free place, slow for long ones.
    figure.legend(loc="outside right upper", frameon=False)
    # Notebooks have a picture of figures made by pyplot, and of others only the name.
    figure._repr_png_ = partial(_png, figure)
    if path is not None:
        figure.savefig(_with_parents(path))
    return figure


def _png(figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _with_parents(path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
