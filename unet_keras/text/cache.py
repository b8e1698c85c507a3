"""Each distinct prompt is encoded once and kept on disk, so that training on a frozen encoder pays for it once.

One .npz file a prompt, without pickles, in a folder named after the encoder's fingerprint: another encoder, other
weights or other options never read each other's files.
"""

import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np

from unet_keras.text.encoder import check_prompts

UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
UNREADABLE += (RuntimeError,)  # an archive that is said to be encrypted
NAMES = "_names"
"""What a file holds beside the conditions: how they are called, so that one that is lost is missed."""


def cached(encoder, folder) -> "CachedEncoder":
    """Give an encoder that reads from ``folder`` what it has encoded before, in this process or another.

    A context of 77 tokens of width 768 takes 237 kB a prompt. Raises ValueError for an encoder without ``fingerprint``.
    """
    return CachedEncoder(encoder, folder)


@keras.saving.register_keras_serializable("unet_keras")
class CachedEncoder:
    """An encoder and a folder; a file that cannot be read, cut off or damaged, is encoded and written again.

    That a prompt is too long is said when it is encoded, not when it is read.
    """

    def __init__(self, encoder, folder):
        if not isinstance(getattr(encoder, "fingerprint", None), str):
            raise ValueError(
                f"encoder must have a fingerprint, a str that changes with its weights and options; "
                f"{type(encoder).__name__} has none."
            )
        self.encoder, self.folder = encoder, Path(folder)

    def __call__(self, prompts) -> dict[str, np.ndarray]:
        """Give the conditions of N prompts, from disk where they are there."""
        prompts = check_prompts(prompts)
        known = {prompt: _read(self._path(prompt)) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, row in known.items() if row is None]
        known |= self._encode(missing) if missing else {}
        return {name: np.stack([known[prompt][name] for prompt in prompts]) for name in known[prompts[0]]}

    def _encode(self, prompts):
        conditions = self.encoder(prompts)
        fresh = {p: {name: array[i] for name, array in conditions.items()} for i, p in enumerate(prompts)}
        for prompt, row in fresh.items():
            _write(self._path(prompt), row)
        return fresh

    def _path(self, prompt):
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / self.encoder.fingerprint / f"{digest}.npz"

    def words(self, prompts) -> list[list[str]]:
        """Say what the places in the context stand for, as the encoder does. Raises ValueError where it does not."""
        if not hasattr(self.encoder, "words"):
            raise ValueError(f"words needs an encoder with words(prompts); {type(self.encoder).__name__} has none.")
        return self.encoder.words(prompts)

    @property
    def fingerprint(self) -> str:
        """The encoder's: what is read is what it gives."""
        return self.encoder.fingerprint

    def get_config(self) -> dict:
        return {"encoder": keras.saving.serialize_keras_object(self.encoder), "folder": str(self.folder)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["encoder"]), config["folder"])


def _read(path):
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays[NAMES].tolist()}
    except UNREADABLE:
        return None


def _write(path, row):
    """Write under another name and rename: other processes see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez(file, **row, **{NAMES: np.array(list(row))})
            file.flush()
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)
