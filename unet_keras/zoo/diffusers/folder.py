"""A folder as diffusers writes it, read as a DiffusionModel, and a DiffusionModel written as such a folder."""

import json
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import keras

from unet_keras.checks import is_int
from unet_keras.diffusion.model import DiffusionModel
from unet_keras.diffusion.values import Values, latents
from unet_keras.files import Tensors, download, read_json
from unet_keras.nn.abstract import fill_rest, shapes_only
from unet_keras.nn.lora import adapted
from unet_keras.zoo.diffusers import weights
from unet_keras.zoo.diffusers.config import CONDITIONAL, complete
from unet_keras.zoo.diffusers.describe import config_of
from unet_keras.zoo.diffusers.network import SIZES, unet_of
from unet_keras.zoo.diffusers.scheduler import (
    check_variance,
    read_bounded,
    read_schedule,
    read_threshold,
    scheduler_config,
)
from unet_keras.zoo.saved import check_memory, told

STEM = "diffusion_pytorch_model"
SCHEDULER = "scheduler_config.json"


def is_folder(path: Path) -> bool:
    """Tell whether a folder holds a U-Net of diffusers, or a pipeline with one."""
    return any((path / name).is_file() for name in ("model_index.json", "unet/config.json")) or (
        (path / "config.json").is_file() and "_class_name" in read_json(path / "config.json")
    )


def fetch(handle: str, variant: str | None = None, weights: bool = True) -> Path:
    """Fetch what is needed of "hf://owner/name" from the Hugging Face hub; give the folder."""
    tag = f".{variant}" if variant else ""
    files = ["config.json", SCHEDULER]
    if weights:
        files += [f"{STEM}{tag}.safetensors", f"{STEM}{tag}-*.safetensors", f"{STEM}.safetensors.index{tag}.json"]
    wanted = [f"{folder}{name}" for folder in ("", "unet/", "scheduler/") for name in files]
    return download(handle, ["model_index.json", *wanted])


def from_folder(
    path: str | os.PathLike, *, weights: bool = True, dtype=None, variant=None, size=None, **options
) -> DiffusionModel:
    """Load a diffusers folder, a bare U-Net or a pipeline, as a DiffusionModel that computes the same numbers.

    weights     False for random ones, and no file of weights is opened
    dtype       of the network, a Keras policy such as "bfloat16" or "mixed_bfloat16"; Keras's own unless given
    variant     "fp16" for the weights of that variant
    size        of the images, a number or (height, width); the configuration's unless given
    options     of ``DiffusionModel``; the schedule, the prediction and the values are the scheduler file's unless
                given. No average of the weights is kept unless ``ema`` is given: it takes their memory once more

    Raises ValueError where a file is missing, cut off or does not fit the others: it says which.
    """
    _check_size(size)
    path = Path(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    config = read_json(folder / "config.json")
    indices = (place / "model_index.json" for place in (path, folder.parent))
    index = next((read_json(place) for place in indices if place.is_file()), {})
    full = told(folder / "config.json", complete, config)
    # Stable Diffusion XL's refiner is told an aesthetic score in place of the target's size.
    sizes = 5 if index.get("requires_aesthetics_score") else SIZES
    tensors = Tensors(folder, STEM, variant) if weights else None
    options = {"ema": None, **_of_scheduler(path, folder, full, "vae" in index or "vqvae" in index), **options}
    with policy(dtype), shapes_only():
        network = told(folder / "config.json", unet_of, config, size=size, sizes=sizes)
    check_memory(network)
    if tensors is not None:
        _load(network, tensors)
    fill_rest(network)
    return told(path, DiffusionModel, network, **options)


def _check_size(size):
    """Raise ValueError for what is no number, and no two, of pixels."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(side is None or is_int(side) for side in sides):
        raise ValueError(f"size must be a number or (height, width), got {size!r}.")


def _load(network, tensors):
    weights.load(network, tensors)


@contextmanager
def policy(dtype):
    """Build under another dtype policy, if one is given."""
    before = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _of_scheduler(path, folder, config, has_codec):
    """The options of DiffusionModel that a scheduler's file says."""
    places = [path / "scheduler" / SCHEDULER, path / SCHEDULER, folder.parent / "scheduler" / SCHEDULER]
    found = next((place for place in places if place.is_file()), None)
    latent = has_codec or (config["_class_name"] == CONDITIONAL and config["out_channels"] in (4, 8))
    if found is None:
        warnings.warn(
            f"{path} has no {SCHEDULER}: the linear schedule and noise prediction stand, unless given as options.",
            stacklevel=4,
        )
        return {"values": latents} if latent else {}
    scheduler = read_json(found)
    schedule, prediction = told(found, read_schedule, scheduler)
    threshold = told(found, read_threshold, scheduler)
    told(found, check_variance, scheduler, (config["in_channels"], config["out_channels"]))
    bounded = told(found, read_bounded, scheduler)
    values = Values(not latent if bounded is None else bounded, threshold)
    return {"schedule": schedule, "prediction": prediction, "values": values}


def to_diffusers(model: DiffusionModel, folder: str | os.PathLike, *, dtype: str = "float32") -> Path:
    """Write a model as a folder that diffusers opens and that computes the same; returns the folder.

    ``unet/`` holds the averaged weights where an average is kept, ``scheduler/`` the schedule as a DDIMScheduler's,
    or a DDPMScheduler's where the network learned the variance.

    Raises ValueError for a network, a schedule or a prediction that diffusers cannot say, and for a model with LoRA.
    """
    from safetensors.numpy import save_file

    if adapted(model.averaged):
        raise ValueError("The model has LoRA: merge_lora(model) first, or write A and B alone with save_lora.")
    folder = Path(folder)
    config, scheduler = config_of(model.averaged), scheduler_config(model)
    arrays = weights.arrays_of(model.averaged, linear=config.get("use_linear_projection", True), dtype=dtype)
    for name, content in (("unet/config.json", config), (f"scheduler/{SCHEDULER}", scheduler)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(arrays, folder / "unet" / f"{STEM}.safetensors", metadata={"format": "pt"})
    return folder
