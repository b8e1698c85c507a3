"""BERT, frozen, and the sentence encoders built like it, such as all-MiniLM-L6-v2: small, and quick on a CPU.

Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding";
Reimers and Gurevych 2019, "Sentence-BERT", for the mean over tokens as a vector of the sentence.
"""

import keras
import numpy as np

from unet_keras.files import Tensors, read_json
from unet_keras.text import frozen, hub
from unet_keras.text.hub import Linear
from unet_keras.text.vocabulary import Frame, check_fits, of_keras_hub, read_vocabulary

FRAME = Frame("[CLS]", "[SEP]", "[PAD]")

# What transformers takes where config.json says nothing, and the values that a setting with an effect may have.
DEFAULTS = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}  # fmt: skip
ACTIVATIONS = {
    "gelu": keras.activations.gelu, "relu": keras.activations.relu, "silu": keras.activations.silu,
    "gelu_new": lambda x: keras.activations.gelu(x, approximate=True),
}  # fmt: skip
ONLY = {
    "hidden_act": ACTIVATIONS, "position_embedding_type": ("absolute",), "is_decoder": (False,),
    "add_cross_attention": (False,),
}  # fmt: skip
ELSEWHERE = r"(bert\.)?(pooler\.dense\.(weight|bias)|embeddings\.position_ids)|(cls|classifier|qa_outputs)\..*"


@keras.saving.register_keras_serializable("unet_keras")
class BertEncoder(frozen.Frozen):
    """Prompts to BERT's hidden states; made by ``from_hf`` or ``from_preset``, which take the options below.

    length      tokens of the context, with [CLS] and [SEP]; at most the model's 512
    layer       whose output: -1 the last, -2 the penultimate ..., 0 the embeddings; BERT has no final norm
    pooled      None, "mean": the last layer's mean over the tokens that are no padding (not scaled to length 1), or
                "cls": the last layer's first token
    mask        give ``context_mask``, and hide the padding from BERT's own attention too, as it was trained
    batch_size  prompts at a time
    """

    def __init__(self, parts, source, *, length=77, layer=-1, pooled=None, mask=True, batch_size=32):
        frozen.check_flags(mask=mask)
        frozen.check_choice("pooled", pooled, (None, *POOLS))
        backbone = parts.backbone
        check_fits(parts.vocabulary, backbone.vocabulary_size, length, backbone.max_sequence_length)
        options = {"length": length, "layer": layer, "pooled": pooled, "mask": mask}
        super().__init__(_model(backbone, layer, pooled, mask), parts, source, options, batch_size)

    def pool(self, outputs, tokens, real):
        return POOLS[self.options["pooled"]](outputs["last"], real)

    @staticmethod
    def read(folder, tokenizer, dtype):
        return _read(folder, tokenizer, dtype)

    @staticmethod
    def read_preset(handle, dtype):
        return _read_preset(handle, dtype)


def _mean(states, real):
    weight = real[:, :, None].astype("float32")
    return (states * weight).sum(axis=1) / weight.sum(axis=1)


POOLS = {"mean": _mean, "cls": lambda states, real: np.ascontiguousarray(states[:, 0])}


def _model(backbone, layer, pooled, mask):
    inputs = frozen.inputs()
    tokens = backbone.token_embedding(inputs["tokens"])
    segments = backbone.segment_embedding(keras.ops.zeros_like(inputs["tokens"]))
    x = backbone.embeddings_add((tokens, backbone.position_embedding(tokens), segments))
    states = [backbone.embeddings_layer_norm(x)]
    for block in backbone.transformer_layers:
        states.append(block(states[-1], padding_mask=inputs["mask"] if mask else None))
    outputs = {"context": frozen.choose(states, layer)} | ({"last": states[-1]} if pooled else {})
    return keras.Model(inputs if mask else {"tokens": inputs["tokens"]}, outputs, name="bert_encoder")


# ---- reading ----------------------------------------------------------------------------------------------------


