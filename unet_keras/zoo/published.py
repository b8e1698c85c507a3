"""Networks by name: how to build them, and where their weights lie."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from unet_keras.diffusion.model import DiffusionModel
from unet_keras.diffusion.predictions import Prediction, noise, velocity
from unet_keras.diffusion.schedules import Schedule, cosine, linear, scaled_linear
from unet_keras.diffusion.values import Values, latents, pixels
from unet_keras.nn.unet import build_unet
from unet_keras.zoo.adm import adm_imagenet64, adm_imagenet128, adm_imagenet256, adm_imagenet512
from unet_keras.zoo.ddpm import ddpm_256, ddpm_cifar10
from unet_keras.zoo.diffusers.folder import fetch, from_folder, policy
from unet_keras.zoo.stable_diffusion import (
    instruct_pix2pix,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_inpainting,
    stable_diffusion_xl,
)


@dataclass(frozen=True)
class Published:
    """A network, the diffusion it was trained on, and the handle of its weights; None where no file can be read."""

    build: Callable
    source: str | None = None
    schedule: Callable[[], Schedule] = scaled_linear
    prediction: Prediction = noise
    values: Values = latents


PUBLISHED = {
    "ddpm-cifar10": Published(ddpm_cifar10, "hf://google/ddpm-cifar10-32", linear, noise, pixels),
    "ddpm-celebahq-256": Published(ddpm_256, "hf://google/ddpm-celebahq-256", linear, noise, pixels),
    "ddpm-cat-256": Published(ddpm_256, "hf://google/ddpm-cat-256", linear, noise, pixels),
    "stable-diffusion-1.5": Published(stable_diffusion_1, "hf://stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "stable-diffusion-inpainting": Published(
        stable_diffusion_inpainting, "hf://stable-diffusion-v1-5/stable-diffusion-inpainting"
    ),
    "instruct-pix2pix": Published(instruct_pix2pix, "hf://timbrooks/instruct-pix2pix"),
    "stable-diffusion-2-base": Published(stable_diffusion_2, "hf://stabilityai/stable-diffusion-2-base"),
    "stable-diffusion-2": Published(
        partial(stable_diffusion_2, size=96), "hf://stabilityai/stable-diffusion-2", prediction=velocity
    ),
    "stable-diffusion-xl": Published(stable_diffusion_xl, "hf://stabilityai/stable-diffusion-xl-base-1.0"),
    "adm-imagenet64": Published(adm_imagenet64, schedule=cosine, values=pixels),
    "adm-imagenet128": Published(adm_imagenet128, schedule=linear, values=pixels),
    "adm-imagenet256": Published(adm_imagenet256, schedule=linear, values=pixels),
    "adm-imagenet512": Published(adm_imagenet512, schedule=linear, values=pixels),
    "slides": Published(partial(build_unet, (64, 64, 3)), schedule=linear, values=pixels),
}


def from_published(name: str, *, weights: bool = True, dtype=None, **options) -> DiffusionModel:
    """Load a published network; with ``weights=False`` nothing is fetched. Options as in ``from_preset``."""
    known = PUBLISHED[name]
    if weights and known.source is None:
        raise ValueError(f"{name} was published with no weights that can be read: give weights=False for random ones.")
    if weights:
        folder = fetch(known.source, options.get("variant"))
        return from_folder(folder, dtype=dtype, **options)
    odd = sorted({"variant", "size"} & set(options))
    if odd:
        raise ValueError(f"{name} without weights takes no {odd}: build the network yourself for another size.")
    with policy(dtype):
        network = known.build()
    told = {"schedule": known.schedule(), "prediction": known.prediction, "values": known.values, "ema": None}
    return DiffusionModel(network, **told | options)
