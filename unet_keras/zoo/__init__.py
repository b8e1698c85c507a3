"""Names to ready networks, each a few lines over the parts of nn."""

from unet_keras.zoo.adm import adm, adm_imagenet64, adm_imagenet128, adm_imagenet256, adm_imagenet512
from unet_keras.zoo.costs import Cost, cost
from unet_keras.zoo.ddpm import ddpm_256, ddpm_cifar10, patch_unet, small_unet
from unet_keras.zoo.diffusers.folder import to_diffusers
from unet_keras.zoo.diffusers.lora import load_lora, save_lora
from unet_keras.zoo.presets import from_preset, preset_names, save_preset
from unet_keras.zoo.sharding import unet_layout
from unet_keras.zoo.stable_diffusion import (
    instruct_pix2pix,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_inpainting,
    stable_diffusion_xl,
)
from unet_keras.zoo.text import text_unet

__all__ = [
    "Cost", "adm", "adm_imagenet64", "adm_imagenet128", "adm_imagenet256", "adm_imagenet512", "cost", "ddpm_256",
    "ddpm_cifar10", "from_preset", "instruct_pix2pix", "load_lora", "patch_unet", "preset_names", "save_lora",
    "save_preset", "small_unet", "stable_diffusion_1", "stable_diffusion_2", "stable_diffusion_inpainting",
    "stable_diffusion_xl", "text_unet", "to_diffusers", "unet_layout",
]  # fmt: skip
