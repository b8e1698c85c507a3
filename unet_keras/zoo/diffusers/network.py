"""A diffusers configuration as a network of our parts."""

from functools import partial

import keras
from keras import layers

from unet_keras.nn.blocks import (
    conv,
    keep_filters,
    nearest_conv,
    norm_add,
    norm_film,
    res_block,
    res_down,
    res_up,
    self_attention,
    spatial_transformer,
    strided_conv,
)
from unet_keras.nn.conditions import (
    class_label,
    pooled_and_sizes,
    position,
    projected,
    sequence,
    side_by_side,
    timestep,
    vector,
)
from unet_keras.nn.layers import image_shape
from unet_keras.nn.unet import Level, bridge, build_unet, norm_head, sandwich
from unet_keras.zoo.diffusers.config import CONDITIONAL, complete, per_level

SIZES = 6
"""Numbers that Stable Diffusion XL is told: two sizes and a corner. Its refiner is told five."""


def unet_of(config, *, size=None, maps=None, sizes=SIZES, name="unet") -> keras.Model:
    """Build the network of a diffusers configuration, a dictionary with ``_class_name``; weights are random.

    size      height and width of the images; the configuration's ``sample_size`` unless given, open without either
    maps      {name: channels} of those ``in_channels`` that are not the image, in their order; all that there are more
              of than ``out_channels`` are one map, ``beside``, unless given. Empty for none, all channels the image's
    sizes     how many numbers ``sizes`` has, where there are such

    Raises ValueError for fields that it cannot honour: it names them.
    """
    config = complete(config)
    height, width = size = _size(config["sample_size"] if size is None else size)
    maps = _maps(config, maps)
    channels = config["in_channels"] - sum(maps.values())
    down, up = _levels(config, _halves(size, len(config["block_out_channels"]) - 1))
    block = _block(config)
    return build_unet(
        image_shape(height, width, channels),
        down,
        up_levels=up,
        maps=maps,
        stem=partial(_stem, config=config),
        block=block,
        bridge=_bridge(config, block),
        skips="all",
        head=partial(norm_head, groups=config["norm_num_groups"], eps=config["norm_eps"], size=_kernel(config, "out")),
        conditions=_conditions(config, sizes),
        context=_context(config),
        emb_width=config["time_embedding_dim"] or 4 * config["block_out_channels"][0],
        out_channels=config["out_channels"],
        name=name,
    )


def _size(size):
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def _halves(size, times):
    """Tell whether a size is known and stays whole however often it is halved: where all ways of padding agree."""
    return all(n is not None and n % 2**times == 0 for n in size)


def _maps(config, maps):
    if maps is None:
        more = config["in_channels"] - config["out_channels"]
        # Twice as many come out where the variance is learned: the image has half of them.
        return {"beside": more} if more > 0 else {}
    if sum(maps.values()) >= config["in_channels"]:
        raise ValueError(f"maps={maps} leave no channel of in_channels={config['in_channels']} to the image.")
    return maps


def _kernel(config, end):
    return config.get(f"conv_{end}_kernel", 3)


def _stem(x, *, config, name):
    if config["center_input_sample"]:
        x = layers.Rescaling(2.0, -1.0, dtype="float32", name=f"{name}_center")(x)
    return conv(x, config["block_out_channels"][0], _kernel(config, "in"), name=name)


# ---- levels ---------------------------------------------------------------------------------------------------------


def _block(config):
    modulate = norm_film if config["resnet_time_scale_shift"] == "scale_shift" else norm_add
    norm = {"groups": config["norm_num_groups"], "eps": config["norm_eps"]}
    return partial(res_block, modulate=modulate, dropout=config["dropout"], **norm)


def _levels(config, even):
    """Give the levels of the way down and of the way up, fine to coarse."""
    channels = config["block_out_channels"]
    count = len(channels)
    depths = per_level(config["layers_per_block"], count)
    kinds, up_kinds = config["down_block_types"], config["up_block_types"][::-1]
    transformers = per_level(config.get("transformer_layers_per_block", 1), count)
    reverse = config.get("reverse_transformer_layers_per_block")
    up_transformers = transformers if reverse is None else per_level(reverse, count)[::-1]
    down, up = [], []
    for i, (filters, depth) in enumerate(zip(channels, depths, strict=True)):
        # Their blocks end with the upsampling that ours of the next finer level begin with.
        coarser = up_kinds[min(i + 1, count - 1)]
        attend = _attend(config, kinds[i], i, transformers[i])
        down.append(Level(filters, depth, attend, down=_down(config, kinds[i], even)))
        up.append(Level(filters, depth, _attend(config, up_kinds[i], i, up_transformers[i]), up=_up(config, coarser)))
    return down, up


