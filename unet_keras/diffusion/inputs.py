"""What a network takes, and whether data fit: every check that happens at the door.

What an image's numbers may be is said in values.py; the conditions are a dictionary of named arrays. Arrays are checked
as a whole before training; the batches of datasets, loaders and generators one by one on their way in, so that a NaN
pixel never reaches the weights.
"""

import types
import warnings
from typing import NamedTuple

import keras
import numpy as np

from unet_keras.diffusion.replicas import batch_rule
from unet_keras.diffusion.values import Values, pixels


class Entry(NamedTuple):
    """One named input of a network: its shape with the batch, its dtype, and how many indices an embedding knows."""

    shape: tuple
    dtype: str
    classes: int | None


def entries(network) -> dict[str, Entry]:
    """Read a functional network's named inputs. Raises ValueError where ``image`` or ``timestep`` is missing."""
    given = getattr(network, "input", None)
    if not isinstance(given, dict) or not {"image", "timestep"} <= set(given):
        raise ValueError(
            "network must be a functional keras.Model with inputs named 'image' and 'timestep', as build_unet gives "
            f"with conditions=(timestep(),); got inputs {sorted(given) if isinstance(given, dict) else given}."
        )
    read = [layer for layer in network.layers if isinstance(getattr(layer, "input_dim", None), int)]  # embeddings
    classes = {id(layer.input): layer.input_dim for layer in read}
    return {name: Entry(tuple(x.shape), x.dtype, classes.get(id(x))) for name, x in given.items()}


class Inputs:
    """The named inputs of one network, and the checks on what is given for them; ``encoder`` reads prompts."""

    def __init__(self, network, encoder=None, values: Values = pixels):
        self.entries = entries(network)
        self.encoder, self.values = encoder, values
        self.image = self.entries["image"]
        self.conditions = {k: v for k, v in self.entries.items() if k not in ("image", "timestep")}
        self.failure = None  # the last error raised inside a data pipeline, which wraps it beyond recognition
        self.check_count = batch_rule()

    # ---- structure: the same for arrays and for tensors being traced -------------------------------------------

    def unpack(self, x, y=None):
        """Split ``x`` (images, or a dict that holds "image") and ``y`` (conditions) into images and a dict."""
        images, conditions = x, {}
        if isinstance(x, dict):
            if "image" not in x:
                raise ValueError(f'A dictionary of data must hold "image", got {sorted(x)}.')
            images, conditions = x["image"], {k: v for k, v in x.items() if k != "image"}
        named = self.name(y)
        if set(named) & set(conditions):
            raise ValueError(f"Conditions {sorted(set(named) & set(conditions))} are given twice.")
        conditions |= named
        self.check_names(conditions)
        return images, conditions

    def name(self, y) -> dict:
        """Give conditions their names: a dictionary has them, a bare array is the network's only condition."""
        if isinstance(y, dict):
            return dict(y)
        if y is None or (isinstance(y, tuple | list) and not len(y)) or 0 in tuple(getattr(y, "shape", ()))[1:]:
            return {}
        if len(self.conditions) == 1:
            return {next(iter(self.conditions)): y}
        raise ValueError(
            f"The network takes {sorted(self.conditions) or 'no conditions'}: "
            + ("give them as a dictionary of arrays." if self.conditions else "give images alone, or a number of them.")
        )

    def check_names(self, conditions):
        """Raise ValueError unless exactly the network's conditions are there."""
        unknown, missing = set(conditions) - set(self.conditions), set(self.conditions) - set(conditions)
        if unknown or missing:
            raise ValueError(
                f"The network takes the conditions {sorted(self.conditions)}, got {sorted(conditions)}"
                + (f"; unknown: {sorted(unknown)}" if unknown else "")
                + (f"; missing: {sorted(missing)}" if missing else "")
                + ("; encode the prompts of a dataset ahead, with encoder(prompts)" if "prompt" in unknown else "")
                + "."
            )

    def encoded(self, y):
        """Put what the encoder makes of prompts in their place: y is a list of texts, or holds one under "prompt".

        Raises ValueError for prompts without an encoder, and for conditions given beside it.
        """
        y = y.to_numpy() if hasattr(y, "to_numpy") else y  # a table's column
        if _is_text(y) or (self.encoder is not None and isinstance(y, list | tuple) and not len(y)):
            y = {"prompt": y}
        if not isinstance(y, dict) or "prompt" not in y:
            return y
        if self.encoder is None:
            raise ValueError("conditions must hold numbers; texts need an encoder: DiffusionModel(..., encoder=...).")
        _check_prompts(y["prompt"])
        made, rest = self.encoder(y["prompt"]), {name: value for name, value in y.items() if name != "prompt"}
        if set(made) & set(rest):
            raise ValueError(f"Conditions {sorted(set(made) & set(rest))} are given twice: by the encoder as well.")
        return {**made, **rest}

    # ---- values -------------------------------------------------------------------------------------------------

    def check(self, images, conditions):
        """Raise ValueError unless the arrays fit the network: shapes, dtypes, ranges, no NaN."""
        images = to_numpy(images)
        check_shape(images.shape, self.image.shape)
        self.values.check(images)
        for name, value in conditions.items():
            check_condition(name, to_numpy(value), self.conditions[name], len(images))

    def check_element(self, element):
        """Check one batch of a dataset: images, (images, conditions), with a weight, or a dictionary."""
        element = tuple(_arrays(part) for part in as_tuple(element))
        x, y, weight = keras.utils.unpack_x_y_sample_weight(element)
        try:
            images, conditions = keras.tree.map_structure(to_numpy, self.unpack(x, y))
            self.check(images, conditions)
            self.check_count(len(images))
            if weight is not None:
                weight = to_numpy(keras.tree.flatten(weight)[0])
                check_sample_weight(weight[:, 0] if weight.shape[1:] == (1,) else weight, len(images))
        except ValueError as error:
            self.failure = error
            raise
        return element

    def check_batches(self, x, size):
        """Raise ValueError unless devices can share the batches of arrays, the last one too."""
        if is_array(x):
            count, size = len(keras.tree.flatten(x)[0]), size or 32  # Keras's own
            for batch in {min(size, count), count % size} - {0}:
                self.check_count(batch)

    def prepare(self, x, y=None, sample_weight=None):
        """Check data for ``fit`` or ``evaluate`` and return what Keras is to be given: (x, y, sample_weight)."""
        self.failure = None
        wrap = next((wrap for known, wrap in WRAPPERS if known(x)), None)
        if wrap is not None:
            if y is not None or sample_weight is not None:
                raise ValueError(
                    "y and sample_weight come with a dataset's own batches: (images, conditions, weights)."
                )
            return wrap(self, x), None, None
        if not isinstance(x, dict | list) and not hasattr(x, "shape"):
            hint = "conditions are y, given separately" if isinstance(x, tuple) else "give a generator for an iterator"
            raise ValueError(f"x must be images, or a dataset or generator of batches, got {type(x).__name__}: {hint}.")
        images, conditions = self.unpack(self.encoded(x) if isinstance(x, dict) else x, self.encoded(y))
        # Keras would take a list for several inputs.
        images, conditions = _array(images), {name: _array(value) for name, value in conditions.items()}
        self.check(images, conditions)
        if self.values.bounded:
            warn_if_zero_to_one(images)
        if sample_weight is not None:
            check_sample_weight(sample_weight, len(images))
            # Keras drops the weights where y is None: give it conditions of width zero instead.
            conditions = conditions or np.zeros((len(images), 0), "float32")
        return images, conditions or None if isinstance(conditions, dict) else conditions, sample_weight


