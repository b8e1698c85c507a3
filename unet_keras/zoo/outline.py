"""Networks by name that take no memory for their weights: to be counted, not to be run."""

import os
from functools import partial
from pathlib import Path

import keras

from unet_keras.files import keras_config, read_json
from unet_keras.nn.abstract import shapes_only
from unet_keras.zoo.diffusers.folder import fetch, is_folder, policy
from unet_keras.zoo.diffusers.network import SIZES, unet_of
from unet_keras.zoo.presets import located, preset_config
from unet_keras.zoo.published import PUBLISHED
from unet_keras.zoo.saved import deserialized, told


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
        return _built(partial(told, folder / "config.json", unet_of, config, sizes=5 if score else SIZES), dtype)
    if dtype is not None:
        raise ValueError(f"{name} takes no dtype={dtype!r}: it has the one that it was saved with.")
    path = path / "model.keras" if (path / "model.keras").is_file() else path
    config = preset_config(path)["model"] if path.is_dir() else keras_config(path)
    network = config["config"].get("network", config) if isinstance(config.get("config"), dict) else config
    return _built(partial(deserialized, network, path), None)


def _built(build, dtype):
    with policy(dtype), shapes_only():
        return build()
