"""Each distinct prompt is encoded once, here and in another process; damaged files are made again."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from unet_keras.text.cache import CachedEncoder, cached


@keras.saving.register_keras_serializable("test_cache")
class Letters:
    """An encoder of letters that keeps count of what it was asked."""

    def __init__(self, shift=0):
        self.shift, self.asked = shift, []

    @property
    def fingerprint(self):
        return f"letters-{self.shift}"

    def __call__(self, prompts):
        self.asked.append(list(prompts))
        codes = np.array([[ord(letter) for letter in prompt.ljust(4)[:4]] for prompt in prompts], "float32")
        return {"context": codes[:, :, None] + self.shift, "context_mask": codes != 32, "pooled": codes}

    def words(self, prompts):
        return [list(prompt.ljust(4)[:4]) for prompt in prompts]

    def get_config(self):
        return {"shift": self.shift}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def same(a, b):
    return set(a) == set(b) and all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in a)


def test_each_prompt_is_encoded_once_and_comes_in_its_place(tmp_path):
    letters, prompts = Letters(), ["ab", "cd", "ab", ""]
    encoder = cached(letters, tmp_path)
    assert same(encoder(prompts), Letters()(prompts))
    assert letters.asked == [["ab", "cd", ""]]
    assert same(encoder(["", "x", "cd"]), Letters()(["", "x", "cd"]))
    assert letters.asked[1:] == [["x"]]
    assert encoder.words(["ab"]) == [["a", "b", " ", " "]] and encoder.fingerprint == "letters-0"
    assert not list(tmp_path.rglob("*.part"))


def test_another_encoder_reads_nothing_of_the_first(tmp_path):
    cached(Letters(), tmp_path)(["ab"])
    other = Letters(shift=1)
    assert same(cached(other, tmp_path)(["ab"]), Letters(shift=1)(["ab"])) and other.asked == [["ab"]]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b.replace(b"a", b"b")])
def test_a_damaged_file_is_made_again(damage, tmp_path):
    cached(Letters(), tmp_path)(["a", "b"])
    for path in tmp_path.rglob("*.npz"):
        path.write_bytes(damage(path.read_bytes()))
    letters = Letters()
    assert same(cached(letters, tmp_path)(["a", "b"]), Letters()(["a", "b"])) and letters.asked == [["a", "b"]]
    again = Letters()
    assert same(cached(again, tmp_path)(["a", "b"]), Letters()(["a", "b"])) and again.asked == []


def test_a_flipped_bit_anywhere_costs_an_encoding_at_most(tmp_path):
    expected = cached(Letters(), tmp_path)(["a"])
    (path,) = tmp_path.rglob("*.npz")
    whole = path.read_bytes()
    for place in range(len(whole) - 500, len(whole)):  # the archive's own directory among it
        for bit in (0, 3, 6):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert same(cached(Letters(), tmp_path)(["a"]), expected), (place, bit)


def test_a_file_that_lost_an_array_is_made_again(tmp_path):
    """As where a bit of the archive's directory is flipped that says how long one of its entries is."""
    expected = cached(Letters(), tmp_path)(["a"])
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    assert len(arrays) == 4
    for lost in arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != lost})
        again = Letters()
        assert same(cached(again, tmp_path)(["a"]), expected) and again.asked == [["a"]], lost


def test_a_pickle_is_not_read(tmp_path):
    cached(Letters(), tmp_path)(["a"])
    (path,) = tmp_path.rglob("*.npz")
    np.savez(path, context=np.array([{"a": 1}], object))
    assert same(cached(Letters(), tmp_path)(["a"]), Letters()(["a"]))


def test_an_encoding_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        cached(Letters(), tmp_path)(["a"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


SECOND = """
import sys
import numpy as np
from unet_keras.text.cache import cached

class Never:
    fingerprint = "letters-0"
    def __call__(self, prompts):
        raise SystemExit("encoded again")

print(cached(Never(), sys.argv[1])(["ab", "cd"])["context"].sum())
"""


def test_a_second_process_reads_it_back(tmp_path):
    total = cached(Letters(), tmp_path)(["ab", "cd"])["context"].sum()
    command, environment = [sys.executable, "-c", SECOND, str(tmp_path)], {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == total


def test_saving_holds_the_encoder_and_the_folder(tmp_path):
    encoder = cached(Letters(shift=3), tmp_path)
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(encoder)))
    again = keras.saving.deserialize_keras_object(saved)
    assert isinstance(again, CachedEncoder) and again.fingerprint == "letters-3" and again.folder == tmp_path


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="encoder must have a fingerprint.*function has none"):
        cached(lambda prompts: {}, tmp_path)
    with pytest.raises(ValueError, match="must be a list of strings"):
        cached(Letters(), tmp_path)("a")

    class Silent:
        fingerprint = "silent"

    with pytest.raises(ValueError, match="Silent has none"):
        cached(Silent(), tmp_path).words(["a"])
