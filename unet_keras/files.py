"""Files of pretrained models, on a disk or on the Hugging Face hub: JSON, safetensors and Keras's, never pickles.

What a file says of itself is not believed: sizes are compared with what is there before memory is taken.
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

JSON_LIMIT = 100 * 2**20
"""Bytes of a JSON file; the largest that are known, vocabularies, have a fifth of it."""

EXPANSION = 100
"""How many times its size on disk an archive's file may have; Keras does not compress, weights hardly can be."""


PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def download(handle: str, wanted: list[str]) -> Path:
    """Fetch those files of "hf://owner/name" that match the patterns ``wanted``; give the folder they lie in.

    Raises ValueError for a name that is none, OSError where it cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"{handle} needs huggingface-hub: pip install unet-keras[hub].") from error
    try:
        return Path(snapshot_download(handle.removeprefix("hf://"), allow_patterns=wanted))
    except Exception as error:  # the library's own, its HTTP client's and the system's: the name, the address, the disk
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(f"{handle} was not fetched from the Hugging Face hub: {' '.join(str(error).split())}") from error


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object. Raises ValueError where it is missing or is none."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: it must have {JSON_LIMIT:,} at most.")
    return json_object(path.read_bytes(), path)


def json_object(content: bytes | str, source) -> dict:
    """Parse the JSON of a source, which the error names. Raises ValueError unless it is an object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{source} must hold an object, {{...}}, got a {type(found).__name__}.")
    return found


def keras_config(path: Path) -> dict:
    """Read the configuration in a ``.keras`` file.

    Raises ValueError for an archive that is none, whose files lead out of it, or that would unpack to far more than it
    is.
    """
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code and is not read: save it as safetensors.")
    try:
        with zipfile.ZipFile(path) as archive:
            for file in archive.infolist():
                if file.filename.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file.filename):
                    raise ValueError(f"{path} holds {file.filename!r}, which leads out of it.")
                if file.file_size > EXPANSION * (file.compress_size + 1024):
                    raise ValueError(f"{path} holds {file.filename!r}, packed to less than 1/{EXPANSION} of its size.")
            if archive.getinfo("config.json").file_size > JSON_LIMIT:
                raise ValueError(f"{path} has a config.json of more than {JSON_LIMIT:,} bytes.")
            return json_object(archive.read("config.json"), f"config.json in {path}")
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, OSError, zlib.error, RuntimeError) as error:
        raise ValueError(f"{path} is no .keras file: {error}.") from error


class Tensors:
    """The tensors of a folder's safetensors files, ``stem.safetensors`` or its shards, each read when it is asked for.

    ``variant``, e.g. "fp16", picks ``stem.fp16.safetensors``; unless given, the plain file, or the one variant that is
    there. Raises ValueError where the files are missing, cut off, pickled, or not those that the index names.
    ``metadata`` holds the texts that the files carry beside.
    """

    def __init__(self, folder, stem: str = "model", variant: str | None = None):
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError("Reading weights needs safetensors: pip install unet-keras[hub].") from error
        self.folder, self._files, self._shapes, self._open = Path(folder), {}, {}, safe_open
        self.metadata = {}
        files, listed = _weight_files(self.folder, stem, variant)
        for path in files:
            try:
                with safe_open(path, framework="np") as file:
                    self.metadata |= file.metadata() or {}
                    for name in file.keys():
                        self._files[name], self._shapes[name] = path, tuple(file.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} cannot be read, truncated or no safetensors file: {error}.") from error
        odd = sorted(set(self._files) ^ listed) if listed else []
        if odd:
            raise ValueError(
                f"{folder}: the index and its shards disagree on {len(odd)} tensors: {', '.join(odd[:5])}."
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    def __getitem__(self, name: str) -> np.ndarray:
        # Opened each time: the pages of an open file count as the program's memory once they were read.
        with self._open(self._files[name], framework="np") as file:
            try:
                return file.get_tensor(name)
            except Exception as error:  # a kind of number that NumPy does not have
                raise ValueError(f"{self._files[name]}: the tensor {name} cannot be read: {error}.") from error


def _weight_files(folder, stem, variant):
    """Give the files to read, and the names that an index lists, if there is one."""
    tags = [f".{variant}" if variant else ""]
    if not variant:
        found = (path.name.removeprefix(f"{stem}.") for path in folder.glob(f"{stem}.*.safetensors"))
        tags += sorted({"." + re.split(r"\.|-\d", name)[0] for name in found})
    if len(tags) > 2 and not (folder / f"{stem}.safetensors").is_file():
        raise ValueError(
            f"{folder} holds several variants of {stem}: give one of {', '.join(t[1:] for t in tags[1:])}."
        )
    for tag in tags:
        if (folder / f"{stem}{tag}.safetensors").is_file():
            return [folder / f"{stem}{tag}.safetensors"], set()
        index = folder / f"{stem}.safetensors.index{tag}.json"
        if index.is_file():
            return _shards(folder, index)
    pickled = sorted(p.name for p in folder.glob("*.bin"))
    found = f"{pickled}, which are pickles and are not read; save them as safetensors" if pickled else "neither"
    raise ValueError(
        f"{folder} must hold {stem}{tags[0]}.safetensors or {stem}.safetensors.index{tags[0]}.json, found {found}."
    )


def _shards(folder, index):
    listed = read_json(index).get("weight_map", {})
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{index} must hold a weight_map of names of tensors to names of files.")
    names = sorted(set(listed.values()))
    missing = [name for name in names if os.path.basename(name) != name or not os.path.isfile(folder / name)]
    if missing:
        raise ValueError(f"{index} names files that are not there: {missing}.")
    return [folder / name for name in names], set(listed)
