"""A run folder: what ``unet-keras train`` and ``Checkpoint`` write, and ``unet-keras sample`` and ``--resume`` read.

    model.keras       the newest checkpoint's model: weights, average, optimizer, random generators, schedule
    best.keras        that of the lowest ``val_loss``
    settings.json     what the run was asked for, the names of its classes, its losses, and how far it has come
    checkpoints/      the last few, ``BATCHES-EPOCHS``: each a folder with ``model.keras`` and ``settings.json``
    log.csv           each epoch's losses and figures; board/ the same, and the samples, for TensorBoard
    loss.png, samples/, samples.png, denoising.gif      pictures, from the command line

A checkpoint is written beside, brought to the disk, and then renamed, folder and all: a run cut off at any moment
leaves the last whole one. ``model.keras`` and ``best.keras`` are hard links to their files, or copies where a file
system has none.
"""

import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import keras

from unet_keras.files import keras_config, read_json

MODEL, BEST, SETTINGS, CHECKPOINTS = "model.keras", "best.keras", "settings.json", "checkpoints"
PART = "part."
"""What the name of a file begins with until it is whole."""


def write_settings(folder: Path, settings: dict) -> None:
    """Write a run's settings, all at once."""
    part = folder / (PART + SETTINGS)
    part.write_text(json.dumps(settings, indent=2) + "\n")
    _to_disk(part)
    os.replace(part, folder / SETTINGS)


def read_settings(folder: Path) -> dict:
    """Read a run's settings. Raises ValueError where the folder holds no run."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ValueError(f"{folder} holds no run (no {SETTINGS}): train one with `unet-keras train --out {folder}`.")
    return read_json(file)


def save(folder: Path, model: keras.Model, settings: dict, *, name: str, keep: int, best: bool = False) -> None:
    """Write a checkpoint, whole or not at all, and drop all but the last ``keep``; names sort by age.

    Raises OSError, with what is left, for a full disk, a folder that is gone and the like.
    """
    checkpoint = folder / CHECKPOINTS / name
    part = checkpoint.with_name(PART + name)
    try:
        checkpoint.parent.mkdir(exist_ok=True)  # not the run's own folder: a disk may have been taken away
        if not _whole(checkpoint):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            model.save(part / MODEL)
            _to_disk(part / MODEL)
            write_settings(part, settings)
            shutil.rmtree(checkpoint, ignore_errors=True)  # a broken one, if any
            os.replace(part, checkpoint)
            _to_disk(checkpoint.parent)
        publish(folder, checkpoint, best=best)
        write_settings(folder, settings)
        for old in _all(folder)[:-keep]:
            _drop(old)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        told = f"no checkpoint could be written to {folder}: {error.strerror or error}. {last_good(folder)}"
        raise OSError(*([error.errno] if error.errno else []), told) from error


def restore(checkpoint: Path, model: keras.Model) -> None:
    """Give a compiled model the state in a checkpoint, optimizer and random generators included.

    Raises ValueError for a model that is not compiled, or another one than that of the checkpoint: of other variables,
    another schedule, prediction or kind of values, or another optimizer.
    """
    if not model.compiled:
        raise ValueError("model must be compiled before it is given a checkpoint's state: its optimizer gets one too.")
    _check_same(checkpoint, keras_config(checkpoint / MODEL), model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Skipping variable loading")  # of the optimizer
            model.load_weights(checkpoint / MODEL)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{checkpoint} holds another model than this one: {error}") from error


def _check_same(checkpoint, saved, model):
    """Raise ValueError where the weights that a checkpoint holds mean something else than this model's."""
    for name in ("schedule", "prediction", "values"):
        own = json.loads(json.dumps(keras.saving.serialize_keras_object(getattr(model, name))))
        if saved["config"].get(name) != own:
            raise ValueError(f"{checkpoint} holds a model of another {name}: make this one with the same.")
    found, own = saved["compile_config"]["optimizer"]["class_name"], type(model.optimizer).__name__
    if found != own:
        raise ValueError(f"{checkpoint} was trained with {found}, and this model is compiled with {own}.")


def publish(folder: Path, checkpoint: Path, *, best: bool) -> None:
    """Make ``model.keras``, and ``best.keras``, those of a checkpoint."""
    for name in (MODEL, BEST) if best else (MODEL,):
        part = folder / (PART + name)
        part.unlink(missing_ok=True)
        try:
            os.link(checkpoint / MODEL, part)
        except OSError:  # a file system without hard links
            shutil.copyfile(checkpoint / MODEL, part)
        os.replace(part, folder / name)
        part.unlink(missing_ok=True)  # two links to one file are not renamed


def newest(folder: Path) -> Path | None:
    """Find the last whole checkpoint of a run."""
    return next(filter(_whole, reversed(_all(folder))), None)


def last_good(folder: Path) -> str:
    """Say what a run can go on from."""
    found = newest(folder)
    return f"The last good checkpoint is {found}." if found else "There is no checkpoint yet."


def tidy(folder: Path) -> None:
    """Remove what a kill left half written or half removed, and set broken checkpoints aside, with a warning."""
    for left in [*folder.glob(PART + "*"), *(folder / CHECKPOINTS).glob(PART + "*")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    whole = newest(folder)
    for broken in [c for c in _all(folder) if whole is None or c > whole]:
        aside = broken.with_name("broken." + broken.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(broken, aside)
        warnings.warn(f"{broken} cannot be read and was set aside as {aside.name}.", stacklevel=3)


def _all(folder):
    """The checkpoints, oldest first."""
    return sorted((folder / CHECKPOINTS).glob("[0-9]*"))


def _whole(checkpoint):
    """Tell whether all of a checkpoint can be read, by the checksums in its archive."""
    try:
        read_settings(checkpoint)
        with zipfile.ZipFile(checkpoint / MODEL) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _drop(checkpoint):
    """Remove a checkpoint, which a kill in between must not leave as half of one."""
    part = checkpoint.with_name(PART + checkpoint.name)
    os.replace(checkpoint, part)
    shutil.rmtree(part)


def _to_disk(path):
    """Wait until a file, or a folder's list of names, is on the disk; Windows knows no such thing of folders."""
    if os.name == "posix" or path.is_file():
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
