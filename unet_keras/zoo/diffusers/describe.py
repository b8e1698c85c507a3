"""The diffusers configuration of a network of ours: read off its layers, and proved by building it anew."""

import re

import keras

from unet_keras.nn.abstract import shapes_only
from unet_keras.nn.attention import Attention
from unet_keras.nn.group_norm import GroupNorm
from unet_keras.nn.layers import TimestepEmbedding, channel_axis, size_of
from unet_keras.zoo.diffusers.config import CONDITIONAL, UNCONDITIONAL, complete
from unet_keras.zoo.diffusers.network import unet_of


def config_of(network: keras.Model) -> dict:
    """Say a network as a diffusers configuration, complete, with ``_class_name``.

    Raises ValueError for a network that diffusers cannot say: it names the first layer that differs from those of the
    nearest one that it can.
    """
    try:
        config = complete(_read(_Layers(network)))
        inputs = {x.name: x for x in network.inputs}
        maps = {name: x.shape[channel_axis()] for name, x in inputs.items() if len(x.shape) == 4 and name != "image"}
        sizes = {"sizes": inputs["sizes"].shape[-1]} if "sizes" in inputs else {}
        with shapes_only():
            twin = unet_of(config, size=size_of(inputs["image"].shape), maps=maps, **sizes)
    except (KeyError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{network.name} cannot be said as a network of diffusers: {error}.") from error
    odd = _difference(network, twin)
    if odd:
        raise ValueError(f"{network.name} cannot be said as a network of diffusers: {odd}.")
    return config


def _difference(network, twin):
    ours, theirs = ({layer.name: _facts(layer) for layer in model.layers} for model in (network, twin))
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            found = {k: v for k, v in (ours.get(name) or {}).items() if v != (theirs.get(name) or {}).get(k)}
            return f"it has {name} with {found}" if name in ours else f"it lacks {name}"
    return None


IRRELEVANT = ("dtype", "trainable", "name", "batch_shape", "kernel_initializer", "embeddings_initializer", "seed")


def _facts(layer):
    """What a layer computes: its configuration without that of its start and its storage, and what it is called on."""
    config = {k: v for k, v in layer.get_config().items() if k not in IRRELEVANT and not k.endswith("regularizer")}
    node = layer._inbound_nodes[0] if layer._inbound_nodes else None
    sources = [t._keras_history.operation.name for t in node.input_tensors] if node else []
    return {"kind": type(layer).__name__, "inputs": sources, **config}


class _Layers:
    """A network's layers by name, and the counts that their names hold."""

    def __init__(self, network):
        self.network = network
        self.named = {layer.name: layer for layer in network.layers}
        self.levels = self._count(r"down(\d+)_block")
        self.inputs = {x.name: x for x in network.inputs}

    def __getitem__(self, name):
        return self.named[name]

    def __contains__(self, name):
        return name in self.named

    def _count(self, pattern):
        found = [int(m[1]) for m in (re.match(pattern, name) for name in self.named) if m]
        return 1 + max(found, default=-1)

    def depth(self, level):
        return self._count(rf"down{level}_block(\d+)_conv1")

    def kind(self, attend):
        """ "CrossAttn", "Attn" or "": what a level's attention is, by the prefix of its layers' names."""
        if f"{attend}_proj_in" in self:
            return "CrossAttn"
        return "Attn" if f"{attend}_attention" in self else ""

    def transformers(self, attend):
        return self._count(rf"{attend}_layer(\d+)_self")

    def modulates(self):
        """Tell whether the timestep scales and shifts what is normalised, rather than being added before."""
        return self["down0_block0_emb"].units == 2 * self["down0_block0_conv1"].filters

    def heads(self, attend):
        name = f"{attend}_layer0_self" if f"{attend}_layer0_self" in self else f"{attend}_attention"
        attention = self[name]
        if not isinstance(attention, Attention):
            raise ValueError(f"{name} is no Attention")
        return attention


def _read(net):
    n = net.levels
    if not n or "stem" not in net or "head" not in net:
        raise ValueError("it has no levels of residual blocks between a stem and a head")
    norm, conditional = net["down0_block0_norm1"], any("_proj_in" in name for name in net.named)
    if not isinstance(norm, GroupNorm):
        raise ValueError("its blocks do not begin with a group norm")
    time = net["timestep_embedding"]
    config = {
        "_class_name": CONDITIONAL if conditional else UNCONDITIONAL,
        "sample_size": _sample_size(net),
        "in_channels": net["stem"].kernel.shape[2],
        "out_channels": net["head"].filters,
        "block_out_channels": tuple(net[f"down{i}_block0_conv1"].filters for i in range(n)),
        "layers_per_block": _same([net.depth(i) for i in range(n)], conditional),
        "norm_num_groups": norm.groups,
        "norm_eps": norm.epsilon,
        "dropout": net["down0_block0_dropout"].rate if "down0_block0_dropout" in net else 0.0,
        "resnet_time_scale_shift": "scale_shift" if net.modulates() else "default",
        "freq_shift": int(time.shift) if time.shift == int(time.shift) else time.shift,
        "flip_sin_to_cos": time.cosine_first,
        "center_input_sample": "stem_center" in net,
        "downsample_padding": _padding(net),
        **_time_width(net),
        **_label(net),
    }
    return config | (_conditional(net) if conditional else _unconditional(net)) | _kinds(net, conditional)


def _sample_size(net):
    height, width = size_of(net.inputs["image"].shape)
    return height if height == width else (height, width)


def _same(values, may_differ):
    if len(set(values)) > 1 and not may_differ:
        raise ValueError(f"its levels differ where diffusers' must not: {values}")
    return tuple(values) if len(set(values)) > 1 else values[0]


def _padding(net):
    for i in range(net.levels - 1):
        if f"down{i}_down_pad" in net:
            return 1 if net[f"down{i}_down_pad"].padding == ((1, 1), (1, 1)) else 0
    return 0 if any(f"down{i}_down" in net for i in range(net.levels - 1)) else 1


def _time_width(net):
    width, usual = net["timestep_dense2"].units, 4 * net["down0_block0_conv1"].filters
    return {} if width == usual else {"time_embedding_dim": width}


def _label(net):
    label = net.inputs.get("label")
    if label is None:
        return {}
    if "label_embedding" in net:
        embed = net["label_embedding"]
        timed = isinstance(embed, TimestepEmbedding)
        return {"class_embed_type": "timestep"} if timed else {"num_class_embeds": embed.input_dim}
    if "label_dense" in net or "label_dense1" in net:
        kind = "simple_projection" if "label_dense" in net else "projection"
        return {"class_embed_type": kind, "projection_class_embeddings_input_dim": label.shape[-1]}
    return {"class_embed_type": "identity"}


def _kinds(net, conditional):
    n = net.levels
    down, up = [], []
    for i in range(n):
        attn = net.kind(f"down{i}_attend0")
        resnet = f"down{i}_down_conv1" in net and not attn
        down.append("ResnetDownsampleBlock2D" if resnet else f"{attn}DownBlock2D")
        attn = net.kind(f"up{i}_attend0")
        resnet = f"up{i - 1}_up_conv1" in net and not attn
        up.append("ResnetUpsampleBlock2D" if resnet else f"{attn}UpBlock2D")
    types = {"down_block_types": tuple(down), "up_block_types": tuple(reversed(up))}
    if "bridge_block0_conv1" not in net:
        return types | {"mid_block_type": None}
    cross = conditional and net.kind("bridge_attend0") == "CrossAttn"
    return types | {"mid_block_type": "UNetMidBlock2DCrossAttn" if cross else "UNetMidBlock2D"}


def _unconditional(net):
    attends = [f"{where}{i}_attend0" for i in range(net.levels) for where in ("down", "up")] + ["bridge_attend0"]
    looking = [net.heads(attend) for attend in attends if net.kind(attend)]
    config = {"add_attention": net.kind("bridge_attend0") != ""}
    dims = {a.head_dim for a in looking}
    if looking:
        # One head of all channels is diffusers' None.
        single = all(a.heads == 1 for a in looking) and len(dims) > 1
        config["attention_head_dim"] = None if single else _same(sorted(dims), False)
    norm = net["bridge_attend0_norm"] if "bridge_attend0_norm" in net else None
    film = net.modulates()
    if norm is not None and (film or norm.groups != net["down0_block0_norm1"].groups):
        config["attn_norm_num_groups"] = norm.groups
    for i in range(net.levels - 1):
        if f"down{i}_down_conv1" in net and net.kind(f"down{i}_attend0"):
            config["downsample_type"] = "resnet"
        if f"up{i}_up_conv1" in net and net.kind(f"up{i + 1}_attend0"):
            config["upsample_type"] = "resnet"
    return config


def _conditional(net):
    n = net.levels
    attends = [f"down{i}_attend0" for i in range(n)]
    up_attends = [f"up{i}_attend0" for i in range(n)]
    context = net.inputs["context"]
    first = next(a for a in [*attends, *up_attends, "bridge_attend0"] if net.kind(a) == "CrossAttn")
    width = net[f"{first}_layer0_cross"].key.kernel.shape[0]
    down, up, heads = [], [], []
    last = "bridge_attend0" if net.kind("bridge_attend0") == "CrossAttn" else None
    for i in range(n):
        here = [a for a in (attends[i], up_attends[i]) if net.kind(a)]
        here += [last] if last and i == n - 1 else []
        one = net.heads(here[0]) if here else None
        cross = bool(here) and net.kind(here[0]) == "CrossAttn"
        heads.append(8 if one is None else one.heads if cross else one.head_dim)
        down.append(net.transformers(attends[i]) or (net.transformers(last) if last and i == n - 1 else 0))
        up.append(net.transformers(up_attends[i]))
    down, up = ([a or b or 1 for a, b in zip(x, y, strict=True)] for x, y in ((down, up), (up, down)))
    config = {
        "cross_attention_dim": width,
        "attention_head_dim": _same(heads, True),
        "transformer_layers_per_block": _same(down, True),
        "use_linear_projection": True,
        "conv_in_kernel": net["stem"].kernel_size[0],
        "conv_out_kernel": net["head"].kernel_size[0],
        "class_embeddings_concat": "side_by_side" in net,
    }
    if up != down:
        config["reverse_transformer_layers_per_block"] = tuple(reversed(up))
    if "context_dense" in net:
        config |= {"encoder_hid_dim": context.shape[-1], "encoder_hid_dim_type": "text_proj"}
    if "pooled" in net.inputs:
        dim = net["sizes_embedding"].width
        total = net.inputs["pooled"].shape[-1] + dim * net.inputs["sizes"].shape[-1]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": dim}
        config["projection_class_embeddings_input_dim"] = total
    return config
