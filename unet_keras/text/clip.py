"""CLIP's text encoder, frozen: the context of Stable Diffusion 1.5 and 2, both encoders of SDXL.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

import keras
from keras import ops

from unet_keras.files import Tensors, read_json
from unet_keras.text import frozen, hub
from unet_keras.text.hub import Linear
from unet_keras.text.vocabulary import Frame, check_fits, of_keras_hub, pad_token, read_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"

# What transformers takes where config.json says nothing, and the names that activations have there.
DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}  # fmt: skip
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
ELSEWHERE = r"(vision_model|visual_projection)\..*|logit_scale|(text_model\.)?embeddings\.position_ids"


@keras.saving.register_keras_serializable("unet_keras")
class ClipEncoder(frozen.Frozen):
    """Prompts to CLIP's hidden states; made by ``from_hf`` or ``from_preset``, which take the options below.

    length      tokens of the context, with the start and end token; at most the model's 77
    layer       whose output: -1 the last (SD 1.5; SD 2, whose folders leave OpenCLIP's last layer out), -2 the
                penultimate (SDXL), 0 the embeddings
    norm        with the final LayerNorm (SD 1.5, SD 2) or as the layer left it (SDXL)
    pooled      None, "eos": the last layer's output, normed, at the first end token, or "projected": that through the
                model's text projection (SDXL's second encoder)
    mask        give ``context_mask`` too; the networks of SD look at the padding, so False is the default. CLIP's
                own attention is causal: padding, which comes last, changes no token before it.
    batch_size  prompts at a time
    """

    def __init__(self, parts, source, *, length=77, layer=-1, norm=True, pooled=None, mask=False, batch_size=32):
        frozen.check_flags(norm=norm, mask=mask)
        frozen.check_choice("pooled", pooled, (None, "eos", "projected"))
        if pooled == "projected" and parts.projection is None:
            raise ValueError('pooled="projected" needs a model with a text_projection; this one has none: use "eos".')
        backbone = parts.backbone
        check_fits(parts.vocabulary, backbone.vocabulary_size, length, backbone.max_sequence_length)
        options = {"length": length, "layer": layer, "norm": norm, "pooled": pooled, "mask": mask}
        super().__init__(_model(parts, **options), parts, source, options, batch_size)

    def pool(self, outputs, tokens, real):
        return outputs["pooled"]

    @staticmethod
    def read(folder, tokenizer, dtype):
        return _read(folder, tokenizer, dtype)

    @staticmethod
    def read_preset(handle, dtype):
        return _read_preset(handle, dtype)


def _model(parts, length, layer, norm, pooled, mask):
    backbone, tokens = parts.backbone, frozen.inputs()["tokens"]
    states = [backbone.embedding(tokens)]
    for block in backbone.encoder_layers:
        states.append(block(states[-1]))
    outputs = {"context": frozen.choose(states, layer, backbone.layer_norm if norm else None)}
    if pooled:
        # At the first of the end tokens, for SD pads with them.
        end = ops.cast(ops.equal(tokens, parts.vocabulary.end), "int32")
        first = ops.expand_dims(ops.one_hot(ops.argmax(end, axis=-1), length, dtype=states[-1].dtype), 1)
        eos = ops.squeeze(ops.matmul(first, backbone.layer_norm(states[-1])), 1)
        outputs["pooled"] = parts.projection(eos) if pooled == "projected" else eos
    return keras.Model({"tokens": tokens}, outputs, name="clip_text_encoder")


# ---- reading ----------------------------------------------------------------------------------------------------


def _read_preset(handle, dtype):
    keras_hub = hub.keras_hub()
    whole = keras_hub.models.CLIPBackbone.from_preset(handle, dtype=dtype)
    tokenizer = keras_hub.models.CLIPTokenizer.from_preset(handle)
    text = whole.text_encoder  # in the number format that it was saved in: dtype reached the whole alone
    backbone = type(text).from_config({**text.get_config(), "dtype": dtype})
    backbone.set_weights(text.get_weights())
    _set_epsilon(backbone, DEFAULTS["layer_norm_eps"])
    vocabulary, settings = of_keras_hub(tokenizer, Frame(START, END, END)), frozen.settings_of_preset(backbone, dtype)
    return frozen.Parts(backbone, vocabulary, settings, whole.text_projection)


def _read(folder, tokenizer, dtype):
    config = _config(folder / "config.json")
    vocabulary = read_vocabulary(tokenizer, Frame(START, END, pad_token(tokenizer, END)), _tokenizer)
    backbone, tensors = _backbone(config, dtype), Tensors(folder)
    projection, table = None, _table(backbone, "text_model." if "text_model.final_layer_norm.bias" in tensors else "")
    if "text_projection.weight" in tensors:
        projection = keras.layers.Dense(config["projection_dim"], use_bias=False, dtype=dtype, name="text_projection")
        projection.build((None, config["hidden_size"]))
        table["text_projection.weight"] = Linear(projection.kernel)
    variables = backbone.weights + (projection.weights if projection else [])
    hub.assign(tensors, table, variables, elsewhere=ELSEWHERE)
    return frozen.Parts(backbone, vocabulary, frozen.settings(config, dtype), projection)


def _config(path):
    given = read_json(path)
    hub.check_config(given, path, types={"clip", "clip_text_model"}, only={})
    text = given
    if given["model_type"] == "clip":  # the older key wins, as in transformers; the width of the projection is shared
        text = (given.get("text_config") or {}) | (given.get("text_config_dict") or {})
        text = {**text, "model_type": "clip_text_model", "projection_dim": given.get("projection_dim", 512)}
    hub.check_config(text, path, types={"clip_text_model"}, only={"hidden_act": ACTIVATIONS})
    return {name: text.get(name, value) for name, value in DEFAULTS.items()}


def _backbone(config, dtype):
    backbone = hub.keras_hub().models.CLIPTextEncoder(
        vocabulary_size=config["vocab_size"],
        embedding_dim=config["hidden_size"],
        hidden_dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        intermediate_dim=config["intermediate_size"],
        intermediate_activation=ACTIVATIONS[config["hidden_act"]],
        max_sequence_length=config["max_position_embeddings"],
        dtype=dtype,
    )
    _set_epsilon(backbone, config["layer_norm_eps"])
    return backbone


def _set_epsilon(backbone, epsilon):
    # KerasHub has 1e-6 in the final norm, where every CLIP has 1e-5, and 1e-5 fixed in the others.
    norms = [norm for block in backbone.encoder_layers for norm in (block.layer_norm_1, block.layer_norm_2)]
    for norm in [*norms, backbone.layer_norm]:
        norm.epsilon = epsilon


def _table(backbone, prefix):
    embeddings = backbone.embedding
    table = {
        "embeddings.token_embedding.weight": embeddings.token_embedding.embeddings,
        "embeddings.position_embedding.weight": embeddings.position_embedding.position_embeddings,
        "final_layer_norm.weight": backbone.layer_norm.gamma,
        "final_layer_norm.bias": backbone.layer_norm.beta,
    }
    for number, block in enumerate(backbone.encoder_layers):
        table |= {f"encoder.layers.{number}.{name}": variable for name, variable in _block_table(block).items()}
    return {prefix + name: variable for name, variable in table.items()}


def _block_table(block):
    dense = {
        "self_attn.q_proj": block.attention.query_dense,
        "self_attn.k_proj": block.attention.key_dense,
        "self_attn.v_proj": block.attention.value_dense,
        "self_attn.out_proj": block.attention.output_dense,
        "mlp.fc1": block.dense_1,
        "mlp.fc2": block.dense_2,
    }
    norms = {"layer_norm1": block.layer_norm_1, "layer_norm2": block.layer_norm_2}
    return (
        {f"{name}.weight": Linear(layer.kernel) for name, layer in dense.items()}
        | {f"{name}.bias": layer.bias for name, layer in dense.items()}
        | {f"{name}.weight": norm.gamma for name, norm in norms.items()}
        | {f"{name}.bias": norm.beta for name, norm in norms.items()}
    )


def _tokenizer(folder):
    names = ("vocab.json", "merges.txt")
    if not all((folder / name).is_file() for name in names):
        raise ValueError(f"{folder} must hold tokenizer.json, or {' and '.join(names)}; or give tokenizer=.")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    return hub.keras_hub().models.CLIPTokenizer(read_json(folder / "vocab.json"), merges)
