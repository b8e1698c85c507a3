"""Names to ready networks, each a few lines over the parts of nn."""

from unet_keras.zoo.ddpm import ddpm_cifar10, patch_unet, small_unet
from unet_keras.zoo.presets import from_preset, preset_names, save_preset
from unet_keras.zoo.text import text_unet

__all__ = ["ddpm_cifar10", "from_preset", "patch_unet", "preset_names", "save_preset", "small_unet", "text_unet"]
