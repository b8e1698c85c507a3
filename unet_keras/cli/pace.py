"""How long the command line trains, and at what learning rate."""

import time

import keras


class Deadline(keras.callbacks.Callback):
    """Stop training after the batch that begins once ``seconds`` have passed since training first did."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.start = seconds, None

    def on_train_begin(self, logs=None):
        self.start = time.monotonic() if self.start is None else self.start

    def on_train_batch_begin(self, batch, logs=None):
        if self.passed() >= 1:
            self.model.stop_training = True

    def passed(self):
        """The share of the time that has passed."""
        return (time.monotonic() - self.start) / self.seconds if self.start is not None else 0.0


class LearningRate(keras.callbacks.Callback):
    """Set the learning rate to ``rate(number of batches so far)``, ``steps`` an epoch.

    A function of epoch and batch alone, so that a run that is resumed sets the same; with ``steps_per_execution``, the
    batches of an execution share that of their first.
    """

    def __init__(self, rate, steps):
        super().__init__()
        self.rate, self.steps, self.epoch = rate, steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        step = self.epoch * self.steps + self.model.first_batch + batch
        self.model.optimizer.learning_rate = self.rate(step)
