"""A model that has its values whenever it is asked for them, also on JAX, where Keras takes them away to train.

Keras's ``fit``, ``evaluate`` and ``predict`` carry the state of a JAX model through compiled steps: they detach it from
the model before they ask for the first batch, and attach it again once the epoch has ended. Where the data end or fail
in between, or the user interrupts, they attach an older state, which the step may have deleted, or none.
"""

from functools import partial

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.replicas import alone, meet, process


class AttachedModel(keras.Model):
    """A keras.Model that is left with its current values by whatever ends its training, evaluation or prediction.

    Its files hold them too, and the states of its random generators, so that training goes on as if never interrupted:
    with ``fit(..., initial_epoch=12, initial_batch=340)`` also in the middle of an epoch.
    """

    first_batch = 0
    """What the batches that ``fit`` counts from 0 begin with, in the epoch at hand."""

    def fit(self, x=None, y=None, *, epochs=1, initial_epoch=0, initial_batch=0, callbacks=None, **kwargs):
        """Train as ``keras.Model.fit`` does, in the first epoch from batch ``initial_batch`` on.

        The rest of that epoch is a ``fit`` of its own, as Keras's epochs all have the same length: callbacks are told
        twice that training begins. Raises ValueError for data of which no single batch can be asked for.
        """
        if initial_batch:
            rest, once = _Rest(x, initial_batch), _Once()
            listed = [*keras.tree.flatten(callbacks or []), once]
            self.first_batch = initial_batch
            try:
                history = super().fit(rest, y, epochs=epochs, initial_epoch=initial_epoch, callbacks=listed, **kwargs)
            finally:
                self.first_batch = 0
            initial_epoch += 1
            if once.stopped or initial_epoch >= epochs:
                return history
        return super().fit(x, y, epochs=epochs, initial_epoch=initial_epoch, callbacks=callbacks, **kwargs)

    def attach(self):
        """Give the model's variables their current values, also in the middle of ``fit``."""
        if keras.backend.backend() == "jax":
            self.jax_state_sync()

    @property
    def process(self):
        """This process's number, and of how many that train the model together: the first writes the files."""
        return process(getattr(self, "distribute_strategy", None))

    def meet(self):
        """Wait until every process that trains the model is here."""
        meet(getattr(self, "distribute_strategy", None))

    def evaluate(self, *args, **kwargs):
        return self._attached(super().evaluate, *args, **kwargs)

    def predict(self, *args, **kwargs):
        return self._attached(super().predict, *args, **kwargs)

    def _attached(self, method, *args, **kwargs):
        """Begin with the current values, in the middle of ``fit`` as well, and end with them as ``fit`` does."""
        self.attach()
        try:
            return method(*args, **kwargs)
        finally:
            self.attach()

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Do nothing: the model is built. Keras would take a batch for it, and fails on those of several workers."""

    def _make_function(self, step_function, **options):
        """Make Keras's function (state, iterator) -> (logs, state), which attaches the newest state where it raises.

        StopIteration is among what it raises.
        """
        make = super()._make_function
        if keras.backend.backend() != "jax":
            return make(step_function, **options)
        newest = []

        def step(state, data):
            # Without a line of Python between running and keeping: an interrupt waits for the next line, and by then
            # the step has deleted the state that it was given.
            newest[:] = map(step_function, [state], [data])
            return newest[0]

        function = make(step, **options)

        def attaching(state, iterator):
            newest[:] = [(None, state)]
            try:
                logs, state = function(state, iterator)
                self._jax_state = _named(state)
            except BaseException:
                self._jax_state = _named(newest[0][1])
                self.jax_state_sync()
                raise
            finally:
                newest.clear()
            return logs, state

        return attaching

    # ---- files ------------------------------------------------------------------------------------------------------

    def save(self, *args, **kwargs):
        """Save as ``keras.Model.save`` does; of several processes, one may do it alone."""
        save = partial(super().save, *args, **kwargs)
        save() if self.process[1] == 1 else alone(save)

    def _generators(self):
        """The random generators' states, Dropout's included: Keras's own files leave them out."""
        weights = {id(v) for v in self.weights}
        return [v for v in self.non_trainable_variables if id(v) not in weights]

    def save_own_variables(self, store):
        self.attach()
        super().save_own_variables(store)
        store["generators"] = np.stack([ops.convert_to_numpy(v).astype("int64") for v in self._generators()])

    def load_own_variables(self, store):
        self.attach()  # or fit would go on from the values before
        store = {key: store[key] for key in store.keys()}
        states = store.pop("generators")
        if states.shape != (len(own := self._generators()), 2):  # before memory is taken for them
            raise ValueError(f"The file holds states {states.shape} of random generators; the model has {len(own)}.")
        super().load_own_variables(store)
        for v, state in zip(own, np.asarray(states), strict=True):
            v.assign(state.astype(keras.backend.standardize_dtype(v.dtype)))


class _Rest(keras.utils.PyDataset):
    """The batches of a dataset from the given one on."""

    def __init__(self, inner, first):
        count = inner.num_batches if isinstance(inner, keras.utils.PyDataset) else None
        if count is None or not 0 < first < count:
            told = f"of {count}" if count else "of data that are no keras.utils.PyDataset of a known length"
            raise ValueError(f"initial_batch: received {first} {told}; an epoch can be begun at one of a PyDataset's.")
        super().__init__(**{k: getattr(inner, k) for k in ("workers", "use_multiprocessing", "max_queue_size")})
        self.inner, self.first = inner, first

    def __getitem__(self, index):
        return self.inner[self.first + index]

    @property
    def num_batches(self):
        return self.inner.num_batches - self.first

    def on_epoch_begin(self):
        self.inner.on_epoch_begin()

    def on_epoch_end(self):
        self.inner.on_epoch_end()


class _Once(keras.callbacks.Callback):
    """End training after an epoch, and note whether it was to end anyway."""

    def on_epoch_end(self, epoch, logs=None):
        self.stopped = self.model.stop_training
        self.model.stop_training = True


def _named(state):
    """Name the parts of a state as Keras does: of a training step, of a test or of a prediction."""
    kinds = ["trainable", "non_trainable", "metrics"]
    if len(state) == 4:
        kinds.insert(2, "optimizer")
    return {f"{kind}_variables": values for kind, values in zip(kinds, state, strict=False)}


def state_scope(pairs):
    """Open a scope in which variables have the given values."""
    return keras.StatelessScope([pair for names, values in pairs for pair in zip(names, values, strict=True)])
