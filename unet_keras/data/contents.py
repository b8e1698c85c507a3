"""What a folder of pictures holds: pixels, classes and captions, and what had to be left out.

Knows nothing of batches or epochs.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unet_keras.data.decode import load_image, readable_extensions
from unet_keras.data.metadata import METADATA_NAMES, is_inside, read_captions


class Contents(NamedTuple):
    """What a folder of N images holds; the lists and arrays have one entry an image, sorted by path."""

    images: np.ndarray  # (N, height, width, 3) uint8, RGB
    paths: list[Path]
    labels: np.ndarray | None  # (N,) int32, indices into class_names; None: some images lie in no sub-folder
    class_names: list[str] | None  # the sub-folders that hold images, sorted
    captions: list[str] | None  # None: there is no metadata file


def read_contents(root: Path, height: int, width: int, *, workers: int | None) -> Contents:
    """Decode every image under `root`, with one warning that names what was left out.

    `workers` is a number of threads; None: one a core. No image left is a ValueError.
    """
    names, metadata, left_out = _scan(root)
    captions = read_captions(root, metadata, frozenset(names)) if metadata else dict.fromkeys(names)
    wanted = [name for name in names if name in captions]
    unnamed = {name: "no row in the metadata" for name in names if name not in captions}
    images, errors = _decode([root / name for name in wanted], height, width, workers)
    broken = {name: error for name, error in zip(wanted, errors, strict=True) if error}
    kept = [name for name in wanted if name not in broken]
    _report(root, len(kept), broken | unnamed | left_out)
    labels, class_names = _classes(names, kept)
    return Contents(
        images=images[[error is None for error in errors]] if broken else images,  # copies no more than it must
        paths=[root / name for name in kept],
        labels=labels,
        class_names=class_names,
        captions=[captions[name] for name in kept] if metadata else None,
    )


def _scan(root):
    """List a folder -> names of images and of metadata files, sorted, and {name: reason} of what cannot be read.

    Names are relative to `root`, with forward slashes on every system, so that all systems sort them alike.
    """
    extensions, images, metadata, left_out = readable_extensions(), [], [], {}
    for name in _visible(root, left_out):
        path = root / name
        kind = images if path.suffix.lower() in extensions else metadata if path.name in METADATA_NAMES else None
        if kind is not None and not path.is_file():
            left_out[name] = "not a file"
        elif kind is not None and not is_inside(path, root):
            left_out[name] = "a link that leads out of the folder"
        elif kind is not None:
            kind.append(name)
    return sorted(images), sorted(metadata), left_out


def _visible(root, left_out):
    """Walk a folder -> the name of each file that is not hidden; linked and unreadable sub-folders go to `left_out`."""

    def relative(folder, name):
        return Path(folder, name).relative_to(root).as_posix()

    def refuse(error):
        left_out[relative(error.filename, "")] = error.strerror

    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        links = [name for name in subfolders if Path(folder, name).is_symlink()]
        left_out.update({relative(folder, name): "a link to a folder" for name in links})
        yield from (relative(folder, name) for name in files if not name.startswith("."))


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


def _report(root, kept, left_out):
    """Name the first ten files left out, in one warning; or in the error, where nothing is left."""
    first = "; ".join(f"{name} ({reason})" for name, reason in list(left_out.items())[:10])
    more = f"; and {len(left_out) - 10} more" if len(left_out) > 10 else ""
    if not kept:
        reason = f"left out {len(left_out)}: {first}{more}" if left_out else "found none"
        raise ValueError(
            f"path: no image can be read in {str(root)!r}, {reason}. Give a folder with .png, .jpg or the like."
        )
    if left_out:
        message = f"image_folder left out {len(left_out)} and kept {kept} images of {str(root)!r}: {first}{more}"
        warnings.warn(message, stacklevel=4)  # the caller of image_folder


def _classes(listed, kept):
    """Take the classes from the topmost sub-folders -> labels, class names; None, None where an image lies in none.

    A class counts even if none of its images could be read: a broken file must not renumber the others.
    """
    if any("/" not in name for name in kept):
        return None, None
    class_names = sorted({name.split("/")[0] for name in listed if "/" in name})
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[name.split("/")[0]] for name in kept], np.int32), class_names
