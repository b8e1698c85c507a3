"""T5's encoder half, frozen: the context of Imagen, PixArt and, beside CLIP, of SD 3.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"; version 1.1
has a gated GELU.
"""

import functools
import warnings
from contextlib import contextmanager

import keras

from unet_keras.files import Tensors, read_json
from unet_keras.text import frozen, hub
from unet_keras.text.hub import Linear
from unet_keras.text.vocabulary import Frame, check_fits, of_keras_hub, read_vocabulary

FRAME = Frame(None, "</s>", "<pad>")

# What transformers takes where config.json says nothing.
DEFAULTS = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu",
}  # fmt: skip
BUCKETS = 32  # of relative positions; fixed in KerasHub
ELSEWHERE = r"decoder\..*|lm_head\.weight"


def gelu_tanh(x):
    """Give GELU by its tanh formula, which T5 1.1 was trained with."""
    return keras.activations.gelu(x, approximate=True)


# feed_forward_proj in config.json: the activation, and whether it gates a second projection.
FORWARDS = {
    "relu": ("relu", False), "gated-gelu": (gelu_tanh, True), "gated-silu": ("silu", True), "gelu": ("gelu", False),
}  # fmt: skip


@keras.saving.register_keras_serializable("unet_keras")
class T5Encoder(frozen.Frozen):
    """Prompts to T5's hidden states; made by ``from_hf`` or ``from_preset``, which take the options below.

    length      tokens of the context, with the end token; T5's positions are relative, so any length goes
    layer       whose output: -1 the last, -2 the penultimate ..., 0 the embeddings
    norm        with the final norm
    mask        give ``context_mask``, and hide the padding from T5's own attention too (Imagen, PixArt); SD 3: False
    batch_size  prompts at a time
    """

    def __init__(self, parts, source, *, length=77, layer=-1, norm=True, mask=True, batch_size=32):
        frozen.check_flags(norm=norm, mask=mask)
        check_fits(parts.vocabulary, parts.backbone.embedding.input_dim, length, None)
        options = {"length": length, "layer": layer, "norm": norm, "mask": mask}
        super().__init__(_model(parts.backbone, layer, norm, mask), parts, source, options, batch_size)

    @staticmethod
    def read(folder, tokenizer, dtype):
        return _read(folder, tokenizer, dtype)

    @staticmethod
    def read_preset(handle, dtype):
        return _read_preset(handle, dtype)


class Half:
    """The layers of T5's encoder, in KerasHub's classes: an embedding, blocks and a norm."""

    def __init__(self, embedding, blocks, norm):
        self.embedding, self.blocks, self.norm = embedding, blocks, norm
        for block in blocks:
            block.self_attention.supports_masking = True  # it does; said, Keras warns no longer, see _quiet

    @property
    def weights(self):
        return [w for layer in (self.embedding, *self.blocks, self.norm) for w in layer.weights]


def _model(half, layer, norm, mask):
    inputs = frozen.inputs()
    states, bias = [half.embedding(inputs["tokens"])], None
    for block in half.blocks:  # the first block makes the bias of positions, with the mask in it, for all
        visible = inputs["mask"][:, None, :] if mask else None
        hidden, bias = block(states[-1], attention_mask=visible, position_bias=bias)
        states.append(hidden)
    inputs = inputs if mask else {"tokens": inputs["tokens"]}
    return keras.Model(
        inputs, {"context": frozen.choose(states, layer, half.norm if norm else None)}, name="t5_encoder"
    )


# ---- reading ----------------------------------------------------------------------------------------------------


def _read_preset(handle, dtype):
    _check_dtype(dtype)
    keras_hub = hub.keras_hub()
    with _quiet():
        whole = keras_hub.models.T5Backbone.from_preset(handle, dtype=dtype)
    tokenizer = keras_hub.models.T5Tokenizer.from_preset(handle)
    return frozen.Parts(_half_of(whole), of_keras_hub(tokenizer, FRAME), frozen.settings_of_preset(whole, dtype))


def _read(folder, tokenizer, dtype):
    _check_dtype(dtype)
    config = _config(folder / "config.json")
    vocabulary = read_vocabulary(tokenizer, FRAME, _tokenizer)
    half, tensors = _half(config, dtype), Tensors(folder)
    hub.assign(tensors, _table(half, tensors), half.weights, elsewhere=_elsewhere(tensors))
    return frozen.Parts(half, vocabulary, frozen.settings(config, dtype))


