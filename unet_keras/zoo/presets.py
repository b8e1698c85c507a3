"""Presets: a model to sample from or to train on, by name or from where it lies.

Our own are folders of two files that hold no code; ``emoji-32`` comes with the package:

    config.json     the model's configuration as Keras writes it, and ``about``: facts for people and programs
    weights.npz     the averaged weights, in half precision, by their paths in the network

Public checkpoints are diffusers' folders, on a disk or on the Hugging Face hub: see diffusers/ and published.py.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np

from unet_keras.files import read_json
from unet_keras.nn.surgery import with_dtype
from unet_keras.zoo.diffusers.folder import fetch, from_folder, is_folder
from unet_keras.zoo.published import PUBLISHED, from_published
from unet_keras.zoo.saved import check_config, deserialized, load_keras

SHIPPED = Path(__file__).with_name("shipped")
CONFIG, WEIGHTS = "config.json", "weights.npz"
UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def preset_names() -> list[str]:
    """Name the presets that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / CONFIG).is_file())


def from_preset(name: str | os.PathLike, **options):
    """Load a model by name or from where it lies; returns a DiffusionModel.

        from_preset("emoji-32")                       a shipped preset; or the path of a preset folder of one's own
        from_preset("runs/emoji")                     a run folder, or a ``.keras`` file: compiled, to train on
        from_preset("hf://google/ddpm-cifar10-32")    a diffusers repository, a U-Net or a pipeline, or its folder
        from_preset("stable-diffusion-1.5")           a published network; ``weights=False`` for random weights

    options:

    dtype       policy of the network, e.g. "mixed_bfloat16"; a run is not compiled then

    and for diffusers' folders and published networks alone:

    weights     False for random weights
    variant     e.g. "fp16": which of a folder's weights
    size        of the images, a number or (height, width)
    ...         and those of ``DiffusionModel``, e.g. ``ema=0.999``, to train on: no average is kept unless asked for

    Raises ValueError for a name that is none, for weights that do not fit the configuration (it lists both sides), and
    for options that a preset does not take.
    """
    if str(name).startswith("hf://"):
        return from_folder(fetch(str(name), options.get("variant"), options.get("weights", True)), **options)
    if str(name) in PUBLISHED and not Path(name).exists():
        return from_published(str(name), **options)
    path = located(name)
    if path.is_dir() and is_folder(path):
        return from_folder(path, **options)
    dtype = options.pop("dtype", None)
    if options:
        raise ValueError(f"{name} takes no {sorted(options)}: it is loaded as it was saved.")
    model = _saved(path)
    return model if dtype is None else _under(dtype, model)


def _saved(path):
    if (path / "model.keras").is_file():
        return load_keras(path / "model.keras")
    if path.is_file():
        return load_keras(path)
    config = preset_config(path)["model"]
    check_config(config, path / CONFIG)
    model = deserialized(config, path / CONFIG)
    _assign(model.averaged, path / WEIGHTS)
    model.network.set_weights(model.averaged.get_weights())
    return model


def _under(dtype, model):
    """Make the same model anew, its networks under another dtype policy."""
    network = keras.saving.serialize_keras_object(with_dtype(model.network, dtype))
    changed = type(model).from_config({**model.get_config(), "network": network, "dtype": dtype})
    changed.network.set_weights(model.network.get_weights())
    if changed.ema_network is not None:
        changed.ema_network.set_weights(model.ema_network.get_weights())
        changed.ema_step.assign(model.ema_step)
    return changed


def preset_facts(name: str | os.PathLike) -> dict:
    """Read what a preset says of itself, e.g. ``class_names``; nothing for others' formats and ``.keras`` files."""
    if str(name).startswith("hf://") or (str(name) in PUBLISHED and not Path(name).exists()):
        return {}
    path = located(name)
    ours = (path / CONFIG).is_file() and not is_folder(path)
    return preset_config(path).get("about", {}) if ours else {}


def _array(variable, dtype):
    """A weight as NumPy has it, floats as ``dtype``."""
    array = keras.ops.convert_to_numpy(variable)
    # By name, for to NumPy bfloat16 is no float.
    return array.astype(dtype) if "float" in keras.backend.standardize_dtype(variable.dtype) else array


def save_preset(model, folder: str | os.PathLike, *, about: dict | None = None, dtype: str = "float16") -> Path:
    """Write a model's configuration and its averaged weights to a folder, without optimizer; returns the folder.

    ``dtype`` is "float16" or "float32". Raises ValueError for another, for weights that it cannot hold, and for a
    folder with a ``model.keras``, which would be read in the preset's place.
    """
    folder = Path(folder)
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16' or 'float32', got {dtype!r}.")
    if (folder / "model.keras").exists():
        raise ValueError(f"{folder} holds a model.keras, which is read in a preset's place: give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with np.errstate(over="ignore"):
        halves = {name: _array(v, dtype) for name, v in _by_path(model.averaged).items()}
    lost = sorted(name for name, a in halves.items() if not np.isfinite(a).all())
    if lost:
        raise ValueError(f"dtype={dtype!r} cannot hold the weights {', '.join(lost)}: use float32.")
    config = keras.saving.serialize_keras_object(model)
    config = {key: value for key, value in config.items() if key not in ("compile_config", "build_config")}
    text = json.dumps({"model": config, "about": about or {}}, separators=(",", ":"))
    (folder / CONFIG).write_text(text + "\n")
    np.savez(folder / WEIGHTS, **halves)
    return folder


def located(name: str | os.PathLike) -> Path:
    """Find a preset, shipped or on a disk. Raises ValueError, with the names that there are, where there is none."""
    path = Path(name)
    if path.exists():
        return path
    if str(name) in preset_names():
        return SHIPPED / str(name)
    known = [*preset_names(), *PUBLISHED]
    raise ValueError(f"There is no preset {str(name)!r}: give one of {', '.join(known)}, hf://owner/name, or a path.")


def preset_config(path: Path) -> dict:
    """Read the configuration in a preset's folder: ``model``, and ``about`` if there is any. Raises ValueError."""
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} holds no model: neither a run's model.keras nor a preset's {CONFIG} is in it.")
    config = read_json(path / CONFIG)
    if not isinstance(config.get("model"), dict) or not isinstance(config.get("about", {}), dict):
        raise ValueError(f"{path / CONFIG} must hold a model and, if anything, what there is to know about it.")
    return config


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
    headers = _headers(file)
    odd = {"only in the file": set(headers) - set(variables), "only in the network": set(variables) - set(headers)}
    both = set(variables) & set(headers)
    odd["of another shape"] = {name for name in both if headers[name] != tuple(variables[name].shape)}
    if any(odd.values()):
        told = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in odd.items() if names)
        raise ValueError(f"The weights in {file} do not fit the configuration beside it. {told}.")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for name, variable in variables.items():
                variable.assign(arrays[name].astype("float32"))
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error


def _headers(file):
    """Read the shapes of an archive's arrays -> {name: shape}, in no memory. Raises ValueError for other things."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {member.removesuffix(".npy"): _shape(archive, member) for member in archive.namelist()}
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error


def _shape(archive, member):
    with archive.open(member) as content:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(content)](content)
    if dtype.kind not in "fiub":
        raise ValueError(f"{member} holds {dtype}, where allow_pickle=False reads numbers alone")
    return shape
