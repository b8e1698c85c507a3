"""What the datasets share: a batch is a function of (seed, epoch, index) alone, and Keras tells when epochs end."""

import keras


class EpochDataset(keras.utils.PyDataset):
    """A dataset whose epochs are numbered from 0; ``set_epoch`` goes to any of them."""

    def __init__(self):
        # One worker of Keras's: what its queue still holds when an epoch ends, it serves in the next, so that with
        # more, on JAX and torch, some images come twice an epoch and others not at all. Nothing is lost by it: a
        # batch is a copy from memory, or is decoded ahead by processes of the dataset's own.
        super().__init__(workers=1)
        self._epoch, self._begun = 0, False

    def set_epoch(self, epoch):
        """Go to an epoch: its batches are given from now on."""
        self._epoch = epoch

    def on_epoch_begin(self):
        """Note that the epoch is under way."""
        self._begun = True

    def on_epoch_end(self):
        """Move on to the next epoch; Keras also calls this before the first, which has not begun then."""
        if self._begun:
            self.set_epoch(self._epoch + 1)
        self._begun = False
