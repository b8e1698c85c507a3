"""The networks of DDPM (Ho et al. 2020, appendix B), and a small one of the same kind to train on a laptop."""

from functools import partial

from unet_keras.nn.blocks import conv, keep_filters, nearest_conv, res_block, self_attention, strided_conv
from unet_keras.nn.unet import Level, build_unet, norm_head, sandwich, timestep


def residual_unet(input_shape, levels, *, block, attend, head=norm_head, conditions=(timestep(),), **options):
    """Build a U-Net of DDPM's kind: residual blocks, a skip from each, attention between two blocks at the bottom."""
    return build_unet(
        input_shape,
        levels,
        bridge=partial(sandwich, block=block, attend=attend),
        block=block,
        down=strided_conv,
        up=keep_filters(nearest_conv),
        skips="all",
        conditions=conditions,
        stem=partial(conv, filters=Level(*levels[0]).filters),
        head=head,
        **options,
    )


def ddpm_cifar10(input_shape=(32, 32, 3), *, dropout=0.1, name="ddpm_cifar10"):
    """DDPM's network for CIFAR-10: 35,746,307 parameters, attention at 16x16 and at the bridge."""
    block, attend = partial(res_block, eps=1e-6, dropout=dropout), partial(self_attention, eps=1e-6)
    levels = [Level(128, 2), Level(256, 2, attend), Level(256, 2), Level(256, 2)]
    conditions = (timestep(shift=1, cosine_first=False),)
    head = partial(norm_head, eps=1e-6)
    return residual_unet(input_shape, levels, block=block, attend=attend, head=head, conditions=conditions, name=name)


def small_unet(input_shape=(32, 32, 3), *, width=64, conditions=(timestep(),), name="small_unet"):
    """A network of DDPM's kind that two CPU cores train in minutes, at images of about 32 x 32.

    ``width``, a multiple of 16, is the number of filters at full resolution.
    """
    block, attend = partial(res_block, groups=16), partial(self_attention, groups=16)
    levels = [Level(width, 1), Level(2 * width, 1), Level(2 * width, 2, attend)]
    head = partial(norm_head, groups=16)
    return residual_unet(input_shape, levels, block=block, attend=attend, head=head, conditions=conditions, name=name)
