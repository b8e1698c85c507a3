"""Text-to-image networks small enough to be trained on a laptop."""

from functools import partial

from unet_keras.nn.blocks import cross_attention, res_block, spatial_transformer
from unet_keras.nn.conditions import mean_pool, timestep
from unet_keras.nn.unet import Level, sandwich
from unet_keras.zoo.ddpm import patch_head, patch_stem, residual_unet


def text_unet(input_shape=(32, 32, 3), *, context, width=48, conditions=(timestep(),), name="text_unet"):
    """A U-Net over patches of 2 x 2 pixels that reads a prompt: cross-attention after every block but the smallest's.

    ``context`` as in ``build_unet``, e.g. ``TokenEncoder(...).context``; ``width`` is a multiple of 16. Three levels,
    of width, 2 width and 3 width filters; one Transformer block after every block of the middle level, five at
    the bridge. The mean of the words joins the timestep in every block.
    """
    block = partial(res_block, groups=16)
    look = partial(cross_attention, heads=4)
    read = partial(spatial_transformer, head_dim=width // 2, groups=16)
    levels = [Level(width, 2, look), Level(2 * width, 2, read), Level(3 * width, 1)]
    return residual_unet(
        input_shape,
        levels,
        block=block,
        attend=read,
        context=context,
        pool=mean_pool,
        conditions=conditions,
        stem=partial(patch_stem, filters=width),
        bridge=partial(sandwich, block=block, attend=partial(read, depth=5)),
        head=partial(patch_head, groups=16),
        name=name,
    )
