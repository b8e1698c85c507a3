"""Presets: a model to sample from or to train on, in a folder of two files that hold no code.

    config.json     the model's configuration as Keras writes it, and ``about``: facts for people and programs
    weights.npz     the averaged weights, in half precision, by their paths in the network

``emoji-32`` comes with the package.
"""

import json
import os
from pathlib import Path

import keras
import numpy as np

SHIPPED = Path(__file__).with_name("shipped")
CONFIG, WEIGHTS = "config.json", "weights.npz"


def preset_names() -> list[str]:
    """Name the presets that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / CONFIG).is_file())


def from_preset(name: str | os.PathLike):
    """Load a model: a shipped preset by name, or from a path: a preset folder, a run folder or a ``.keras`` file.

    Returns a DiffusionModel, compiled only where it comes from a run or a ``.keras`` file. Raises ValueError for a name
    that is none, and for weights that do not fit the configuration: it lists both sides.
    """
    path = _located(name)
    if (path / "model.keras").is_file():
        return keras.saving.load_model(path / "model.keras")
    if path.is_file():
        return keras.saving.load_model(path)
    model = keras.saving.deserialize_keras_object(_read_config(path)["model"])
    _assign(model.averaged, path / WEIGHTS)
    model.network.set_weights(model.averaged.get_weights())
    return model


def preset_facts(name: str | os.PathLike) -> dict:
    """Read what a preset says of itself, e.g. ``class_names``; nothing for a ``.keras`` file."""
    path = _located(name)
    return _read_config(path).get("about", {}) if (path / CONFIG).is_file() else {}


def save_preset(model, folder: str | os.PathLike, *, about: dict | None = None, dtype: str = "float16") -> Path:
    """Write a model's configuration and its averaged weights to a folder, without optimizer; returns the folder.

    Raises ValueError for weights that ``dtype`` cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: keras.ops.convert_to_numpy(v) for name, v in _by_path(model.averaged).items()}
    with np.errstate(over="ignore"):
        halves = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    lost = sorted(name for name, a in halves.items() if not np.isfinite(a).all())
    if lost:
        raise ValueError(f"dtype={dtype!r} cannot hold the weights {', '.join(lost)}: use float32.")
    config = keras.saving.serialize_keras_object(model)
    config = {key: value for key, value in config.items() if key not in ("compile_config", "build_config")}
    text = json.dumps({"model": config, "about": about or {}}, separators=(",", ":"))
    (folder / CONFIG).write_text(text + "\n")
    np.savez(folder / WEIGHTS, **halves)
    return folder


def _located(name):
    path = Path(name)
    if path.exists():
        return path
    if str(name) in preset_names():
        return SHIPPED / str(name)
    raise ValueError(f"There is no preset {str(name)!r}: give one of {preset_names()}, or the path of a folder.")


def _read_config(path):
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} holds no preset: there is no {CONFIG} in it.")
    return json.loads((path / CONFIG).read_text())


def _by_path(network):
    variables = {v.path: v for v in network.weights}
    if len(variables) < len(network.weights):
        raise ValueError(f"{network.name} has two weights of one path: give its layers names of their own.")
    return variables


def _assign(network, file):
    """Set every weight from the file, each array used once; raises ValueError where the two do not match."""
    if not file.is_file():
        raise ValueError(f"There are no weights at {file}.")
    variables = _by_path(network)
    with np.load(file, allow_pickle=False) as arrays:
        odd = {"only in the file": set(arrays) - set(variables), "only in the network": set(variables) - set(arrays)}
        both = set(variables) & set(arrays)
        odd["of another shape"] = {name for name in both if arrays[name].shape != tuple(variables[name].shape)}
        if any(odd.values()):
            told = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in odd.items() if names)
            raise ValueError(f"The weights in {file} do not fit the configuration beside it. {told}.")
        for name, variable in variables.items():
            variable.assign(arrays[name].astype("float32"))
