"""Networks by name that take no memory for their weights: to be counted, not to be run."""

import json
import os
import zipfile
from pathlib import Path

import keras

from unet_keras.files import read_json
from unet_keras.nn.abstract import shapes_only
from unet_keras.zoo.diffusers.folder import fetch, is_folder, policy
from unet_keras.zoo.diffusers.network import SIZES, unet_of
from unet_keras.zoo.presets import CONFIG, located
from unet_keras.zoo.published import PUBLISHED


def outline(name: str | os.PathLike, *, dtype: str | None = None) -> keras.Model:
    """Build the network of a preset without its weights: of any name or path that ``from_preset`` takes.

    dtype     the policy to build with, for networks that are not saved with one; Keras's own unless given

    The network's variables have shapes and no values. Raises ValueError for a name that is none, and for a dtype that
    is asked of a network saved with its own.
    """
    if str(name) in PUBLISHED and not Path(name).exists():
        return _built(PUBLISHED[str(name)].build, dtype)
    path = fetch(str(name), weights=False) if str(name).startswith("hf://") else located(name)
    if path.is_dir() and is_folder(path):
        folder = path / "unet" if (path / "unet").is_dir() else path
        index = path / "model_index.json"
        score = index.is_file() and read_json(index).get("requires_aesthetics_score")
        config = read_json(folder / "config.json")
        return _built(lambda: unet_of(config, sizes=5 if score else SIZES), dtype)
    if dtype is not None:
        raise ValueError(f"{name} takes no dtype={dtype!r}: it has the one that it was saved with.")
    config = _saved(path)
    config = config.get("config", {}).get("network", config)
    return _built(lambda: keras.saving.deserialize_keras_object(config), None)


def _built(build, dtype):
    with policy(dtype), shapes_only():
        return build()


def _saved(path):
    """The configuration in a preset's folder, a run's, or a ``.keras`` file."""
    path = path / "model.keras" if (path / "model.keras").is_file() else path
    if path.is_dir():
        return read_json(path / CONFIG).get("model", {})
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("config.json"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is no .keras file: {error}.") from error