def _attend(config, kind, i, depth):
    channels = config["block_out_channels"]
    heads_or_dim = per_level(config["attention_head_dim"], len(channels))[i]
    groups = config["norm_num_groups"]
    if kind.startswith("CrossAttn"):  # where the field says how many heads there are
        return partial(spatial_transformer, depth=depth, heads=heads_or_dim, groups=groups)
    if kind.startswith("Attn"):
        return partial(self_attention, head_dim=heads_or_dim, groups=groups, eps=config["norm_eps"])
    return None


def _down(config, kind, even):
    resnet = kind == "ResnetDownsampleBlock2D" or (
        kind.startswith("Attn") and config.get("downsample_type") == "resnet"
    )
    if resnet:
        return partial(res_down, padding="same" if even else "valid", **_block(config).keywords)
    return partial(strided_conv, padding="symmetric" if config["downsample_padding"] else "same" if even else "end")


def _up(config, kind):
    attn_type = config.get("upsample_type") if kind.startswith("Attn") else None
    resnet = kind == "ResnetUpsampleBlock2D" or attn_type == "resnet"
    return keep_filters(partial(res_up, **_block(config).keywords) if resnet else nearest_conv)


def _bridge(config, block):
    kind, last = config["mid_block_type"], len(config["block_out_channels"]) - 1
    if kind is None:
        return _nothing
    if kind == "UNetMidBlock2DCrossAttn":
        depth = per_level(config["transformer_layers_per_block"], last + 1)[-1]
        return partial(sandwich, block=block, attend=_attend(config, "CrossAttn", last, depth))
    if config["_class_name"] == CONDITIONAL:
        return partial(bridge, filters=config["block_out_channels"][-1], block=block)
    return partial(sandwich, block=block, attend=_bridge_attention(config) if config["add_attention"] else None)


def _bridge_attention(config):
    plain = config["resnet_time_scale_shift"] == "default"
    groups = config["attn_norm_num_groups"] or (config["norm_num_groups"] if plain else None)
    return partial(self_attention, head_dim=config["attention_head_dim"], groups=groups, eps=config["norm_eps"])


def _nothing(x, emb=None, context=None, *, mask=None, name=None):
    """A bridge that is none."""
    return x


# ---- conditions -----------------------------------------------------------------------------------------------------


def _conditions(config, sizes):
    waves = {"shift": config["freq_shift"], "cosine_first": config["flip_sin_to_cos"]}
    time, dim = timestep(config["block_out_channels"][0], **waves), config["block_out_channels"][0]
    label = _label(config, dim, waves)
    conditions = [time] if label is None else [time, label]
    if config.get("class_embeddings_concat") and label is not None:
        conditions = [side_by_side(time, label)]
    if config.get("addition_embed_type") == "text_time":
        per_size, total = config["addition_time_embed_dim"], config["projection_class_embeddings_input_dim"]
        if not per_size or not total or total <= sizes * per_size:
            raise ValueError(
                f"addition_embed_type='text_time' with {sizes} sizes needs projection_class_embeddings_input_dim above "
                f"{sizes} times addition_time_embed_dim, got {total} and {per_size}."
            )
        conditions.append(pooled_and_sizes(total - sizes * per_size, sizes, per_size, **waves))
    return tuple(conditions)


def _label(config, dim, waves):
    kind, classes = config["class_embed_type"], config["num_class_embeds"]
    numbers = config.get("projection_class_embeddings_input_dim")
    if kind is None:
        return None if classes is None else class_label(classes)
    if kind == "timestep":
        return position(dim, name="label", **waves)
    if kind == "identity":
        return vector(config["time_embedding_dim"] or 4 * dim, name="label", project=None)
    if not numbers:
        raise ValueError(f"class_embed_type={kind!r} needs projection_class_embeddings_input_dim, got {numbers}.")
    return vector(numbers, name="label", **({} if kind == "projection" else {"project": _one_dense}))


def _one_dense(x, width, *, name):
    return layers.Dense(width, name=f"{name}_dense")(x)


def _context(config):
    if config["_class_name"] != CONDITIONAL:
        return None
    kinds = [*config["down_block_types"], config["mid_block_type"], *config["up_block_types"]]
    if not any("CrossAttn" in str(kind) for kind in kinds):
        raise ValueError(
            "down_block_types, mid_block_type and up_block_types hold no block that reads a context (CrossAttn...): a "
            "conditional network without one is not read. As a UNet2DModel it would be."
        )
    width = config["cross_attention_dim"]
    width = width[0] if isinstance(width, tuple) else width
    given = config["encoder_hid_dim"]
    if given is None:
        return sequence(None, width)
    return projected(sequence(None, given), width)