def _read_preset(handle, dtype):
    keras_hub = hub.keras_hub()
    backbone = keras_hub.models.BertBackbone.from_preset(handle, dtype=dtype)
    vocabulary = of_keras_hub(keras_hub.models.BertTokenizer.from_preset(handle), FRAME)
    return frozen.Parts(backbone, vocabulary, frozen.settings_of_preset(backbone, dtype))


def _read(folder, tokenizer, dtype):
    path = folder / "config.json"
    config = read_json(path)
    hub.check_config(config, path, types={"bert"}, only=ONLY)
    config = {name: config.get(name, value) for name, value in DEFAULTS.items()}
    vocabulary = read_vocabulary(tokenizer, FRAME, _tokenizer)
    backbone, tensors = _backbone(config, dtype), Tensors(folder)
    variables = [v for layer in backbone.layers if layer.name != "pooled_dense" for v in layer.weights]
    hub.assign(tensors, _table(backbone, tensors), variables, elsewhere=ELSEWHERE)
    return frozen.Parts(backbone, vocabulary, frozen.settings(config, dtype))


def _backbone(config, dtype):
    # KerasHub reads such folders too, but leaves out the settings below and takes tensors by the ends of their names.
    backbone = hub.keras_hub().models.BertBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_sequence_length=config["max_position_embeddings"],
        num_segments=config["type_vocab_size"],
        dropout=0.0,
        dtype=dtype,
    )
    backbone.embeddings_layer_norm.epsilon = config["layer_norm_eps"]
    for block in backbone.transformer_layers:
        block._self_attention_layer_norm.epsilon = config["layer_norm_eps"]
        block._feedforward_layer_norm.epsilon = config["layer_norm_eps"]
        block._feedforward_intermediate_dense.activation = ACTIVATIONS[config["hidden_act"]]
    return backbone


def _table(backbone, tensors):
    embeddings = {
        "word_embeddings.weight": backbone.token_embedding.embeddings,
        "position_embeddings.weight": backbone.position_embedding.position_embeddings,
        "token_type_embeddings.weight": backbone.segment_embedding.embeddings,
        "LayerNorm.weight": backbone.embeddings_layer_norm.gamma,
        "LayerNorm.bias": backbone.embeddings_layer_norm.beta,
    }
    table = {f"embeddings.{name}": variable for name, variable in embeddings.items()}
    for number, block in enumerate(backbone.transformer_layers):
        table |= {f"encoder.layer.{number}.{name}": variable for name, variable in _block_table(block).items()}
    return {_spelt(name, tensors): variable for name, variable in table.items()}


def _spelt(name, tensors):
    """Give a tensor's name as the file has it: the head's models prefix "bert.", old files say gamma and beta."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return next((n for n in (name, f"bert.{name}", old, f"bert.{old}") if n in tensors), name)


def _block_table(block):
    attention = block._self_attention_layer
    dense = {
        "attention.self.query": attention.query_dense,
        "attention.self.key": attention.key_dense,
        "attention.self.value": attention.value_dense,
        "attention.output.dense": attention.output_dense,
        "intermediate.dense": block._feedforward_intermediate_dense,
        "output.dense": block._feedforward_output_dense,
    }
    norms = {
        "attention.output.LayerNorm": block._self_attention_layer_norm,
        "output.LayerNorm": block._feedforward_layer_norm,
    }
    return (
        {f"{name}.weight": Linear(layer.kernel) for name, layer in dense.items()}
        | {f"{name}.bias": layer.bias for name, layer in dense.items()}
        | {f"{name}.weight": norm.gamma for name, norm in norms.items()}
        | {f"{name}.bias": norm.beta for name, norm in norms.items()}
    )


def _tokenizer(folder):
    if not (folder / "vocab.txt").is_file():
        raise ValueError(f"{folder} must hold tokenizer.json or vocab.txt; or give tokenizer=.")
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    lower, accents = config.get("do_lower_case", True), config.get("strip_accents")
    return hub.keras_hub().models.BertTokenizer(
        (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n"),
        lowercase=lower,
        strip_accents=lower if accents is None else accents,  # as transformers: they go with the capitals
        split_on_cjk=config.get("tokenize_chinese_chars", True),
        special_tokens_in_strings=True,
    )
