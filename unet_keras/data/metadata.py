"""Captions beside images, by the Hugging Face image-folder convention.

A file `metadata.jsonl` or `metadata.csv` holds one row an image: `file_name`, relative to the metadata file, and `text`
(or `caption`). Knows nothing of pixels.
"""

import csv
import json
import os
import posixpath
from collections.abc import Collection, Iterable
from pathlib import Path

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


def read_captions(root: Path, files: Iterable[str], images: Collection[str]) -> dict[str, str]:
    """Read metadata files: the name of an image -> its caption.

    All names are relative to `root`, with forward slashes; `images` are those a row may name. A row that names another
    file, leads out of `root`, repeats an image or lacks its text is a ValueError that says which row.
    """
    captions = {}
    for file in files:
        for number, row in enumerate(_rows(root / file), 1):
            where = f"{root / file}, row {number}"
            file_name = _text(row, ("file_name",), where)
            name = posixpath.normpath(posixpath.join(posixpath.dirname(file), file_name))
            if name not in images:
                fault = "there is no image" if _stays(root, name) else "file_name leads out of the folder, to"
                raise ValueError(f"{where}: {fault} {name!r} in {root}; correct file_name or remove the row.")
            if name in captions:
                raise ValueError(f"{where}: a second caption for {name!r}; keep one row an image.")
            captions[name] = _text(row, ("text", "caption"), where)
    return captions


def is_inside(path: Path, root: Path) -> bool:
    """Say whether `path`, its links followed, lies in `root`."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _rows(path):
    """Yield the rows of a metadata file, dicts in a well-formed one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets put a byte order mark in front
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (json.loads(line) for line in file if line.strip())
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: not {path.suffix[1:].upper()} in UTF-8: {error}; save it as such.") from error


def _text(row, columns, where):
    """Take the text of the first of `columns` in which the row has some."""
    fields = row if isinstance(row, dict) else {}
    texts = [fields[column] for column in columns if isinstance(fields.get(column), str)]
    texts = [text for text in texts if text.strip()] or texts[:1]  # "" is a caption where there is no other
    if not texts:
        wanted = " or ".join(repr(column) for column in columns)
        raise ValueError(
            f"{where}: no text in the column {wanted}; received {str(row)[:200]}. Add or rename the column."
        )
    return texts[0]


def _stays(root, name):
    """Say whether a name that is no image's lies in `root` at least."""
    try:
        return is_inside(root / name, root)
    except ValueError:  # a NUL or half of a surrogate pair: no file's name
        return True
