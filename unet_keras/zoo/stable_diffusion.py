"""The U-Nets of Stable Diffusion: 1 and 2 (Rombach et al. 2022), XL (Podell et al. 2023), and those that edit images.

They work on the latents of a codec, 4 channels at an eighth of the image's height and width, and read 77 tokens of
text.
"""

from functools import partial

from unet_keras.nn.blocks import conv, res_block, spatial_transformer, strided_conv
from unet_keras.nn.conditions import pooled_and_sizes, sequence, timestep
from unet_keras.nn.unet import Level, sandwich
from unet_keras.zoo.ddpm import residual_unet


def latent_unet(size, width, filters, heads, depths, *, conditions=(), maps=None, name):
    """Build a U-Net over latents (size, size, 4) that reads text (tokens, width); attention's heads, depth by level.

    A depth of 0 is a level without attention; the bridge has the last level's heads, and its depth or 1.
    """
    readers = [partial(spatial_transformer, heads=h, depth=max(d, 1)) for h, d in zip(heads, depths, strict=True)]
    levels = [Level(f, 2, r if d else None) for f, r, d in zip(filters, readers, depths, strict=True)]
    return residual_unet(
        (size, size, 4),
        levels,
        block=res_block,
        attend=readers[-1],
        bridge=partial(sandwich, block=res_block, attend=readers[-1]),
        down=partial(strided_conv, padding="symmetric"),
        stem=partial(conv, filters=filters[0]),
        conditions=(timestep(filters[0]), *conditions),
        context=sequence(None, width),
        maps=maps,
        name=name,
    )


def stable_diffusion_1(*, maps=None, name="stable_diffusion_1"):
    """Stable Diffusion 1.x, 512 x 512: 859,520,964 parameters; reads CLIP's last layer, 768 wide."""
    return latent_unet(64, 768, (320, 640, 1280, 1280), (8, 8, 8, 8), (1, 1, 1, 0), maps=maps, name=name)


def stable_diffusion_inpainting(name="stable_diffusion_inpainting"):
    """Stable Diffusion 1 to fill in: told in ``beside`` (64, 64, 5) the mask and the masked image's latents."""
    return stable_diffusion_1(maps={"beside": 5}, name=name)


def instruct_pix2pix(name="instruct_pix2pix"):
    """Stable Diffusion 1 to edit by instruction (Brooks et al. 2023): ``beside`` (64, 64, 4) is the image's latents."""
    return stable_diffusion_1(maps={"beside": 4}, name=name)


def stable_diffusion_2(size=64, name="stable_diffusion_2"):
    """Stable Diffusion 2.x, 865,910,724 parameters: base at 64 (512 x 512), v at 96 (768 x 768); OpenCLIP-H's text."""
    return latent_unet(size, 1024, (320, 640, 1280, 1280), (5, 10, 20, 20), (1, 1, 1, 0), name=name)


def stable_diffusion_xl(name="stable_diffusion_xl"):
    """Stable Diffusion XL base, 1024 x 1024: 2,567,463,684 parameters; two encoders' text, a pooled one, and sizes."""
    told = pooled_and_sizes(1280, 6, 256)
    return latent_unet(128, 2048, (320, 640, 1280), (5, 10, 20), (0, 2, 10), conditions=(told,), name=name)
