"""diffusers' networks with random weights, and the same inputs for theirs and for ours."""

import random

import numpy as np
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import normal, output_of

ADDED = ("text_embeds", "time_ids")
NAMES = {
    "class_labels": "label",
    "encoder_hidden_states": "context",
    "encoder_attention_mask": "context_mask",
    "text_embeds": "pooled",
    "time_ids": "sizes",
}


def randomized(theirs, seed=0):
    """Give every weight a random value; by default their norms do nothing and half of their biases are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in theirs.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise / np.sqrt(weight[0].numel()) if weight.dim() > 1 else weight + 0.3 * noise)
    return theirs.eval()


def made_of(config):
    """diffusers' network of a configuration, with random weights."""
    kind = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}[config["_class_name"]]
    return randomized(kind(**{k: v for k, v in config.items() if not k.startswith("_")}))


def given(theirs, size, batch=2):
    """Random inputs for their network, by their names; two timesteps, one of them late."""
    config = theirs.config
    inputs = {"sample": normal(batch, config.in_channels, *size), "timestep": np.array([1, 999][:batch])}
    kind = config.class_embed_type
    if kind is None and config.num_class_embeds:
        inputs["class_labels"] = np.arange(batch) % config.num_class_embeds
    elif kind == "timestep":
        inputs["class_labels"] = np.array([3.0, 700.0][:batch], "float32")
    elif kind is not None:
        wide = theirs.time_embedding.linear_2.out_features
        numbers = wide if kind == "identity" else config.projection_class_embeddings_input_dim
        inputs["class_labels"] = normal(batch, numbers, seed=1)
    if "cross_attention_dim" in config:
        width = config.encoder_hid_dim or config.cross_attention_dim
        inputs["encoder_hidden_states"] = normal(batch, 5, width, seed=2)
        if config.addition_embed_type:
            text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            inputs["text_embeds"] = normal(batch, text, seed=3)
            inputs["time_ids"] = np.arange(6 * batch).reshape(batch, 6).astype("float32") * 40
    return inputs


def their_output(theirs, inputs):
    """Run theirs; channels last, NumPy."""
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    added = {name: tensors.pop(name) for name in ADDED if name in tensors}
    with torch.no_grad():
        y = theirs(**tensors, **({"added_cond_kwargs": added} if added else {})).sample
    return y.permute(0, 2, 3, 1).numpy()


def our_inputs(ours, inputs):
    """The same inputs by our names."""
    image = inputs["sample"].transpose(0, 2, 3, 1)
    channels = ours.input["image"].shape[-1]
    named = {"image": image[..., :channels], "timestep": inputs["timestep"].astype("float32")}
    if image.shape[-1] > channels:
        named["beside"] = image[..., channels:]
    return named | {NAMES[k]: v for k, v in inputs.items() if k in NAMES}


def assert_same(theirs, ours, inputs):
    """Compare the two networks' outputs."""
    expected = their_output(theirs, inputs)
    assert expected.std() > 0.05
    np.testing.assert_allclose(output_of(ours, our_inputs(ours, inputs)), expected, atol=1e-4)


# ---- configurations -------------------------------------------------------------------------------------------------

TINY = {
    "tiny DDPM": {
        "_class_name": "UNet2DModel",
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "attention_head_dim": 3,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "sample_size": 32,
    },
    "tiny Stable Diffusion": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 8,
        "sample_size": 16,
    },
    "tiny Stable Diffusion XL": {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        "sample_size": 8,
    },
}
"""The networks of diffusers' own tests of pipelines."""


def random_config(seed):
    """A small configuration drawn at random, and an image size for it: odd where diffusers can."""
    r = random.Random(seed)
    levels, groups = r.choice([1, 2, 2, 3]), r.choice([1, 2, 4])
    conditional = seed % 2 == 1
    shift = r.choice(["default", "default", "scale_shift"])
    channels = tuple(groups * r.choice([2, 3, 4]) for _ in range(levels))
    config = {
        "in_channels": r.choice([3, 4, 5]),
        "out_channels": 3 if r.random() < 0.7 else 6,
        "block_out_channels": channels,
        "norm_num_groups": groups,
        "norm_eps": r.choice([1e-5, 1e-6]),
        "downsample_padding": r.choice([0, 1]),
        "flip_sin_to_cos": r.choice([True, False]),
        "freq_shift": r.choice([0, 1]) if channels[0] > 3 else 0,
        "resnet_time_scale_shift": shift,
        "center_input_sample": r.random() < 0.2,
        "dropout": r.choice([0.0, 0.1]),
    }
    if channels[0] < 4:  # too narrow for waves
        config["block_out_channels"] = channels = (4 * groups, *channels[1:])
    draw = _conditional if conditional else _unconditional
    config |= draw(r, channels, groups, shift)
    size = (r.choice([4, 8]) * 2 ** (levels - 1), 2 ** (levels + 1))
    resnet_up = any(kind.startswith("Resnet") for kind in config["up_block_types"][:-1])
    if conditional and not resnet_up and config["downsample_padding"] + r.randint(0, 1):
        size = (r.choice([9, 13]), r.choice([7, 11]))
    return config, size


def _unconditional(r, channels, groups, shift):
    kinds = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
    down = tuple(r.choice(kinds) for _ in channels)
    up = tuple(r.choice(["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]) for _ in channels)
    head_dim = r.choice([2, 3, None])
    config = {
        "_class_name": "UNet2DModel",
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": r.choice([1, 2]),
        "attention_head_dim": head_dim,
        "add_attention": r.random() < 0.8,
        "downsample_type": r.choice(["conv", "resnet"]),
        "upsample_type": r.choice(["conv", "resnet"]),
        "attn_norm_num_groups": r.choice([None, groups]),
        "time_embedding_dim": r.choice([None, 24]),
    }
    config |= r.choice(
        [{}, {"num_class_embeds": 3}, {"class_embed_type": "timestep"}, {"class_embed_type": "identity"}]
    )
    return config


def _conditional(r, channels, groups, shift):
    count = len(channels)
    kinds = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"]
    heads = tuple(r.choice([1, groups]) for _ in channels)
    config = {
        "_class_name": "UNet2DConditionModel",
        "down_block_types": tuple(r.choice(kinds) for _ in channels),
        "up_block_types": tuple(r.choice(["UpBlock2D", "CrossAttnUpBlock2D"]) for _ in channels),
        "mid_block_type": r.choice(["UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None]),
        "layers_per_block": r.choice([1, 2, tuple(r.choice([1, 2]) for _ in channels)]),
        "attention_head_dim": r.choice([groups, heads, min(3, *channels)]),
        "cross_attention_dim": r.choice([5, 8]),
        "use_linear_projection": r.choice([True, False]),
        "transformer_layers_per_block": r.choice([1, 2, tuple(r.choice([1, 2]) for _ in range(count))]),
        "encoder_hid_dim": r.choice([None, None, 7]),
        "conv_in_kernel": r.choice([3, 5]),
        "conv_out_kernel": r.choice([3, 1]),
    }
    projection = {"projection_class_embeddings_input_dim": 31}
    config |= r.choice(
        [
            {},
            {"num_class_embeds": 3, "class_embeddings_concat": True},
            {"class_embed_type": "projection", **projection},
            {"class_embed_type": "simple_projection", **projection},
            {"class_embed_type": "timestep"},
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 31,
            },
        ]
    )
    if not any("Cross" in str(kind) for kind in (*config["down_block_types"], *config["up_block_types"])):
        config["up_block_types"] = ("CrossAttnUpBlock2D", *config["up_block_types"][1:])
    return config
