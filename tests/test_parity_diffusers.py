"""Small U-Nets of diffusers and ours of the same parts and weights give the same output."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import normal, output_of

from unet_keras import (
    Level,
    build_unet,
    class_label,
    keep_filters,
    masked_sequence,
    nearest_conv,
    norm_film,
    norm_head,
    res_block,
    res_down,
    res_up,
    sandwich,
    self_attention,
    spatial_transformer,
    strided_conv,
    timestep,
)
from unet_keras.nn.blocks import conv
from unet_keras.zoo.ddpm import residual_unet

# ---- weights across -------------------------------------------------------------------------------------------------


def randomized(theirs):
    """Give every weight a random value; by default their norms do nothing and half of their biases are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise / np.sqrt(weight[0].numel()) if weight.dim() > 1 else weight + 0.3 * noise)
    return theirs.eval()


def copy_unet(theirs, ours):
    """Copy all weights of a diffusers U-Net into ours: each of theirs is used, each of ours is set, once."""
    arrays = {}
    for name, modules in pairs(theirs):
        arrays[name] = [array for module in modules for array in arrays_of(module)]
    layers = {layer.name: layer for layer in ours.layers if layer.weights}
    assert layers.keys() == arrays.keys()
    assert sum(a.size for values in arrays.values() for a in values) == sum(p.numel() for p in theirs.parameters())
    for name, layer in layers.items():
        layer.set_weights([a.reshape(w.shape) for a, w in zip(arrays[name], layer.weights, strict=True)])


def arrays_of(module):
    """A torch module's weights in Keras's layout: kernel, then bias."""
    if isinstance(module, torch.nn.Embedding):
        return [module.weight.detach().numpy()]
    kernel, bias = module.weight.detach().numpy(), module.bias
    kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
    return [kernel] if bias is None else [kernel, bias.detach().numpy()]


def pairs(theirs):
    """Yield the name of each of our layers, with the modules of theirs that it stands for."""
    yield "stem", [theirs.conv_in]
    yield "timestep_dense1", [theirs.time_embedding.linear_1]
    yield "timestep_dense2", [theirs.time_embedding.linear_2]
    if theirs.class_embedding is not None:
        yield "label_embedding", [theirs.class_embedding]
    for i, block in enumerate(theirs.down_blocks):
        yield from level_pairs(f"down{i}", block)
        yield from resampler_pairs(f"down{i}_down", block.downsamplers)
    yield from level_pairs("bridge", theirs.mid_block)
    for i, block in enumerate(reversed(theirs.up_blocks)):
        yield from level_pairs(f"up{i}", block)
        yield from resampler_pairs(f"up{i - 1}_up", block.upsamplers)  # they end a level with it, we begin the next
    yield "head_norm", [theirs.conv_norm_out]
    yield "head", [theirs.conv_out]


def level_pairs(name, block):
    for i, resnet in enumerate(block.resnets):
        yield from resnet_pairs(f"{name}_block{i}", resnet)
    for i, attention in enumerate(getattr(block, "attentions", [])):
        kind = transformer_pairs if hasattr(attention, "transformer_blocks") else attention_pairs
        yield from kind(f"{name}_attend{i}", attention)


def resampler_pairs(name, modules):
    for module in modules or []:
        if hasattr(module, "conv1"):
            yield from resnet_pairs(name, module)
        else:
            yield name, [module.conv]


def resnet_pairs(name, resnet):
    roles = {"norm1": "norm1", "conv1": "conv1", "emb": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
    for role, module in roles.items():
        yield f"{name}_{role}", [getattr(resnet, module)]
    if resnet.conv_shortcut is not None:
        yield f"{name}_shortcut", [resnet.conv_shortcut]


def attention_pairs(name, attention):
    yield f"{name}_norm", [attention.group_norm]
    yield f"{name}_attention", projections(attention)


def projections(attention):
    return [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]]


def transformer_pairs(name, transformer):
    for role in ("norm", "proj_in", "proj_out"):
        yield f"{name}_{role}", [getattr(transformer, role)]
    for i, block in enumerate(transformer.transformer_blocks):
        for role in ("norm1", "norm2", "norm3"):
            yield f"{name}_layer{i}_{role}", [getattr(block, role)]
        yield f"{name}_layer{i}_self", projections(block.attn1)
        yield f"{name}_layer{i}_cross", projections(block.attn2)
        value, gate = halves(block.ff.net[0].proj)
        yield f"{name}_layer{i}_feed_value", [value]
        yield f"{name}_layer{i}_feed_gate", [gate]
        yield f"{name}_layer{i}_feed_out", [block.ff.net[2]]


