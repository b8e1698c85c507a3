"""Keras callbacks that show a model while it trains."""

from pathlib import Path

import keras

from unet_keras import plots


class SampleGrid(keras.callbacks.Callback):
    """Sample the same images every few epochs and keep them as a PNG grid: ``epoch_0010.png`` in ``folder``.

    conditions    what ``generate`` takes: a count, or the conditions of each image
    folder        where the grids go; made if it is not there
    every         epochs between two grids; the last epoch always gets one
    captions      one text an image, written below it
    options       for ``generate``: steps, guidance, seed ... The seed is 0 unless given, so that grids compare
    """

    def __init__(self, conditions, folder, *, every=1, captions=None, **options):
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be 1 or more epochs, got {every}.")
        self.conditions, self.folder, self.every, self.captions = conditions, Path(folder), every, captions
        self.options = {"seed": 0, "progress": False, **options}

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.params["epochs"]:
            self.draw(epoch + 1)

    def draw(self, epoch):
        """Sample now, and write the grid of this epoch. Returns the picture."""
        images = self.model.generate(self.conditions, **self.options)
        return plots.grid(images, captions=self.captions, path=self.folder / f"epoch_{epoch:04d}.png")
