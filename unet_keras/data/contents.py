"""What a folder of pictures holds: pixels, classes and captions, and what had to be left out.

Knows nothing of batches or epochs.
"""

import math
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unet_keras.data.decode import load_image
from unet_keras.data.listing import Names, listed
from unet_keras.data.metadata import read_captions


class Contents(NamedTuple):
    """What a folder of N images holds; the lists and arrays have one entry an image, sorted by path."""

    images: np.ndarray  # (N, height, width, 3) uint8, RGB
    paths: list[Path]
    labels: np.ndarray | None  # (N,) int32, indices into class_names; None: some images lie in no sub-folder
    class_names: list[str] | None  # the sub-folders that hold images, sorted
    captions: list[str] | None  # None: there is no metadata file


def read_contents(root: Path, height: int, width: int, *, workers: int | None) -> Contents:
    """Decode every image under `root`, with one warning that names what was left out.

    `workers` is a number of threads; None: one a core. A ValueError if no image is left, or more than fit into memory.
    """
    names, captions, left_out = read_names(root)
    wanted = list(names if captions is None else captions)
    check_memory(len(wanted), height, width)
    images, errors = _decode([root / name for name in wanted], height, width, workers)
    broken = {name: error for name, error in zip(wanted, errors, strict=True) if error}
    kept = [name for name in wanted if name not in broken]
    report("image_folder", root, len(kept), broken | left_out)
    labels, class_names = classes(names, kept)
    return Contents(
        images=images[[error is None for error in errors]] if broken else images,  # copies no more than it must
        paths=[root / name for name in kept],
        labels=labels,
        class_names=class_names,
        captions=None if captions is None else [captions[name] for name in kept],
    )


def read_names(root: Path) -> tuple[Names, dict[str, str] | None, dict[str, str]]:
    """List the images under `root` -> all names; captions by name, sorted, if there are any; reasons of what is out."""
    images, metadata, left_out = listed(root)
    if not metadata:
        return images, None, left_out
    captions = read_captions(root, metadata, images)
    unnamed = {name: "no row in the metadata" for name in images if name not in captions}
    return images, dict(sorted(captions.items())), unnamed | left_out


def check_memory(count: int, height: int, width: int) -> None:
    """Raise ValueError where so many images are larger than the machine's memory."""
    need, have = count * height * width * 3, _physical_memory()
    if need > have:
        raise ValueError(
            f"size: {count} images of {height} x {width} take {need / 2**30:.1f} GiB, and this machine has "
            f"{have / 2**30:.1f}: give a smaller size, or fewer at a time (image_stream)."
        )


def _physical_memory() -> float:
    """Tell how many bytes of memory the machine has; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _decode(paths, height, width, workers):
    """Decode images in parallel -> (N, height, width, 3) uint8, and an error message or None for each."""
    images = np.empty((len(paths), height, width, 3), np.uint8)

    def read(index):
        try:
            images[index] = load_image(paths[index], height, width)
        except Exception as error:  # Pillow's decoders raise almost anything on broken data
            return f"{type(error).__name__}: {error}"

    # The filters are the whole process's, so they are set here, once, rather than in the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # one warning, ours, not one for every odd EXIF tag
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return images, list(pool.map(read, range(len(paths))))


def report(reader: str, root: Path, kept: int, left_out: dict[str, str]) -> None:
    """Name the first ten files left out, in one warning; or in the error, where nothing is left."""
    first = "; ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:10])
    more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    if not kept:
        reason = f"left out {len(left_out)}: {first}{more}" if left_out else "found none"
        raise ValueError(
            f"path: no image can be read in {str(root)!r}, {reason}. Give a folder with .png, .jpg or the like."
        )
    if left_out:
        message = f"{reader} left out {len(left_out)} and kept {kept} images of {str(root)!r}: {first}{more}"
        warnings.warn(message, stacklevel=4)  # the caller of the reader


def classes(listed: Iterable[str], kept: Iterable[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Take the classes from the topmost sub-folders -> labels, class names; None, None where an image lies in none.

    A class counts even if none of its images could be read: a broken file must not renumber the others.
    """
    if any("/" not in name for name in kept):
        return None, None
    class_names = sorted({name.split("/")[0] for name in listed if "/" in name})
    number = {name: label for label, name in enumerate(class_names)}
    return np.fromiter((number[name.split("/")[0]] for name in kept), np.int32), class_names
