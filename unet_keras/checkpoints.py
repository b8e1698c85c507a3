"""Keras callbacks that keep training safe: checkpoints to go on from, and a guard over the loss."""

import math
import time
import warnings
from collections import deque
from pathlib import Path

import keras
import numpy as np
from keras import ops

from unet_keras import runs
from unet_keras.checks import check_counts


class Checkpoint(keras.callbacks.Callback):
    """Keep the whole state of training in a folder, so that the same script, run again, goes on where it was.

        checkpoint = Checkpoint("runs/photos", photos)
        model.fit(photos, epochs=200, callbacks=[checkpoint], **checkpoint.resume(model))

    folder    a run folder, see runs.py: ``from_preset`` and ``unet-keras sample`` read it
    data      the PyDataset that ``fit`` trains on, whose batches depend on epoch and index alone: it is told each epoch
              by ``set_epoch(epoch)``, as `image_folder`'s, `image_stream`'s and `Redrawn` can be. Left out, an epoch
              that was cut off is begun again
    every     seconds between two checkpoints. There is one as well when training ends, and after an epoch of the lowest
              ``val_loss`` so far, which ``best.keras`` is then
    keep      how many checkpoints to keep

    ``settings``, a dictionary of what JSON can hold, is kept along; in it are the ``losses`` of each epoch.

    Of several processes that train together, each has one; the first writes, and all read, so that the folder must be
    one for all of them. Weights that are divided among processes cannot be written so: see docs/training.md.

    Raises FloatingPointError in place of saving weights that are NaN or infinite, OSError where nothing can be written,
    both with what can be gone on from, and ValueError where there are checkpoints and `resume` was not called.
    """

    def __init__(self, folder, data=None, *, every=300, keep=2):
        super().__init__()
        check_counts(keep=keep)
        if not isinstance(every, int | float) or not every >= 0:
            raise ValueError(f"every must be seconds, 0 or more, got {every!r}.")
        if data is not None and not (isinstance(data, keras.utils.PyDataset) and hasattr(data, "set_epoch")):
            raise ValueError(
                f"data must be a PyDataset with set_epoch(epoch), got {type(data).__name__}: leave it out."
            )
        self.folder, self.data, self.every, self.keep = Path(folder), data, every, keep
        self.settings, self.position = {}, {"epoch": 0, "batch": 0, "step": 0}
        self.checks = []  # functions called before each save, which raise where the state is not worth keeping
        self._resumed, self._saved = False, None

    def resume(self, model) -> dict:
        """Give a compiled model the state of the last whole checkpoint, if any; returns where ``fit`` is to go on.

        Raises ValueError for a checkpoint of another model, or of one compiled with another optimizer.
        """
        if first := model.process[0] == 0:
            runs.tidy(self.folder)
        model.meet()
        found, self._resumed = runs.newest(self.folder), True
        if found is not None:
            runs.restore(found, model)
            self.settings |= runs.read_settings(found)
            self.position = self.settings["position"]
            best = self.settings.get("best", {}).get("step") == self.position["step"]
            if first:
                runs.publish(self.folder, found, best=best)
        epoch, batch = self.position["epoch"], self.position["batch"]
        if self.data is None:
            return {"initial_epoch": epoch}
        if batch and self.position["batches"] != self.data.num_batches:
            warnings.warn(
                f"The data have {self.data.num_batches} batches an epoch now and had {self.position['batches']}: "
                "training goes on with the next epoch.",
                stacklevel=2,
            )
            epoch, batch = epoch + 1, 0
        return {"initial_epoch": epoch, "initial_batch": batch, "shuffle": False}

    def on_train_begin(self, logs=None):
        if not self._resumed and runs.newest(self.folder):
            raise ValueError(
                f"{self.folder} holds checkpoints: fit(..., **checkpoint.resume(model)), or another folder."
            )
        steps = self.params["steps"]
        if self.data is not None and steps and self.model.first_batch + steps != self.data.num_batches:
            raise ValueError(
                f"steps_per_epoch={steps} of data of {self.data.num_batches} batches cannot be gone on from: leave it "
                "out; image_stream(..., steps=...) makes shorter epochs."
            )
        if self._saved is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._resumed, self._saved = True, time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._steps_before = self.position["step"] - self.model.first_batch
        self._reach(epoch, 0)
        if self.data is not None:
            self.data.set_epoch(epoch)

    # Not on_train_batch_end, for which Keras would wait for each batch before it begins the next.
    def on_train_batch_begin(self, batch, logs=None):
        self._reach(self.position["epoch"], batch)
        if batch and time.monotonic() - self._saved >= self.every:
            self._save()
        if keras.backend.backend() == "torch":
            import torch

            # Dropout without a seed draws from torch's own generator, as do torch's loaders, at times of their own.
            seed = self.settings.setdefault("torch_seed", self.model.seed)
            place = [seed, self.position["epoch"], self.position["batch"], self.model.process[0]]
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _reach(self, epoch, batch):
        """Note how far training has come; ``batch`` as Keras counts."""
        first, steps = self.model.first_batch, self.params["steps"]
        done, batches = first + min(batch, steps or batch), steps and first + steps
        self._batch = batch
        self.position = {"epoch": epoch, "batch": done, "step": self._steps_before + done, "batches": batches}

    def on_epoch_end(self, epoch, logs=None):
        self._reach(epoch, self._batch + self.model.steps_per_execution)
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.position["batches"] in (None, self.position["batch"]):  # or it was cut off
            self.position |= {"epoch": epoch + 1, "batch": 0}
        for name in ("loss", "val_loss"):
            if name in logs:
                self.settings.setdefault("losses", {}).setdefault(name, [])[epoch:] = [logs[name]]
        if "val_guidance_gap" in logs:
            self.settings.setdefault("guidance_gap", [])[epoch:] = [logs["val_guidance_gap"]]
        best = logs.get("val_loss", math.inf) < self.settings.get("best", {}).get("val_loss", math.inf)
        if best:
            self.settings["best"] = {"val_loss": logs["val_loss"], **self.position}
        if best or time.monotonic() - self._saved >= self.every:
            self._save(best=best)

    def on_train_end(self, logs=None):
        self._save()

    def _save(self, *, best=False):
        for check in self.checks:
            check()
        self.model.attach()
        if not _finite(self.model):
            self.fail("The weights are NaN or infinite at {epoch} epochs and {batch} batches.".format(**self.position))
        self._saved = time.monotonic()
        if self.model.process[0] > 0:
            return
        self.settings |= {"position": self.position, "epochs_done": self.position["epoch"]}
        name = "{step:09d}-{epoch:05d}".format(**self.position)
        runs.save(self.folder, self.model, self.settings, name=name, keep=self.keep, best=best)
        self._saved = time.monotonic()

    def fail(self, what):
        """Give the model the state of the last good checkpoint, if any, and raise FloatingPointError."""
        found = runs.newest(self.folder)
        if found is not None:
            runs.restore(found, self.model)
        raise FloatingPointError(
            f"{what} {runs.last_good(self.folder)} Try a lower learning rate, or look at the data."
        )


