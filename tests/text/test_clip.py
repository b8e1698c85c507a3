"""CLIP against transformers: tokens, hidden states, pooled output and projection, and the files that are refused."""

import json

import keras
import numpy as np
import pytest

from unet_keras.text import clip, vocabulary
from unet_keras.text.clip import ClipEncoder

from .helpers import (
    PROMPTS,
    both_forms,
    largest,
    open_clip_merges,
    shake,
    tokens_of,
    torch,
    transformers,
    write_clip_tokenizer,
)

LENGTH = 12
SIZES = {
    "vocab_size": 530, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 16, "projection_dim": 8, "bos_token_id": 519, "eos_token_id": 520, "pad_token_id": 520,
}  # fmt: skip


def save(folder, clip_files, kind="CLIPTextModelWithProjection", **changes):
    """Save a random model and its tokenizer; give both."""
    config = transformers.CLIPTextConfig(**{**SIZES, **changes})
    if kind == "CLIPModel":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision |= {"image_size": 4, "patch_size": 2}
        config = transformers.CLIPConfig(
            text_config=config.to_dict(), vision_config=vision, projection_dim=config.projection_dim
        )
    model = shake(getattr(transformers, kind)(config))
    model.save_pretrained(folder)
    return model, both_forms(clip_files, transformers.CLIPTokenizer, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, clip_files):
    """A folder with a projection, its model and its tokenizer."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save(folder, clip_files)


@pytest.fixture(scope="module")
def parts(pair):
    """What the folder holds, read once."""
    return clip._read(pair[0], pair[0], "float32")


def reference(model, tokenizer, prompts=PROMPTS, length=LENGTH):
    with torch.no_grad():
        return model(tokens_of(tokenizer, prompts, length)["input_ids"], output_hidden_states=True)


def test_tokens_are_those_of_transformers(pair, clip_files):
    folder, _, tokenizer = pair
    frame = vocabulary.Frame(clip.START, clip.END, clip.END)
    wanted = tokens_of(tokenizer, PROMPTS, LENGTH)["input_ids"].numpy()
    for files in (folder, clip_files):
        read = vocabulary.read_vocabulary(files, frame, clip._tokenizer)
        with pytest.warns(UserWarning, match="longer than the context's 12"):
            tokens, real = vocabulary.rows(read, PROMPTS, LENGTH)
        assert (tokens == wanted).all()
    assert real[1].tolist() == [True, True] + [False] * 10  # the empty prompt: start and end


@pytest.mark.parametrize("form", ["older files", "tokenizer.json"])
def test_the_real_vocabulary(form, tmp_path):
    merges = open_clip_merges()
    if merges is None:
        pytest.skip("the vocabulary is in open_clip_torch, which is not installed")
    files = write_clip_tokenizer(tmp_path / "files", merges)
    tokenizer = both_forms(files, transformers.CLIPTokenizer, tmp_path / "saved")
    frame = vocabulary.Frame(clip.START, clip.END, clip.END)
    folder = files if form == "older files" else tmp_path / "saved"
    vocabulary_ = vocabulary.read_vocabulary(folder, frame, clip._tokenizer)
    prompts = [*PROMPTS, "An astronaut riding a horse, 4k — trending on artstation's", "日本語 Ünï¢ode\n\nx"]
    tokens, real = vocabulary.rows(vocabulary_, prompts, 77)
    wanted = tokens_of(tokenizer, prompts, 77)
    assert (tokens == wanted["input_ids"].numpy()).all() and vocabulary_.size == 49408
    assert (real == wanted["attention_mask"].numpy()).all()
    words = vocabulary.words(vocabulary_, prompts[:3], 77)
    assert words[0][:5] == ["", "a", "red", "heart", ""] and set(words[1]) == {""}
    assert words[2][:6] == ["", "na", "ï", "ve", "café", "l"] and "😀" in words[2]


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, lambda out, norm: out.last_hidden_state),
        ({"norm": False}, lambda out, norm: out.hidden_states[-1]),
        ({"layer": -2}, lambda out, norm: norm(out.hidden_states[-2])),
        ({"layer": -2, "norm": False}, lambda out, norm: out.hidden_states[-2]),
        ({"layer": 0, "norm": False}, lambda out, norm: out.hidden_states[0]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*longer than the context")
def test_hidden_states(pair, parts, options, state):
    _, model, tokenizer = pair
    got = ClipEncoder(parts, {}, length=LENGTH, **options)(PROMPTS)
    with torch.no_grad():
        wanted = state(reference(model, tokenizer), model.text_model.final_layer_norm)
    assert set(got) == {"context"} and got["context"].dtype == np.float32
    assert largest(got["context"], wanted) < 1e-4


@pytest.mark.filterwarnings("ignore:.*longer than the context")
def test_pooled_outputs_and_the_mask(pair, parts):
    _, model, tokenizer = pair
    given = tokens_of(tokenizer, PROMPTS, LENGTH)
    with torch.no_grad():
        masked = model(**given, output_hidden_states=True)
        eos = model.text_model(given["input_ids"]).pooler_output
    got = ClipEncoder(parts, {}, length=LENGTH, layer=-2, norm=False, pooled="projected", mask=True)(PROMPTS)
    assert largest(got["pooled"], masked.text_embeds) < 1e-4
    assert got["context_mask"].dtype == bool and (got["context_mask"] == given["attention_mask"].numpy()).all()
    real = got["context_mask"]
    assert largest(got["context"][real], masked.hidden_states[-2].numpy()[real]) < 1e-4
    assert largest(ClipEncoder(parts, {}, length=LENGTH, pooled="eos")(PROMPTS)["pooled"], eos) < 1e-4


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPModel"])
def test_the_other_forms_of_the_file(kind, tmp_path, clip_files):
    """Names with and without "text_model.", another activation and epsilon, shards, and a vision tower beside it."""
    model, tokenizer = save(tmp_path, clip_files, kind, hidden_act="gelu", layer_norm_eps=1e-3)
    text = model.text_model if kind == "CLIPModel" else model
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    got = ClipEncoder.from_hf(tmp_path, length=LENGTH, pooled="eos")(PROMPTS[:2])
    wanted = reference(text, tokenizer, PROMPTS[:2])
    assert largest(got["context"], wanted.last_hidden_state) < 1e-4
    assert largest(got["pooled"], wanted.pooler_output) < 1e-4
    if kind == "CLIPTextModel":
        with pytest.raises(ValueError, match='no.*text_projection|text_projection.*use "eos"'):
            ClipEncoder.from_hf(tmp_path, length=LENGTH, pooled="projected")


def test_padding_with_another_token(tmp_path, clip_files, pair):
    """SDXL's second tokenizer pads with "!"; the pooled output is still the end token's."""
    folder, model, tokenizer = pair
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_files, pad_token="!")
    tokenizer.save_pretrained(tmp_path)
    got = ClipEncoder.from_hf(folder, tokenizer=tmp_path, length=LENGTH, pooled="eos")(PROMPTS[:2])
    wanted = reference(model.text_model, tokenizer, PROMPTS[:2])
    assert largest(got["context"], wanted.last_hidden_state) < 1e-4
    assert largest(got["pooled"], wanted.pooler_output) < 1e-4


def test_saving_holds_the_source_and_no_weights(pair):
    folder, *_ = pair
    encoder = ClipEncoder.from_hf(folder, length=LENGTH, layer=-2, pooled="projected", batch_size=2)
    saved = keras.saving.serialize_keras_object(encoder)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(saved)))
    assert again.get_config() == encoder.get_config() and again.fingerprint == encoder.fingerprint
    assert largest(again(["a dog"])["context"], encoder(["a dog"])["context"]) == 0

    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

    assert Holder().weights == [] and encoder.model.trainable_weights == []


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 17}, "got 17; the model knows 16 places"),
        ({"length": 2}, "length must be .* 3 or more, got 2"),
        ({"layer": 4}, "layer must be from 0 .* to 3"),
        ({"layer": "last"}, "layer must be .*got 'last'"),
        ({"pooled": "mean"}, "pooled must be one of .*got 'mean'"),
        ({"norm": 1}, "norm must be True or False, got 1"),
        ({"batch_size": 0}, "batch_size must be .*got 0"),
    ],
)
def test_options_out_of_range(parts, options, message):
    with pytest.raises(ValueError, match=message):
        ClipEncoder(parts, {}, **{"length": LENGTH, **options})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip'"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"hidden_size": 18}, "Other shapes .*token_embedding.weight"),
        ({"projection_dim": 9}, "Other shapes .1.: text_projection.weight"),
        ({"num_hidden_layers": 2}, "Tensors that nothing takes .16.: text_model.encoder.layers.2"),
        ({"num_hidden_layers": 4}, "Tensors that are missing .16.: text_model.encoder.layers.3"),
        ({"vocab_size": 100}, "tokenizer knows 521 tokens|Other shapes"),
    ],
)
def test_a_config_that_does_not_fit(pair, tmp_path, changes, message):
    for path in pair[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        ClipEncoder.from_hf(tmp_path, length=LENGTH)
