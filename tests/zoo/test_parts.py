"""Networks written by hand out of our parts are those of the public configurations; a mask is diffusers' mask."""

from functools import partial

import keras
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import normal, output_of

from unet_keras import (
    Level,
    build_unet,
    keep_filters,
    masked_sequence,
    nearest_conv,
    norm_head,
    res_block,
    sandwich,
    spatial_transformer,
    strided_conv,
)
from unet_keras.files import Tensors
from unet_keras.nn.abstract import shapes_only
from unet_keras.nn.blocks import conv
from unet_keras.zoo import (
    adm_imagenet64,
    adm_imagenet128,
    adm_imagenet256,
    adm_imagenet512,
    ddpm_256,
    ddpm_cifar10,
    instruct_pix2pix,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_inpainting,
    stable_diffusion_xl,
)
from unet_keras.zoo.diffusers.describe import _difference, config_of
from unet_keras.zoo.diffusers.network import unet_of
from unet_keras.zoo.diffusers.weights import load

from .helpers import NAMES, randomized

once = pytest.mark.skipif(keras.backend.backend() != "torch", reason="shapes are the same on every backend")

D, A, C = "DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"
U, AU, CU = "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D"

DDPM = {
    "_class_name": "UNet2DModel",
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
SD = {"_class_name": "UNet2DConditionModel", "sample_size": 64}
SD1 = SD | {"cross_attention_dim": 768}
SD2 = SD | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}