def _check_dtype(dtype):
    if "float16" in str(dtype).replace("bfloat16", ""):
        raise ValueError(f"dtype {dtype!r} overflows in T5: use 'float32' or 'bfloat16'.")


def _config(path):
    only = {"feed_forward_proj": FORWARDS, "relative_attention_num_buckets": (BUCKETS,)}
    config = read_json(path)
    hub.check_config(config, path, types={"t5"}, only=only)
    return {name: config.get(name, value) for name, value in DEFAULTS.items()}


def _half(config, dtype):
    # A whole T5Backbone would carry a decoder as large again; so its layers, by their classes.
    activation, gated = FORWARDS[config["feed_forward_proj"]]
    sizes = {"num_heads": config["num_heads"], "hidden_dim": config["d_model"], "intermediate_dim": config["d_ff"]}
    rest = {"key_value_dim": config["d_kv"], "layer_norm_epsilon": config["layer_norm_epsilon"], "dtype": dtype}
    rest |= {"dropout": 0.0, "activation": activation, "use_gated_activation": gated}
    block, norm = _classes()

    def build(number):
        layer = block(False, **sizes, **rest, use_relative_attention_bias=number == 0, name=f"block{number}")
        layer.self_attention.relative_attention_max_distance = config["relative_attention_max_distance"]
        return layer

    embedding = keras.layers.Embedding(config["vocab_size"], config["d_model"], dtype=dtype, name="token_embedding")
    blocks = [build(number) for number in range(config["num_layers"])]
    half = Half(embedding, blocks, norm(config["layer_norm_epsilon"], dtype=dtype, name="final_norm"))
    _model(half, -1, True, True)  # a model's layers make their variables when they are called
    return half


@functools.cache
def _classes():
    with _quiet():
        sample = hub.keras_hub().models.T5Backbone(2, num_layers=1, num_heads=1, hidden_dim=2, intermediate_dim=2)
    return type(sample.encoder_transformer_layers[0]), type(sample.encoder_layer_norm)


@contextmanager
def _quiet():
    """Silence what Keras says of KerasHub's attention, which takes its mask as an argument and applies it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s).*passed an input with a mask attached to it", UserWarning)
        yield


def _half_of(whole):
    return Half(whole.token_embedding, whole.encoder_transformer_layers, whole.encoder_layer_norm)


def _embedding_name(tensors):
    return "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"


def _elsewhere(tensors):
    """Give the names of the decoder's tensors, and of the second copy of the embeddings that some files hold."""
    return ELSEWHERE + r"|encoder\.embed_tokens\.weight" * (_embedding_name(tensors) == "shared.weight")


def _table(half, tensors):
    table = {
        _embedding_name(tensors): half.embedding.embeddings,
        "encoder.final_layer_norm.weight": half.norm.weight,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": half.blocks[
            0
        ].self_attention.relative_attention_bias,
    }
    for number, block in enumerate(half.blocks):
        table |= {f"encoder.block.{number}.layer.{name}": variable for name, variable in _block_table(block).items()}
    return table


def _block_table(block):
    attention, forward = block.self_attention, "1.DenseReluDense"
    inner = (
        {"wi_0": block.input_projector, "wi_1": block.gate_projector}
        if block.use_gated_activation
        else {"wi": block.input_projector}
    )
    dense = {
        "0.SelfAttention.q": attention.query_projector,
        "0.SelfAttention.k": attention.key_projector,
        "0.SelfAttention.v": attention.value_projector,
        "0.SelfAttention.o": attention.output_projector,
        f"{forward}.wo": block.output_projector,
    } | {f"{forward}.{name}": layer for name, layer in inner.items()}
    norms = {"0.layer_norm": block.self_attention_layer_norm, "1.layer_norm": block.layer_norm}
    return {f"{name}.weight": Linear(layer.kernel) for name, layer in dense.items()} | {
        f"{name}.weight": norm.weight for name, norm in norms.items()
    }


def _tokenizer(folder):
    if not (folder / "spiece.model").is_file():
        raise ValueError(f"{folder} must hold tokenizer.json or spiece.model; or give tokenizer=.")
    return hub.keras_hub().models.T5Tokenizer(proto=(folder / "spiece.model").read_bytes())