def _is_text(y):
    if isinstance(y, str):
        return True
    if isinstance(y, np.ndarray):
        return y.dtype.kind in "UO"
    return isinstance(y, list | tuple) and any(isinstance(entry, str) for entry in y)


def _check_prompts(prompts):
    """Raise ValueError for a bare string and for entries that are none, whatever an encoder makes of them."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of strings, got the one {prompts!r}: write [{prompts!r}].")
    other = [(i, p) for i, p in enumerate(prompts) if not isinstance(p, str)] if np.ndim(prompts) else [(0, prompts)]
    if other:
        number, entry = other[0]
        raise ValueError(f"prompts must be strings, but entry {number} is {type(entry).__name__}: {entry!r:.80}.")


def check_shape(given, shape):
    """Raise ValueError unless images of a shape fit the network's (B, H, W, C); None is a size not known yet."""
    fits = len(given) == 4 and all(w in (None, g) or g is None for w, g in zip(shape[1:], given[1:], strict=True))
    if not fits or 0 in given:
        raise ValueError(f"images must have the shape {('N', *shape[1:])} with N > 0, got {tuple(given)}.")


def warn_if_zero_to_one(images):
    """Warn where not one of many float images goes below zero: they were probably scaled to [0, 1]."""
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating) and images.min() >= 0 and images.max() > images.min():
        warnings.warn("No image has a value below 0: scaled to [0, 1]? Use images * 2 - 1 for [-1, 1].", stacklevel=4)


def check_condition(name, value, entry, count):
    """Raise ValueError unless a condition has the shape, the kind of numbers and the range that its input takes."""
    wanted = entry.shape[1:]
    fits = value.ndim == 1 + len(wanted) and all(w in (None, g) for w, g in zip(wanted, value.shape[1:], strict=True))
    if not fits or len(value) != count:
        raise ValueError(f"condition {name!r} must have the shape {(count, *wanted)}, got {value.shape}.")
    if value.dtype.kind not in "biuf":
        raise ValueError(f"condition {name!r} must hold numbers, got {value.dtype}.")
    if not np.isfinite(value).all():
        raise ValueError(f"condition {name!r} holds NaN or infinity.")
    if entry.dtype == "bool" and not np.isin(value, (0, 1)).all():
        raise ValueError(
            f"condition {name!r} must hold True and False, True where something counts, got other numbers."
        )
    if "int" in entry.dtype and (value != np.round(value)).any():
        raise ValueError(f"condition {name!r} must hold whole numbers, got {value.dtype}.")
    if entry.classes and value.size and (value.min() < 0 or value.max() >= entry.classes):
        raise ValueError(
            f"condition {name!r} must lie in 0 ... {entry.classes - 1}, got values from {value.min()} to {value.max()}."
        )


