"""The networks of ADM, "Diffusion Models Beat GANs" (Dhariwal & Nichol 2021, table 4): ImageNet, by class.

Modulation after the norm, resampling in residual blocks, attention with heads at 32 x 32, 16 x 16 and 8 x 8. Twice as
many channels come out as go in: the noise, and where the variance lies between its bounds (Nichol & Dhariwal 2021).
DiffusionModel sees that and trains both:

    model = DiffusionModel(adm_imagenet64(), cosine())    # the larger ones: linear()
    model.fit(images, labels)
    model.generate(labels, steps=250, sampler=ddpm_learned)
"""

from functools import partial

from unet_keras.nn.blocks import keep_filters, norm_film, res_block, res_down, res_up, self_attention
from unet_keras.nn.conditions import class_label, timestep
from unet_keras.nn.layers import image_shape
from unet_keras.nn.unet import Level
from unet_keras.zoo.ddpm import residual_unet

CLASSES = 1000


def adm(size, filters, depth, *, heads=None, head_dim=None, dim=None, dropout=0.0, classes=CLASSES, name="adm"):
    """Build a network for images (size, size, 3): ``filters`` of each level; give one of ``heads`` and ``head_dim``.

    ``dim``, the first level's filters unless given, counts the timestep's waves and is a quarter of emb's width.
    """
    block = partial(res_block, modulate=norm_film, dropout=dropout)

    def attend(channels):
        return partial(self_attention, head_dim=head_dim or channels // heads)

    levels = [Level(c, depth, attend(c) if size >> i <= 32 else None) for i, c in enumerate(filters)]
    dim = dim or filters[0]
    return residual_unet(
        image_shape(size, size, 3),
        levels,
        block=block,
        attend=attend(filters[-1]),
        down=partial(res_down, **block.keywords),
        up=keep_filters(partial(res_up, **block.keywords)),
        conditions=(timestep(dim), class_label(classes)) if classes else (timestep(dim),),
        emb_width=4 * dim,
        out_channels=6,
        name=name,
    )


def adm_imagenet64(name="adm_imagenet64"):
    """ADM for ImageNet at 64 x 64: 295,904,454 parameters."""
    return adm(64, (192, 384, 576, 768), 3, head_dim=64, dropout=0.1, name=name)


def adm_imagenet128(name="adm_imagenet128"):
    """ADM for ImageNet at 128 x 128."""
    return adm(128, (256, 256, 512, 768, 1024), 2, heads=4, name=name)


def adm_imagenet256(name="adm_imagenet256"):
    """ADM for ImageNet at 256 x 256."""
    return adm(256, (256, 256, 512, 512, 1024, 1024), 2, head_dim=64, name=name)


def adm_imagenet512(name="adm_imagenet512"):
    """ADM for ImageNet at 512 x 512."""
    return adm(512, (128, 256, 256, 512, 512, 1024, 1024), 2, head_dim=64, dim=256, name=name)
