"""The fields of diffusers' U-Net configurations: their defaults, and which of their values we can say.

A field that a file leaves out has its default; one that we do not know, or know and cannot honour, is an error.
"""

UNCONDITIONAL, CONDITIONAL = "UNet2DModel", "UNet2DConditionModel"

SHARED = {
    "sample_size": None,
    "center_input_sample": False,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}

DEFAULTS = {
    UNCONDITIONAL: {
        **SHARED,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (224, 448, 672, 896),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_type": "conv",
        "upsample_type": "conv",
        "attn_norm_num_groups": None,
        "add_attention": True,
        "num_train_timesteps": None,
    },
    CONDITIONAL: {
        **SHARED,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "only_cross_attention": False,
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "num_attention_heads": None,
        "dual_cross_attention": False,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "upcast_attention": False,
        "resnet_skip_time_act": False,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_act_fn": None,
        "timestep_post_act": None,
        "time_cond_proj_dim": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "projection_class_embeddings_input_dim": None,
        "attention_type": "default",
        "class_embeddings_concat": False,
        "mid_block_only_cross_attention": None,
        "cross_attention_norm": None,
        "addition_embed_type_num_heads": 64,
    },
}

KNOWN = {
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "time_embedding_type": ("positional",),
    "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "use_linear_projection": (False, True),
    "upcast_attention": (False, True),  # for half precision; diffusers' own fused attention does not look at it either
    "add_attention": (False, True),
    "center_input_sample": (False, True),
    "class_embeddings_concat": (False, True),
    "mid_block_only_cross_attention": (None, False),
}
"""The values that we can say, of fields that take one of a few."""

ONLY_DEFAULT = (
    "mid_block_scale_factor", "only_cross_attention", "num_attention_heads", "dual_cross_attention",
    "resnet_skip_time_act", "resnet_out_scale_factor", "time_embedding_act_fn", "timestep_post_act",
    "time_cond_proj_dim", "attention_type", "cross_attention_norm",
)  # fmt: skip
"""Fields that have no counterpart in our parts: of diffusers' many experiments, not of the checkpoints we know."""

COUNTS = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups",
    "attn_norm_num_groups", "sample_size", "time_embedding_dim", "num_class_embeds", "cross_attention_dim",
    "transformer_layers_per_block", "reverse_transformer_layers_per_block", "encoder_hid_dim", "conv_in_kernel",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim", "conv_out_kernel", "num_train_timesteps",
)  # fmt: skip
"""Fields that hold a whole number above 0, several, or, where they may, null."""

NEVER_NULL = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "conv_in_kernel", "conv_out_kernel",
)  # fmt: skip

LARGEST, MOST_BLOCKS = 2**20, 500
"""Of a count, and of the blocks and transformer layers of a network; Stable Diffusion XL has about a hundred."""

BLOCKS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn", None),
}


def complete(config: dict) -> dict:
    """Fill a configuration up with defaults and check it; raises ValueError that names the field at fault."""
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in DEFAULTS:
        raise ValueError(f"_class_name must be {UNCONDITIONAL} or {CONDITIONAL}, got {name!r}.")
    defaults = DEFAULTS[name]
    for field, value in config.items():
        if field not in defaults and not field.startswith("_") and value not in (None, False):
            raise ValueError(f"{name} has no field {field!r}, which is {value!r} here: it cannot be honoured.")
    full = {field: _plain(config.get(field, default)) for field, default in defaults.items()}
    # Published files have null for false, e.g. Stable Diffusion XL's upcast_attention.
    full |= {field: False for field, value in full.items() if value is None and defaults[field] is False}
    for field in ONLY_DEFAULT:
        if field in full and full[field] != _plain(defaults[field]):
            raise ValueError(f"{field}={full[field]!r} is not supported: it must be {defaults[field]!r}.")
    for field, values in KNOWN.items():
        if field in full and full[field] not in values:
            raise ValueError(f"{field}={full[field]!r} is not supported: it must be one of {values}.")
    _check_numbers(full)
    _check_levels(name, full)
    return {"_class_name": name, **full}


def _plain(value):
    """Tuples for lists, as JSON has no tuples."""
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def _flat(value):
    return [w for v in value for w in _flat(v)] if isinstance(value, tuple) else [value]


def _check_numbers(full):
    for field in COUNTS:
        if field not in full:
            continue
        values = _flat(full[field])
        allowed = values == [None] and field not in NEVER_NULL
        if not allowed and not (values and all(type(v) is int and 0 < v <= LARGEST for v in values)):
            raise ValueError(f"{field}={full[field]!r:.200} must be a whole number, or several, of 1 to {LARGEST}.")
    for field, low, high in (("dropout", 0, 1), ("norm_eps", 0, 1), ("freq_shift", -(2**20), 2**20)):
        if not (type(full[field]) in (int, float) and low <= full[field] <= high):
            raise ValueError(f"{field}={full[field]!r:.200} must be a number of {low} to {high}.")
    if not isinstance(full["block_out_channels"], tuple):
        raise ValueError(f"block_out_channels={full['block_out_channels']!r} must be a list.")
    blocks = max(_flat(full["layers_per_block"])) * len(full["block_out_channels"])
    blocks *= 1 + max(_flat(full.get("transformer_layers_per_block") or 0))
    if blocks > MOST_BLOCKS:
        raise ValueError(
            f"layers_per_block, transformer_layers_per_block: {blocks:,} blocks are more than can be built."
        )


def _check_levels(name, full):
    channels = full["block_out_channels"]
    for field, known in BLOCKS.items():
        kinds = full[field] if isinstance(full[field], tuple) else (full[field],)
        if not kinds or not all(isinstance(kind, str | None) for kind in kinds):
            raise ValueError(f"{field}={full[field]!r:.200} must be the names of blocks, of {known}.")
        kinds = tuple(kind.removeprefix("UNetRes") if kind else kind for kind in kinds)
        odd = [kind for kind in kinds if kind not in known or (name == UNCONDITIONAL and "Cross" in str(kind))]
        if odd:
            raise ValueError(f"{field} holds {odd[0]!r}, which is not supported in a {name}: use one of {known}.")
        if field != "mid_block_type" and len(kinds) != len(channels):
            raise ValueError(f"{field} has {len(kinds)} entries for {len(channels)} block_out_channels.")
        full[field] = kinds if field != "mid_block_type" else kinds[0]
    for field in ("layers_per_block", "attention_head_dim", "transformer_layers_per_block"):
        value = full.get(field)
        if isinstance(value, tuple) and (len(value) != len(channels) or name == UNCONDITIONAL):
            raise ValueError(f"{field}={value!r} must be one number, or one for each of {len(channels)} levels.")
        if isinstance(value, tuple) and any(isinstance(v, tuple) for v in value):
            raise ValueError(f"{field}={value!r} is not supported: the blocks of a level must be alike.")
    if full["norm_num_groups"] is None:
        raise ValueError("norm_num_groups=None is not supported: it must be a number.")
    if isinstance(full.get("cross_attention_dim"), tuple) and len(set(full["cross_attention_dim"])) > 1:
        raise ValueError(f"cross_attention_dim={full['cross_attention_dim']} is not supported: one context serves all.")


def per_level(value, count) -> tuple:
    """One value for each level."""
    return value if isinstance(value, tuple) else (value,) * count
