"""What lies in a folder: the names of its pictures, a million in the memory of one array, and of its metadata files.

Knows nothing of pixels, captions or batches.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet_keras.data.decode import readable_extensions
from unet_keras.data.metadata import METADATA_NAMES, is_inside


class Names(Sequence):
    """Texts in one sorted array, each as long as the longest: a million file names of 24 bytes take 24 MB, not 100."""

    def __init__(self, names: Iterable[str]):
        names, parts = iter(names), [np.empty(0, "S1")]
        while part := [os.fsencode(name) for name in islice(names, 65536)]:
            parts.append(np.array(part))
        self._names = np.concatenate(parts)
        self._names.sort()

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        return os.fsdecode(self._names[index])

    def taken(self, chosen: np.ndarray) -> "Names":
        """Those at the given places, which are in order."""
        part = copy.copy(self)
        part._names = self._names[chosen]
        return part

    def __contains__(self, name):
        try:
            place = np.searchsorted(self._names, os.fsencode(name))
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can say and no file is called
            return False
        return place < len(self) and self[place] == name


class Listing(NamedTuple):
    """The files of a folder; names are relative to it, with forward slashes on every system, and sorted alike there."""

    images: Names
    metadata: list[str]
    left_out: dict[str, str]  # name: reason


def listed(root: Path) -> Listing:
    """Walk a folder; what is hidden is passed over, what is linked, unreadable or no file is left out."""
    metadata, left_out = [], {}
    images = Names(_images(root, metadata, left_out))
    return Listing(images, sorted(metadata), left_out)


def _images(root, metadata, left_out) -> Iterator[str]:
    """Yield the names of the images; those of metadata files and of what cannot be read go into the arguments."""
    extensions = readable_extensions()
    for name, entry in _visible(root, left_out):
        image = os.path.splitext(name)[1].lower() in extensions
        if not image and entry.name not in METADATA_NAMES:
            continue
        linked = entry.is_symlink()
        if not ((root / name).is_file() if linked else entry.is_file()):
            left_out[name] = "not a file"
        elif linked and not is_inside(root / name, root):
            left_out[name] = "a link that leads out of the folder"
        elif image:
            yield name
        else:
            metadata.append(name)


def _visible(root, left_out):
    """Yield (name, os.DirEntry) of each file that is not hidden, one at a time, however many a folder holds."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    name = f"{folder}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{name}/")
                    elif entry.is_symlink() and (root / name).is_dir():
                        left_out[name] = "a link to a folder"
                    else:
                        yield name, entry
        except OSError as error:
            left_out[folder.rstrip("/") or "."] = error.strerror