def halves(linear):
    """The two linear maps that diffusers keeps as one: value, then gate."""
    parts = []
    for weight, bias in zip(linear.weight.chunk(2), linear.bias.chunk(2), strict=True):
        part = torch.nn.Linear(*weight.shape[::-1])
        part.weight, part.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        parts.append(part)
    return parts


# ---- UNet2DModel ----------------------------------------------------------------------------------------------------

D, A, U = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D"
CHANNELS = (8, 16, 16)
UNCONDITIONAL = {"block_out_channels": CHANNELS, "norm_num_groups": 4}


def unconditional_unet(attend, eps=1e-5, modulate=None, **options):
    """Our network of the same parts: two blocks a level, attention at the second level and the bridge."""
    block = partial(res_block, groups=4, eps=eps, **({"modulate": modulate} if modulate else {}))
    attend = partial(attend, groups=4, eps=eps)
    levels = [Level(8, 2), Level(16, 2, attend), Level(16, 2)]
    head = partial(norm_head, groups=4, eps=eps)
    return residual_unet((16, 8, 3), levels, block=block, attend=attend, head=head, **options)


def assert_same_output(theirs, ours, **conditions):
    """Compare at two timesteps, one of them late, where embeddings of less precision would show."""
    theirs, image, t = (
        randomized(theirs),
        normal(2, *(n or 13 for n in ours.input["image"].shape[1:])),
        np.array([1, 999]),
    )
    copy_unet(theirs, ours)
    named = {"class_labels": "label", "encoder_hidden_states": "context", "encoder_attention_mask": "context_mask"}
    with torch.no_grad():
        tensors = {name: torch.tensor(value) for name, value in conditions.items()}
        expected = theirs(torch.tensor(image).permute(0, 3, 1, 2), torch.tensor(t), **tensors).sample
    inputs = {"image": image, "timestep": t.astype("float32"), **{named[k]: v for k, v in conditions.items()}}
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(output_of(ours, inputs), expected, atol=1e-4)


def test_ddpm():
    """As google/ddpm-cifar10-32: one head, padding at the bottom and the right, sines first, eps 1e-6."""
    theirs = UNet2DModel(
        **UNCONDITIONAL,
        down_block_types=(D, A, D),
        up_block_types=(U, "AttnUpBlock2D", U),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    conditions = (timestep(shift=1, cosine_first=False),)
    assert_same_output(theirs, unconditional_unet(self_attention, eps=1e-6, conditions=conditions))


@pytest.mark.parametrize("head_dim", [8, 3])
def test_the_defaults_of_diffusers(head_dim):
    """Padding on all sides, cosines first, heads of a fixed width, which need not divide the channels."""
    theirs = UNet2DModel(
        **UNCONDITIONAL,
        down_block_types=(D, A, D),
        up_block_types=(U, "AttnUpBlock2D", U),
        attention_head_dim=head_dim,
    )
    down = partial(strided_conv, padding="symmetric")
    assert_same_output(theirs, unconditional_unet(partial(self_attention, head_dim=head_dim), down=down))


def test_adm():
    """As openai's ImageNet-64 network: modulation after the norm, resampling in residual blocks, class labels."""
    theirs = UNet2DModel(
        **UNCONDITIONAL,
        down_block_types=("ResnetDownsampleBlock2D", A, "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=4,
        attn_norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        num_class_embeds=3,
    )
    options = {"groups": 4, "modulate": norm_film}
    ours = unconditional_unet(
        partial(self_attention, head_dim=4),
        modulate=norm_film,
        conditions=(timestep(), class_label(3)),
        down=partial(res_down, **options),
        up=keep_filters(partial(res_up, **options)),
    )
    assert_same_output(theirs, ours, class_labels=np.array([2, 0]))


# ---- UNet2DConditionModel -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [(8, 16), (11, 9), (None, None)])
@pytest.mark.parametrize(("linear", "depths", "heads"), [(False, (1, 1, 1), (2, 2, 2)), (True, (1, 2, 2), (2, 4, 8))])
def test_stable_diffusion(size, linear, depths, heads):
    """As SD 1 (convolutions around the transformers) and SDXL (linear maps, several blocks); odd sizes, masked texts.

    What diffusers calls ``attention_head_dim`` is here the number of heads.
    """
    theirs = UNet2DConditionModel(
        block_out_channels=CHANNELS,
        norm_num_groups=4,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=heads,
        transformer_layers_per_block=depths,
        use_linear_projection=linear,
    )
    ours = conditional_unet(size, depths, heads)
    mask = np.array([[True, True, False, True, False], [True, False, False, False, False]])
    conditions = {"encoder_hidden_states": normal(2, 5, 6, seed=1), "encoder_attention_mask": mask}
    assert_same_output(theirs, ours, **conditions)