class LossGuard(keras.callbacks.Callback):
    """Stop training where the loss is NaN or has exploded, and warn where nothing is being learned.

        guard = LossGuard(photos[0], checkpoint)
        model.fit(photos, epochs=200, callbacks=[guard, checkpoint], **checkpoint.resume(model))

    example       a batch of the training data, from which the loss of predicting zero is measured
    checkpoint    the Checkpoint, from whose last good state the model is restored
    every         batches between two looks at the losses, which are told a little after their batch. A smaller last
                  batch is taken for as large as the others, so that its loss looks smaller than it is
    limit         how many times the loss of predicting zero, or that of the first batch, is an explosion
    patience      batches, after which the mean of a third as many should lie 5% below the loss of predicting zero

    Raises FloatingPointError, which names the first epoch and batch whose loss was too high.
    """

    async_safe = True  # on_train_batch_end may be called by a thread that waits for the loss, while training goes on

    def __init__(self, example, checkpoint=None, *, every=16, limit=100.0, patience=300):
        super().__init__()
        for name, value in {"every": every, "limit": limit, "patience": patience}.items():
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}.")
        self.example, self.checkpoint, self.every, self.limit = example, checkpoint, every, limit
        self.zero, self.first = None, None
        self._last, self._left = deque(maxlen=max(patience // 3, 1)), patience
        self.on_epoch_begin(0)  # of a run that has nothing left to do, no epoch begins

    def on_train_begin(self, logs=None):
        if self.zero is None:
            self.zero = loss_of_zero(self.model, self.example)
            if self.checkpoint is not None:
                self.checkpoint.checks.append(self.check)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self._means, self._count, self._total = epoch, {}, 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if batch - self._count >= self.every:
            self.check()

    def on_train_batch_end(self, batch, logs=None):
        self._means[batch + 1] = logs["loss"]

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        """Look at the losses since the last look; Keras tells their mean since the epoch began."""
        step = self.model.steps_per_execution
        while self._count + step in self._means:
            before, self._count = self._total, self._count + step
            self._total = float(self._means.pop(self._count)) * self._count
            loss = (self._total - before) / step
            self.first = min(loss, self.limit * self.zero) if self.first is None else self.first
            if not loss <= self.limit * max(self.zero, self.first):
                self._stop(loss, self.model.first_batch + self._count - step + 1)
            self._last.append(loss)
            self._left -= step
        if self._left <= 0 and np.mean(self._last) > 0.95 * self.zero:
            self._left = math.inf
            warnings.warn(
                f"The loss was {np.mean(self._last):.4g} over the last {len(self._last)} batches, and a network that "
                f"gives zero has {self.zero:.4g}: nothing is being learned. Try another learning rate.",
                stacklevel=2,
            )

    def _stop(self, loss, batch):
        what = f"The loss is {loss:.4g} in epoch {self.epoch + 1}, batch {batch}; that of a network that gives zero is "
        if self.checkpoint is None:
            raise FloatingPointError(f"{what}{self.zero:.4g}.")
        self.checkpoint.fail(f"{what}{self.zero:.4g}.")


def loss_of_zero(model, batch, *, draws: int = 8) -> float:
    """The loss of a model on a batch of training data if its network gave zero, over several draws of the noise."""
    generator, losses = keras.random.SeedGenerator(0), []
    for _ in range(draws):
        inputs, target, weight = model.corrupted(batch, generator)
        zero = ops.zeros([n or m for n, m in zip(model.network.output.shape, target.shape, strict=True)])
        losses.append(float(model.compute_loss(inputs, target, zero, weight)))
    return float(np.mean(losses))


def _finite(model):
    # In NumPy: of several processes of JAX, none may compute with what all of them hold by itself.
    floats = (v for v in model.weights if "float" in keras.backend.standardize_dtype(v.dtype))
    return all(np.isfinite(np.asarray(ops.convert_to_numpy(v), "float32")).all() for v in floats)
