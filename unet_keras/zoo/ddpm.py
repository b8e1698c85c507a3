"""The networks of DDPM (Ho et al. 2020, appendix B), and small ones of the same kind to train on a laptop."""

from functools import partial

from keras import layers

from unet_keras.nn.blocks import (
    conv,
    keep_filters,
    nearest_conv,
    norm_silu,
    res_block,
    role,
    self_attention,
    strided_conv,
)
from unet_keras.nn.conditions import timestep
from unet_keras.nn.convolution import Conv
from unet_keras.nn.layers import near_zero
from unet_keras.nn.unet import Level, build_unet, norm_head, sandwich


def residual_unet(input_shape, levels, *, block, attend, **options):
    """Build a U-Net of DDPM's kind: residual blocks, a skip from each, attention between two blocks at the bottom.

    ``options`` are those of ``build_unet``.
    """
    finest = levels[0].filters if isinstance(levels[0], Level) else levels[0]
    usual = {
        "stem": partial(conv, filters=finest),
        "bridge": partial(sandwich, block=block, attend=attend),
        "down": strided_conv,
        "up": keep_filters(nearest_conv),
        "skips": "all",
        "head": norm_head,
    }
    return build_unet(input_shape, levels, block=block, **usual | options)


DDPM_TIMESTEP = timestep(shift=1, cosine_first=False)
"""The embedding of DDPM's networks."""


def ddpm_cifar10(input_shape=(32, 32, 3), *, dropout=0.1, conditions=(DDPM_TIMESTEP,), name="ddpm_cifar10"):
    """DDPM's network for CIFAR-10: 35,746,307 parameters, attention at 16x16 and at the bridge."""
    block, attend = partial(res_block, eps=1e-6, dropout=dropout), partial(self_attention, eps=1e-6)
    levels = [Level(128, 2), Level(256, 2, attend), Level(256, 2), Level(256, 2)]
    head = partial(norm_head, eps=1e-6)
    return residual_unet(input_shape, levels, block=block, attend=attend, head=head, conditions=conditions, name=name)


def ddpm_256(input_shape=(256, 256, 3), *, dropout=0.0, conditions=(DDPM_TIMESTEP,), name="ddpm_256"):
    """DDPM's network for CelebA-HQ and LSUN at 256 x 256: 113,673,219 parameters, attention at 16 x 16."""
    block, attend = partial(res_block, eps=1e-6, dropout=dropout), partial(self_attention, eps=1e-6)
    levels = [Level(c, 2, attend if i == 4 else None) for i, c in enumerate((128, 128, 256, 256, 512, 512))]
    head = partial(norm_head, eps=1e-6)
    return residual_unet(input_shape, levels, block=block, attend=attend, head=head, conditions=conditions, name=name)


def small_unet(input_shape=(32, 32, 3), *, width=32, conditions=(timestep(),), name="small_unet"):
    """A network of DDPM's kind for images of about 32 x 32; ``width``, a multiple of 16, at the top.

    1.4 million parameters.
    """
    block, attend = partial(res_block, groups=16), partial(self_attention, groups=16)
    levels = [Level(width, 1), Level(2 * width, 1), Level(2 * width, 2, attend)]
    head = partial(norm_head, groups=16)
    return residual_unet(input_shape, levels, block=block, attend=attend, head=head, conditions=conditions, name=name)


def patch_unet(input_shape=(32, 32, 3), *, width=48, conditions=(timestep(),), name="patch_unet"):
    """A network of DDPM's kind over patches of 2 x 2 pixels: what two CPU cores can train in minutes.

    The stem halves the size and the head doubles it, so that every block works on a quarter of the pixels. ``width`` is
    a multiple of 16; 2.2 million parameters.
    """
    block, attend = partial(res_block, groups=16), partial(self_attention, groups=16)
    levels = [Level(width, 2), Level(2 * width, 2, attend)]
    options = {"stem": partial(patch_stem, filters=width), "head": partial(patch_head, groups=16)}
    return residual_unet(input_shape, levels, block=block, attend=attend, conditions=conditions, name=name, **options)


def patch_stem(x, filters, *, patch=2, name="stem"):
    """Turn each patch of pixels into one vector of ``filters`` channels (Dosovitskiy et al. 2021)."""
    return Conv(filters, patch, strides=patch, name=name)(x)


def patch_head(x, out_channels, *, patch=2, groups=32, eps=1e-5, name="head"):
    """End with group norm, silu, and a patch of pixels from each vector, in float32."""
    x = norm_silu(groups, eps, role(name, "norm"))(x)
    options = {"kernel_initializer": near_zero(), "dtype": "float32", "name": name}
    return layers.Conv2DTranspose(out_channels, patch, strides=patch, padding="same", **options)(x)
