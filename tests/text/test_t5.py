"""T5's encoder half against transformers: tokens, masks, hidden states, both kinds of feed-forward, refused files."""

import json

import numpy as np
import pytest

from unet_keras.text import t5, vocabulary
from unet_keras.text.t5 import T5Encoder

from .helpers import PROMPTS, both_forms, largest, shake, tokens_of, torch, transformers

LENGTH = 40
SIZES = {
    "vocab_size": 140, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip


def save(folder, t5_files, kind="T5EncoderModel", **changes):
    """Save a random model and its tokenizer; give both."""
    model = shake(getattr(transformers, kind)(transformers.T5Config(**{**SIZES, **changes})))
    model.save_pretrained(folder)
    return model, both_forms(t5_files, transformers.T5Tokenizer, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, t5_files):
    """A folder with its model, of T5 1.1's kind, and its tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    return folder, *save(folder, t5_files)


@pytest.fixture(scope="module")
def parts(pair):
    """What the folder holds, read once."""
    return t5._read(pair[0], pair[0], "float32")


def test_tokens_are_those_of_transformers(pair, t5_files):
    folder, _, tokenizer = pair
    wanted = {length: tokens_of(tokenizer, PROMPTS, length) for length in (LENGTH, 7)}
    for files in (folder, t5_files):
        read = vocabulary.read_vocabulary(files, t5.FRAME, t5._tokenizer)
        tokens, real = vocabulary.rows(read, PROMPTS, LENGTH)
        assert (tokens == wanted[LENGTH]["input_ids"].numpy()).all()
        assert (real == wanted[LENGTH]["attention_mask"].numpy()).all()
        with pytest.warns(UserWarning, match="longer than the context's 7 tokens"):
            tokens, _ = vocabulary.rows(read, PROMPTS, 7)
        assert (tokens == wanted[7]["input_ids"].numpy()).all()
        words = vocabulary.words(read, ["a red dog"], 14)[0]
        assert "".join(words) == "areddog" and words[0] == "a" and words[-1] == ""


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, lambda out, norm: out.last_hidden_state),
        ({"mask": False}, lambda out, norm: out.last_hidden_state),
        ({"layer": -2, "norm": False}, lambda out, norm: out.hidden_states[-2]),
        ({"layer": 1}, lambda out, norm: norm(out.hidden_states[1])),
    ],
)
def test_hidden_states(pair, parts, options, state):
    _, model, tokenizer = pair
    got = T5Encoder(parts, {}, length=LENGTH, **options)(PROMPTS)
    given = tokens_of(tokenizer, PROMPTS, LENGTH)
    if not options.get("mask", True):
        del given["attention_mask"]
    with torch.no_grad():
        wanted = state(model(**given, output_hidden_states=True), model.encoder.final_layer_norm)
    real = got.get("context_mask", np.ones(wanted.shape[:2], bool))
    assert ("context_mask" in got) == options.get("mask", True)
    assert largest(got["context"][real], wanted.numpy()[real]) < 1e-4
    assert largest(got["context"], wanted) < 1e-4


@pytest.mark.parametrize("forward", ["relu", "gated-silu"])
def test_a_whole_t5_with_its_decoder(forward, tmp_path, t5_files):
    """The decoder is left out; shards, far positions and T5 1.0's feed-forward."""
    kind, changes = "T5ForConditionalGeneration", {"feed_forward_proj": forward, "relative_attention_max_distance": 50}
    model, tokenizer = save(tmp_path, t5_files, kind, **changes)
    model.save_pretrained(tmp_path, max_shard_size="12KB")
    (tmp_path / "model.safetensors").unlink()
    prompts = ["the quick brown fox jumps over the lazy dog " * 3]
    given = tokens_of(tokenizer, prompts, 150)
    with torch.no_grad():
        wanted = model.encoder(**given).last_hidden_state
    assert given["attention_mask"].sum() > 60
    assert largest(T5Encoder.from_hf(tmp_path, length=150)(prompts)["context"], wanted) < 1e-4


def test_half_the_width_of_numbers(pair, parts):
    """bfloat16 stays near float32 and free of NaN, with masked padding; float16 is refused."""
    encoders = T5Encoder(parts, {}, length=LENGTH), T5Encoder.from_hf(pair[0], length=LENGTH, dtype="bfloat16")
    whole, half = (encoder(PROMPTS)["context"] for encoder in encoders)
    assert encoders[0].fingerprint != encoders[1].fingerprint
    assert half.dtype == np.float32 and 0 < largest(whole, half) < 0.3 * np.abs(whole).max()
    with pytest.raises(ValueError, match="'float16' overflows in T5"):
        T5Encoder.from_hf(pair[0], dtype="float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "model_type 'umt5'"),
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj = 'gated-mish'"),
        ({"relative_attention_num_buckets": 16}, "relative_attention_num_buckets = 16"),
        ({"feed_forward_proj": "relu"}, "nothing takes .4.*DenseReluDense.wi_0.*missing .2.*DenseReluDense.wi.weight"),
        ({"num_layers": 1}, "nothing takes .9.: encoder.block.1"),
        ({"d_kv": 8}, "Other shapes .8.: encoder.block.0.layer.0.SelfAttention.k"),
    ],
)
def test_a_config_that_does_not_fit(pair, tmp_path, changes, message):
    for path in pair[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        T5Encoder.from_hf(tmp_path, length=LENGTH)


def test_a_folder_without_a_tokenizer(pair, tmp_path):
    with pytest.raises(ValueError, match="must hold tokenizer.json or spiece.model; or give tokenizer="):
        T5Encoder.from_hf(pair[0], tokenizer=tmp_path)