def check_sample_weight(weight, count):
    """Raise ValueError unless there is one finite weight, zero or more, for each image."""
    weight = np.asarray(weight)
    if weight.shape != (count,) or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(f"sample_weight must be {count} finite numbers >= 0, one an image, got shape {weight.shape}.")


def check_end(x, steps, name):
    """Raise ValueError for a PyDataset without end, unless it is said how many of its batches make an epoch."""
    if isinstance(x, keras.utils.PyDataset) and x.num_batches is None and steps is None:
        raise ValueError(f"The dataset has no end: give {name}, the batches to take.")


# ---- the kinds of data that come in batches ---------------------------------------------------------------------


def is_array(x):
    """Tell whether data are arrays, and not what gives them batch by batch."""
    return isinstance(x, dict) or hasattr(x, "shape")


def _array(x):
    return np.asarray(x) if isinstance(x, list | tuple) else x


def _arrays(part):
    """A batch's images or conditions, lists of numbers as arrays: Keras would take a list for several inputs."""
    if isinstance(part, dict):
        return {name: _arrays(value) for name, value in part.items()}
    return np.asarray(part) if isinstance(part, list) and part else part


def as_tuple(element):
    """Give a dataset's element as Keras wants it: a tuple, also where it is an array or a dictionary alone."""
    return tuple(element) if isinstance(element, tuple | list) else (element,)


def to_numpy(x):
    """Give a batch's array as NumPy's, from whatever program it comes."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def _tf_dataset(inputs, dataset):
    import tensorflow as tf

    # Keras marks what image_dataset_from_directory made, whose floats lie in 0 ... 255.
    pixels = hasattr(dataset, "file_paths")

    def scaled(element):
        images, *rest = as_tuple(element)
        return (tf.clip_by_value(tf.cast(images, "float32") / 127.5 - 1.0, -1.0, 1.0), *rest)

    def checked(*element):
        element = scaled(element) if pixels else as_tuple(element[0] if len(element) == 1 else element)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(element)
        images, _ = inputs.unpack(x, y)
        if images.shape.rank is not None:  # now, for Keras compiles the step before the first batch is there
            check_shape(images.shape, inputs.image.shape)
        flat = tf.nest.flatten(element)

        def check(*arrays):
            inputs.check_element(tf.nest.pack_sequence_as(element, arrays))
            return np.array(True)

        with tf.control_dependencies([tf.numpy_function(check, flat, tf.bool)]):
            return tf.nest.map_structure(tf.identity, element)

    return dataset.map(checked)


class _CheckedPyDataset(keras.utils.PyDataset):
    """A PyDataset whose every batch is checked before it is handed on."""

    def __init__(self, inputs, inner):
        threads = {k: getattr(inner, k) for k in ("workers", "use_multiprocessing", "max_queue_size")}
        super().__init__(**threads)
        self.inputs, self.inner = inputs, inner

    def __getitem__(self, index):
        try:
            return self.inputs.check_element(self.inner[index])
        except Exception as error:
            self.inputs.failure = error
            raise

    @property
    def num_batches(self):
        return self.inner.num_batches

    def on_epoch_begin(self):
        self.inner.on_epoch_begin()

    def on_epoch_end(self):
        self.inner.on_epoch_end()


def _torch_loader(inputs, loader):
    import torch

    class Checked(torch.utils.data.IterableDataset):
        def __iter__(self):
            return map(inputs.check_element, loader)

    class Sized(Checked):
        def __len__(self):
            return len(loader)

    sized = hasattr(loader.dataset, "__len__")
    return torch.utils.data.DataLoader(Sized() if sized else Checked(), batch_size=None)


def _of(module, name):
    """Tell whether a thing is of a class, without importing the module of one that was never imported."""

    def known(x):
        return any(cls.__name__ == name and cls.__module__.split(".")[0] == module for cls in type(x).__mro__)

    return known


WRAPPERS = (
    (_of("tensorflow", "DatasetV2"), _tf_dataset),
    (lambda x: isinstance(x, keras.utils.PyDataset), _CheckedPyDataset),
    (_of("torch", "DataLoader"), _torch_loader),
    (_of("grain", "IterDataset"), lambda inputs, data: data.map(inputs.check_element)),
    (_of("grain", "MapDataset"), lambda inputs, data: data.map(inputs.check_element)),
    (lambda x: isinstance(x, types.GeneratorType), lambda inputs, data: (inputs.check_element(e) for e in data)),
)