PUBLIC = {
    "DDPM, CIFAR-10": (
        ddpm_cifar10,
        35_746_307,
        DDPM
        | {
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": (D, A, D, D),
            "up_block_types": (U, U, AU, U),
            "dropout": 0.1,
        },
    ),
    "DDPM, 256": (
        ddpm_256,
        113_673_219,
        DDPM
        | {
            "sample_size": 256,
            "block_out_channels": (128, 128, 256, 256, 512, 512),
            "down_block_types": (D, D, D, D, A, D),
            "up_block_types": (U, AU, U, U, U, U),
        },
    ),
    "Stable Diffusion 1": (stable_diffusion_1, 859_520_964, SD1),
    "inpainting": (stable_diffusion_inpainting, 859_535_364, SD1 | {"in_channels": 9}),
    "instruct-pix2pix": (instruct_pix2pix, 859_532_484, SD1 | {"in_channels": 8}),
    "Stable Diffusion 2, base": (stable_diffusion_2, 865_910_724, SD2),
    "Stable Diffusion 2": (partial(stable_diffusion_2, 96), 865_910_724, SD2 | {"sample_size": 96}),
    "Stable Diffusion XL": (
        stable_diffusion_xl,
        2_567_463_684,
        SD
        | {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (D, C, C),
            "up_block_types": (CU, CU, U),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}


@once
@pytest.mark.parametrize("name", PUBLIC)
def test_networks_of_the_zoo_are_the_public_ones(name):
    """On abstract shapes, without memory: the count of parameters, and layer for layer the configuration's network."""
    build, parameters, config = PUBLIC[name]
    with shapes_only():
        ours, theirs = build(), unet_of(config)
    assert ours.count_params() == theirs.count_params() == parameters
    assert _difference(ours, theirs) is None


@once
def test_the_configuration_of_a_network_of_the_zoo():
    with shapes_only():
        said = config_of(ddpm_cifar10())
    # One head of all 256 channels is said as heads of 256.
    expected = PUBLIC["DDPM, CIFAR-10"][2] | {"attention_head_dim": 256}
    assert {field: said[field] for field in expected} == expected


@once
@pytest.mark.parametrize(
    ("build", "parameters", "filters", "depth", "attention", "dim"),
    [
        (adm_imagenet64, 295_904_454, (192, 384, 576, 768), 3, 1, None),
        (adm_imagenet128, 421_529_606, (256, 256, 512, 768, 1024), 2, 2, None),
        (adm_imagenet256, 553_838_086, (256, 256, 512, 512, 1024, 1024), 2, 3, None),
        (adm_imagenet512, 558_997_638, (128, 256, 256, 512, 512, 1024, 1024), 2, 4, 1024),
    ],
)
def test_networks_of_adm_have_the_parameters_of_theirs(build, parameters, filters, depth, attention, dim):
    """The paper rounds to 296, 422, 554 and 559 million; diffusers' own network of the same shape, to the number.

    At 512 x 512 the timestep has twice the waves that diffusers' network of as many filters can be told.
    """
    with shapes_only():
        ours = build()
    kinds = ["Resnet" if i < attention else "Attn" for i in range(len(filters))]
    with torch.device("meta"):
        theirs = UNet2DModel(
            in_channels=3,
            out_channels=6,
            block_out_channels=filters,
            layers_per_block=depth,
            down_block_types=["ResnetDownsampleBlock2D" if k == "Resnet" else A for k in kinds],
            up_block_types=["ResnetUpsampleBlock2D" if k == "Resnet" else AU for k in kinds[::-1]],
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=1000,
            attention_head_dim=64,
            attn_norm_num_groups=32,
            time_embedding_dim=dim,
        )
    waves = 0 if dim is None else (256 - filters[0]) * dim
    assert ours.count_params() == parameters == theirs.num_parameters() + waves


# ---- masks ----------------------------------------------------------------------------------------------------------


def conditional_unet(size, depths, heads):
    """Stable Diffusion's network in small: ``heads`` and ``depths`` of the transformers by level; the last has none."""
    block = partial(res_block, groups=4)
    transformers = [
        partial(spatial_transformer, groups=4, depth=depth, heads=count)
        for depth, count in zip(depths, heads, strict=True)
    ]
    levels = [Level(8, 2, transformers[0]), Level(16, 2, transformers[1]), Level(16, 2)]
    return build_unet(
        (*size, 4),
        levels,
        stem=partial(conv, filters=8),
        block=block,
        bridge=partial(sandwich, block=block, attend=transformers[2]),
        down=partial(strided_conv, padding="symmetric"),
        up=keep_filters(nearest_conv),
        head=partial(norm_head, groups=4),
        skips="all",
        context=masked_sequence(5, 6),
    )


@pytest.mark.parametrize(
    ("size", "linear", "depths", "heads"),
    [
        ((8, 16), False, (1, 1, 1), (2, 2, 2)),
        ((11, 9), True, (1, 2, 2), (2, 4, 8)),
        ((None, None), False, (1, 1, 1), (2, 2, 2)),
    ],
)
def test_a_masked_text_is_read_as_diffusers_reads_it(size, linear, depths, heads, tmp_path):
    theirs = randomized(
        UNet2DConditionModel(
            block_out_channels=(8, 16, 16),
            norm_num_groups=4,
            layers_per_block=2,
            down_block_types=(C, C, D),
            up_block_types=(U, CU, CU),
            cross_attention_dim=6,
            attention_head_dim=heads,
            transformer_layers_per_block=depths,
            use_linear_projection=linear,
        )
    )
    theirs.save_pretrained(tmp_path)
    ours = conditional_unet(size, depths, heads)
    load(ours, Tensors(tmp_path, "diffusion_pytorch_model"))
    given = {
        "sample": normal(2, 4, *(n or 13 for n in size)),
        "timestep": np.array([1, 999]),
        "encoder_hidden_states": normal(2, 5, 6, seed=1),
        "encoder_attention_mask": np.array([[True, True, False, True, False], [True, False, False, False, False]]),
    }
    with torch.no_grad():
        expected = theirs(**{name: torch.tensor(value) for name, value in given.items()}).sample
    named = {"image": given["sample"].transpose(0, 2, 3, 1), "timestep": given["timestep"].astype("float32")}
    named |= {NAMES[name]: given[name] for name in ("encoder_hidden_states", "encoder_attention_mask")}
    np.testing.assert_allclose(output_of(ours, named), expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)
