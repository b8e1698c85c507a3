"""A run folder: what ``unet-keras train`` writes, and what ``sample`` and ``--resume`` read.

    model.keras       weights, average, optimizer, random generators, schedule, compile settings
    settings.json     what the run was asked for, the names of its classes, the epochs done and their losses
    log.csv           each epoch's losses and figures; board/ the same, and the samples, for TensorBoard
    loss.png          the losses drawn
    samples/          a grid of samples every few epochs
    samples.png       the last grid; denoising.gif how it came about

The model and the settings are written beside and then moved into place, so that a run cut off at any moment leaves
the last whole one.
"""

import json
import os
import time
from pathlib import Path

import keras

MODEL, SETTINGS = "model.keras", "settings.json"


def write_settings(folder: Path, settings: dict) -> None:
    """Write a run's settings, all at once."""
    part = folder / (SETTINGS + ".part")
    part.write_text(json.dumps(settings, indent=2) + "\n")
    os.replace(part, folder / SETTINGS)


def read_settings(folder: Path) -> dict:
    """Read a run's settings. Raises ValueError where the folder holds no run."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ValueError(f"{folder} holds no run (no {SETTINGS}): train one with `unet-keras train --out {folder}`.")
    return json.loads(file.read_text())


def save_model(folder: Path, model: keras.Model) -> None:
    """Write ``model.keras``, all at once."""
    part = folder / ("part." + MODEL)
    model.save(part)
    os.replace(part, folder / MODEL)


def load_model(folder: Path) -> keras.Model:
    """Load a run's model, or a ``.keras`` file. Raises ValueError where there is none."""
    file = folder / MODEL if folder.is_dir() else folder
    if not file.is_file():
        raise ValueError(f"There is no model at {file}: give a run folder or a .keras file.")
    return keras.saving.load_model(file)


class SaveRun(keras.callbacks.Callback):
    """Note each epoch and its losses in the settings; save both, every ``every`` epochs and when training ends."""

    def __init__(self, folder, settings, *, every=1):
        super().__init__()
        self.folder, self.settings, self.every = Path(folder), settings, every

    def on_epoch_end(self, epoch, logs=None):
        self.settings["epochs_done"] = epoch + 1
        for name in ("loss", "val_loss"):
            if name in (logs or {}):
                self.settings["losses"].setdefault(name, []).append(float(logs[name]))
        if "val_guidance_gap" in (logs or {}):
            self.settings.setdefault("guidance_gap", []).append(float(logs["val_guidance_gap"]))
        if (epoch + 1) % self.every == 0:
            self.save()

    def on_train_end(self, logs=None):
        self.save()

    def save(self):
        """Save now."""
        save_model(self.folder, self.model)
        write_settings(self.folder, self.settings)


class Deadline(keras.callbacks.Callback):
    """Stop training at the end of the batch in which ``seconds`` have passed."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.start = seconds, None

    def on_train_begin(self, logs=None):
        self.start = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if self.passed() >= 1:
            self.model.stop_training = True

    def passed(self):
        """The share of the time that has passed."""
        return (time.monotonic() - self.start) / self.seconds if self.start is not None else 0.0


class LearningRate(keras.callbacks.Callback):
    """Set the learning rate before each batch to ``rate(number of updates so far)``."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.step = rate, 0

    def on_train_begin(self, logs=None):
        self.step = int(self.model.optimizer.iterations)

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = self.rate(self.step)
        self.step += 1
