"""What the frozen pretrained encoders share: batches, hidden layers, the fingerprint, saving as a source and options.

They are plain Python objects, no Keras layers: a Keras model that holds one neither trains nor saves its weights.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from unet_keras.checks import check_counts, is_int
from unet_keras.text import hub
from unet_keras.text import vocabulary as vocabularies
from unet_keras.text.encoder import check_prompts


class Parts(NamedTuple):
    """A pretrained model taken apart: what an encoder is put together from."""

    backbone: object  # KerasHub's, with its weights
    vocabulary: vocabularies.Vocabulary
    settings: dict  # see ``settings``
    projection: object = None  # CLIP's Dense on the pooled output


def settings(config: dict, dtype) -> dict:
    """Name what decides beside the weights what a model gives: sizes, heads, activations, and the number format."""
    return {**config, "dtype": keras.dtype_policies.get(dtype).name}


def settings_of_preset(backbone, dtype) -> dict:
    """Name the same of one of KerasHub's models."""
    config = {name: value for name, value in backbone.get_config().items() if name not in ("name", "trainable")}
    return settings(config, dtype)


class Frozen:
    """The base of the encoders; each has its own ``read``, ``read_preset`` and ``pool``.

    Prompts are tokenised, run through ``model`` in batches, and given as NumPy arrays.

    ``source`` says how to read the weights again: arguments of ``from_hf`` ("folder") or ``from_preset`` ("handle").
    ``options`` are those with an effect on what comes out. ``model`` is a functional model from a dict with
    "tokens" (N, L) int32 and perhaps "mask" (N, L) int32 to a dict with "context" (N, L, D) and what ``pool`` needs.
    """

    def __init__(self, model, parts: Parts, source: dict, options: dict, batch_size: int):
        check_counts(batch_size=batch_size)
        model.trainable = False
        self.model, self.vocabulary, self.batch_size = model, parts.vocabulary, int(batch_size)
        self.source, self.options = dict(source), dict(options)
        self._settings, self._fingerprint = parts.settings, None

    # ---- reading ------------------------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, handle: str, *, dtype="float32", **options):
        """Read a model by its name at KerasHub or Kaggle, or by "hf://owner/name"; KerasHub downloads it.

        ``dtype``: the weights' and the arithmetic's, whatever the global policy says.
        """
        folder = hub.fetched(handle)
        parts = cls.read_preset(handle, dtype) if folder is None else cls.read(folder, folder, dtype)
        return cls(parts, {"handle": handle, "dtype": dtype}, **options)

    @classmethod
    def from_hf(cls, folder, *, tokenizer=None, dtype="float32", **options):
        """Read a local folder as Hugging Face's transformers saves it: config.json, safetensors, a tokenizer's files.

        ``tokenizer``: the folder of the tokenizer's files where it is another one, as in the folders of diffusers.
        Raises ValueError where files are missing or broken, or the weights are not those that config.json describes.
        """
        source = {"folder": str(folder), "tokenizer": tokenizer and str(tokenizer), "dtype": dtype}
        return cls(cls.read(Path(folder), Path(tokenizer or folder), dtype), source, **options)

    @staticmethod
    def read(folder: Path, tokenizer: Path, dtype: str) -> Parts:
        """Read the parts from local folders."""
        raise NotImplementedError

    @staticmethod
    def read_preset(handle: str, dtype: str) -> Parts:
        """Read the parts by way of KerasHub."""
        raise NotImplementedError

    # ---- encoding -----------------------------------------------------------------------------------------------

    def __call__(self, prompts) -> dict[str, np.ndarray]:
        """Give the conditions of N prompts. Raises ValueError for what ``check_prompts`` refuses."""
        tokens, real = vocabularies.rows(self.vocabulary, check_prompts(prompts), self.options["length"])
        starts = range(0, len(tokens), self.batch_size)
        batches = [self._batch(tokens[i : i + self.batch_size], real[i : i + self.batch_size]) for i in starts]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _batch(self, tokens, real):
        inputs = {"tokens": tokens, "mask": real.astype("int32")}
        # Sizes are powers of two, so that few are compiled whatever the number of prompts.
        count, size = len(tokens), 1 << (len(tokens) - 1).bit_length()
        inputs = {k: np.resize(v, (size, *v.shape[1:])) for k, v in inputs.items() if k in self.model.input}
        outputs = self.model.predict_on_batch(inputs)
        outputs = {k: keras.ops.convert_to_numpy(v)[:count].astype("float32") for k, v in outputs.items()}
        return self.conditions(outputs, tokens, real)

    def conditions(self, outputs, tokens, real) -> dict[str, np.ndarray]:
        """Name what a batch of the model's outputs gives to a network."""
        given = {"context": outputs["context"]}
        if self.options["mask"]:
            given["context_mask"] = real
        if self.options.get("pooled"):
            given["pooled"] = self.pool(outputs, tokens, real)
        return given

    def pool(self, outputs, tokens, real) -> np.ndarray:
        """Give one vector (N, P) a prompt."""
        raise NotImplementedError

    def words(self, prompts) -> list[list[str]]:
        """Say for each prompt what its L places in the context stand for: "" for padding and special tokens."""
        return vocabularies.words(self.vocabulary, check_prompts(prompts), self.options["length"])

    # ---- identity -----------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Another for encoders that give other arrays: a hash of weights, settings, tokenizer and options."""
        if self._fingerprint is None:
            config = [type(self).__name__, self.options, self.vocabulary.digest, self._settings]
            digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
            for variable in self.model.weights:
                digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def get_config(self) -> dict:
        """Give where the weights come from and the options; not the weights."""
        return {"source": self.source, **self.options, "batch_size": self.batch_size}

    @classmethod
    def from_config(cls, config):
        """Read the weights again from where they came from.

        While Keras loads a file, KerasHub reads the vocabulary of a preset with ``safe_mode=False`` alone.
        """
        options = {name: value for name, value in config.items() if name != "source"}
        read = cls.from_preset if "handle" in config["source"] else cls.from_hf
        return read(**config["source"], **options)


# ---- putting a model together -----------------------------------------------------------------------------------


def inputs() -> dict:
    """Give the symbolic inputs of an encoder: "tokens" and "mask", (N, L) int32."""
    return {name: keras.Input((None,), dtype="int32", name=name) for name in ("tokens", "mask")}


def choose(states: list, layer: int, norm: Callable | None = None):
    """Give one of the hidden states, counted as transformers does: the embeddings (0), the first layer's (1), ...

    Raises ValueError where the model has no such layer.
    """
    if not is_int(layer, -len(states)) or layer >= len(states):
        raise ValueError(
            f"layer must be from 0 (the embeddings) to {len(states) - 1} (the last), or count from the end with -1 the "
            f"last, -2 the penultimate; got {layer!r}."
        )
    return norm(states[layer]) if norm else states[layer]


def check_choice(name: str, value, known):
    """Raise ValueError unless an option is one of the known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, got {value!r}.")


def check_flags(**flags):
    """Raise ValueError unless each flag is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}.")
