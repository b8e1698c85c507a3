"""The contract of encoders: what prompts may be, what is said of those that are cut, and what files are refused."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from unet_keras.text.encoder import check_prompts, warn_if_cut


@pytest.mark.parametrize("prompts", [["a", ""], ("a", ""), np.array(["a", ""]), np.array(["a", ""], object)])
def test_prompts_come_as_a_list_of_str(prompts):
    assert check_prompts(prompts) == ["a", ""] and all(type(prompt) is str for prompt in check_prompts(prompts))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a cat", r"got the one 'a cat': write \['a cat'\]"),
        (b"a cat", "must be a list of strings"),
        ([], 'got none; "" is the empty prompt'),
        (np.array([], "U1"), "got none"),
        (["a", 3], "entry 1 is int: 3"),
        (["a", None], "entry 1 is NoneType"),
        ([["a"]], "entry 0 is list"),
        (np.array([["a"]]), "entry 0 is ndarray"),
        (np.array("a"), "got ndarray"),
        (np.arange(3), "entry 0 is int64"),
        ({"a": 1}, "got dict"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_list_of_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts)


def test_what_is_cut_is_shown_for_the_first_few():
    prompts = ["one two three", "fits", *["four five"] * 4]
    with pytest.warns(UserWarning) as caught:
        warn_if_cut(prompts, [1, 1, 1, 0, 1, 1], 8)
    (said,) = [str(warning.message) for warning in caught]
    assert "5 of 6 prompts are longer than the context's 8 tokens" in said
    assert "'two three' of 'one two three'; 'five' of 'four five'; 'four five' of 'four five'; and 2 more." in said
    warn_if_cut(["one two"], [2], 8)  # warnings are errors here


# ---- encoders over a folder -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bert_files):
    from .test_bert import save

    folder = tmp_path_factory.mktemp("folder")
    save(folder, bert_files)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def read(folder, **options):
    from unet_keras.text.bert import BertEncoder

    return BertEncoder.from_hf(folder, **{"length": 8, **options})


@pytest.fixture(scope="module")
def encoder(folder):
    """The folder's encoder, with 8 tokens."""
    return read(folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard_outside(folder):
    (folder / "model.safetensors").rename(folder / "kept.safetensors")
    index = {"weight_map": {"a": "kept.safetensors", "b": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def extra_tensor(folder):
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["embeddings.colour.weight"] = tensors.pop("embeddings.LayerNorm.bias")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


BOTH = r"nothing takes .1.: embeddings.colour.weight. Tensors that are missing .1.: embeddings.LayerNorm.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "model_type None; this encoder reads .'bert'."),
        (lambda f: (f / "model.safetensors").unlink(), "must hold model.safetensors or .*index.json, found neither"),
        (pickled, r"found \['pytorch_model.bin'\], which are pickles and are not read"),
        (truncate, "model.safetensors cannot be read, truncated"),
        (shard_outside, r"names files that are not there: \['\.\./other.safetensors'\]"),
        (extra_tensor, BOTH),
        (lambda f: (f / "tokenizer.json").unlink(), "must hold tokenizer.json or vocab.txt"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read as a tokenizer"),
    ],
)
def test_folders_that_are_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        read(copy)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="config.json is missing"):
        read(tmp_path / "nowhere")


def test_a_tokenizer_of_another_model(folder, clip_files, tmp_path):
    from .helpers import both_forms, transformers

    both_forms(clip_files, transformers.CLIPTokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"vocabulary has no \['\[CLS\]', '\[SEP\]', '\[PAD\]'\]"):
        read(folder, tokenizer=tmp_path)


def test_prompts_are_checked_and_cut(encoder):
    with pytest.raises(ValueError, match="entry 1 is int"):
        encoder(["a", 1])
    with pytest.raises(ValueError, match="must be a list of strings"):
        encoder.words("a dog")
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer .* 8 tokens. Left out: 'cats and dog' of 'a red"):
        given = encoder(["a red heart on white cats and dog", "a dog"])
    assert given["context_mask"].sum(axis=1).tolist() == [8, 4]
    assert len(encoder.words(["a red heart on white cats and dog"])[0]) == 8


def test_batches_of_any_size_give_the_same(encoder, monkeypatch):
    prompts = ["a dog", "a red heart", "", "two cats", "white"]
    whole = encoder(prompts)
    for size in (1, 2, 3):
        monkeypatch.setattr(encoder, "batch_size", size)
        batches = encoder(prompts)
        assert all(np.allclose(batches[name], whole[name], atol=1e-5) for name in whole)


def test_the_global_policy_changes_nothing(folder, encoder):
    wanted = encoder(["a dog"])
    keras.config.set_dtype_policy("mixed_float16")
    got = read(folder)(["a dog"])
    assert got["context"].dtype == np.float32 and np.allclose(got["context"], wanted["context"], atol=1e-6)


def test_the_fingerprint_is_of_weights_settings_tokens_and_options(folder, encoder, copy):
    import safetensors.numpy

    from unet_keras.text import bert

    first, parts = encoder.fingerprint, bert._read(folder, folder, "float32")
    assert read(copy, batch_size=1).fingerprint == first  # another place, another batch
    options = [{"length": 9}, {"length": 8, "layer": 0}, {"length": 8, "pooled": "cls"}, {"length": 8, "mask": False}]
    others = [bert.BertEncoder(parts, {}, **chosen) for chosen in options]
    others.append(read(copy, dtype="bfloat16"))
    config = json.loads((copy / "config.json").read_text())
    for change in ({"hidden_act": "relu"}, {"num_attention_heads": 1}, {"layer_norm_eps": 1e-3}):
        (copy / "config.json").write_text(json.dumps(config | change))
        others.append(read(copy))
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "1.2.3"}))
    assert read(copy).fingerprint == first  # nothing of it changes what comes out
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][0] += 1e-3
    safetensors.numpy.save_file(tensors, copy / "model.safetensors")
    others.append(read(copy))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text().replace('"heart"', '"heath"'))
    others.append(read(copy))
    assert len({first, *(other.fingerprint for other in others)}) == 1 + len(others) == 11


def test_handles_of_hugging_face_are_downloaded_and_read(monkeypatch, folder, encoder):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from unet_keras.text.bert import BertEncoder

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    downloaded = BertEncoder.from_preset("hf://owner/model", length=8)
    assert asked == ["owner/model"] and downloaded.fingerprint == encoder.fingerprint


WITHOUT = """
import sys
import keras
sys.modules["keras_hub"] = None
before = set(sys.modules)
from unet_keras.text.bert import BertEncoder
assert not {"safetensors", "tokenizers", "huggingface_hub"} & (set(sys.modules) - before)
try:
    BertEncoder.from_hf(sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_without_keras_hub_the_extra_is_named(folder):
    command, environment = [sys.executable, "-c", WITHOUT, str(folder)], {**os.environ, "KERAS_BACKEND": "numpy"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "pip install unet-keras[text]" in done.stdout
