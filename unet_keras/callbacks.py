"""Keras callbacks that show how training goes: pictures, figures and logs."""

import csv
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from unet_keras import plots
from unet_keras.checks import check_counts
from unet_keras.events import EventFile


class _Every(keras.callbacks.Callback):
    def __init__(self, every):
        super().__init__()
        check_counts(every=every)
        self.every = every

    def due(self, epoch):
        """Tell whether this is an epoch in which to act; the last one always is, also where training is stopped."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.params["epochs"] or self.model.stop_training


class SampleGrid(_Every):
    """Sample the same images every few epochs and keep them as a PNG grid: ``epoch_0010.png`` in ``folder``.

    conditions    what ``generate`` takes: a count, or the conditions of each image
    folder        where the grids go; made if it is not there
    every         epochs between two grids; the last epoch always gets one, also where a callback that comes before this
                  one stops training
    captions      one text an image, written below it
    board         a folder of TensorBoard's that gets the grids too
    options       for ``generate``: steps, guidance, seed ... The seed is 0 unless given, so that grids compare

    Raises ValueError when training begins for what ``generate`` would refuse, for captions that are not as many as the
    images, and for a model of latents, which are no pictures.
    """

    def __init__(self, conditions, folder, *, every=1, captions=None, board=None, **options):
        super().__init__(every)
        self.conditions, self.folder, self.captions = conditions, Path(folder), captions
        self.board = None if board is None else EventFile(board)
        self.options = {"seed": 0, "progress": False, **options}

    def on_train_begin(self, logs=None):
        unknown = sorted(set(self.options) - set(inspect.signature(self.model.generate).parameters))
        if unknown:
            raise ValueError(f"options must be those of generate, which takes no {', '.join(unknown)}.")
        options = {name: value for name, value in self.options.items() if name not in ("progress", "batch_size")}
        count = len(self.model._request(self.conditions, **options).numbers)
        if self.captions is not None and len(self.captions) != count:
            raise ValueError(f"captions must be one an image, got {len(self.captions)} for {count} images.")
        if not self.model.values.bounded:
            raise ValueError("SampleGrid draws pictures, and this model makes latents: decode what generate gives.")

    def on_epoch_end(self, epoch, logs=None):
        if self.due(epoch):
            self.draw(epoch + 1)

    def draw(self, epoch):
        """Sample now, and write the grid of this epoch. Returns the picture."""
        images = self.model.generate(self.conditions, **self.options)
        if keras.config.image_data_format() == "channels_first":
            images = np.moveaxis(images, 1, -1)
        picture = plots.grid(images, captions=self.captions, path=self.folder / f"epoch_{epoch:04d}.png")
        if self.board is not None:
            self.board.image("samples", picture, epoch)
        return picture


class Evaluate(_Every):
    """Take figures of the model every few epochs and put them into the epoch's logs: ``val_fid`` and the like.

        quality = metrics.sampled(1000, metrics.compared(images, metrics.emoji_features()), seed=0)
        best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_fid", mode="min", save_best_only=True)
        model.fit(images, epochs=100, callbacks=[Evaluate(quality, every=10), best])

    evaluate      model -> a Report, or a dictionary of numbers
    every         epochs between two evaluations; the first and the last epoch of ``fit`` always get one, also where a
                  callback that comes before this one stops training
    prefix        of the names in the logs

    Callbacks that come after this one see the figures; one that the logs have already is a ValueError. In epochs
    without an evaluation the logs repeat the last figures, so that CSVLogger has all columns, ModelCheckpoint saves
    nothing as no better, and EarlyStopping counts the epoch: give it a ``patience`` of so many times ``every``.
    ``history`` holds (epoch, report), as measured.
    """

    def __init__(self, evaluate: Callable, *, every=1, prefix="val_"):
        super().__init__(every)
        if not callable(evaluate):
            raise ValueError(
                f"evaluate must be a function of the model, such as metrics.sampled gives, got {evaluate!r}."
            )
        self.evaluate, self.prefix, self.history = evaluate, prefix, []

    def on_train_begin(self, logs=None):
        self.latest = {}

    def on_epoch_end(self, epoch, logs=None):
        if self.due(epoch) or not self.latest:
            report = self.evaluate(self.model)
            self.history.append((epoch + 1, report))
            figures = report if isinstance(report, Mapping) else getattr(report, "values", report)
            if not isinstance(figures, Mapping):
                raise ValueError(f"evaluate must give a Report or a dictionary of numbers, got {figures!r}.")
            self.latest = {f"{self.prefix}{name}": float(value) for name, value in figures.items()}
        if logs is not None:
            self._check_names(logs)
            logs.update(self.latest)

    def _check_names(self, logs):
        taken = sorted(set(logs) & set(self.latest))
        if taken:
            raise ValueError(f"evaluate gives {', '.join(taken)}, which the logs have: give it another name or prefix.")


class TensorBoardLog(keras.callbacks.Callback):
    """Write each epoch's logs to a folder that ``tensorboard --logdir`` reads; on every backend, nothing to install.

    Keras's own ``TensorBoard`` needs TensorFlow and tensorboard; it draws graphs and weights as well.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.board = EventFile(folder)

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            self.board.scalar(name, float(value), epoch + 1)


class CsvLog(keras.callbacks.Callback):
    """Keep each epoch's logs as a row of a CSV file, epochs counted from 1.

    Unlike Keras's ``CSVLogger``, a column may come later, and a training that goes on from an epoch replaces the rows
    from there on.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)

    def on_epoch_end(self, epoch, logs=None):
        rows = [row for row in self._rows() if int(row["epoch"]) <= epoch]
        rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}})
        names = dict.fromkeys(name for row in rows for name in row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(names))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.path)

    def _rows(self):
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if any(not str(row.get("epoch")).isdigit() for row in rows):
            raise ValueError(f"{self.path} is no CsvLog's, for its rows have no epoch: give another path.")
        return rows
