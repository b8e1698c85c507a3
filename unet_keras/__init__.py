"""The U-Net of diffusion models for Keras 3: build it, train it with ``fit``, sample it; on TensorFlow, JAX and torch.

from unet_keras import DiffusionModel, build_unet, load_emoji

(images, captions), _ = load_emoji()
model = DiffusionModel(build_unet((32, 32, 3)))
model.compile("adam")
model.fit(images, epochs=10)
pictures = model.generate(16)
"""

from unet_keras import metrics, plots
from unet_keras.callbacks import CsvLog, Evaluate, SampleGrid, TensorBoardLog
from unet_keras.checkpoints import Checkpoint, LossGuard
from unet_keras.data import (
    Recoloured,
    Redrawn,
    by_label,
    emoji_captions,
    emoji_table,
    image_folder,
    image_stream,
    load_emoji,
)
from unet_keras.diffusion.guidance import classifier_free, clipped, dynamic, interval, rescaled, unclipped
from unet_keras.diffusion.likelihood import nll_bound, nll_ode
from unet_keras.diffusion.model import DiffusionModel
from unet_keras.diffusion.multicall import dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, flow_heun, heun
from unet_keras.diffusion.multistep import deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde, lms, plms, unipc
from unet_keras.diffusion.predictions import Prediction, clean, flow_velocity, min_snr, noise, velocity
from unet_keras.diffusion.samplers import (
    Row,
    ddim,
    ddim_inversion,
    ddpm,
    ddpm_learned,
    euler,
    euler_ancestral,
    flow_euler,
    lcm,
)
from unet_keras.diffusion.schedules import (
    CLEAN,
    Point,
    Points,
    Schedule,
    beta,
    cosine,
    exponential,
    flow,
    karras,
    leading,
    linear,
    linspace,
    scaled_linear,
    sigmoid,
    trailing,
    zero_terminal_snr,
)
from unet_keras.diffusion.timesteps import logit_normal
from unet_keras.diffusion.values import Values, latents, pixels
from unet_keras.lora import enable_lora, merge_lora
from unet_keras.nn.blocks import (
    conv_block,
    conv_transpose,
    cross_attention,
    keep_filters,
    max_pool,
    nearest_conv,
    norm_add,
    norm_film,
    res_block,
    res_down,
    res_up,
    self_attention,
    spatial_transformer,
    strided_conv,
)
from unet_keras.nn.conditions import (
    class_label,
    masked_sequence,
    mean_pool,
    pooled_and_sizes,
    position,
    projected,
    sequence,
    side_by_side,
    timestep,
    vector,
)
from unet_keras.nn.surgery import freeze, skip_taps, with_channels, with_dtype, with_size
from unet_keras.nn.unet import (
    Level,
    bridge,
    build_unet,
    decoder_block,
    encoder_block,
    norm_head,
    pointwise_head,
    sandwich,
)
from unet_keras.optimizers import AdamW, Muon
from unet_keras.page import explore
from unet_keras.pipeline import Attended, attention
from unet_keras.text import BertEncoder, ClipEncoder, T5Encoder, TokenEncoder, cached
from unet_keras.zoo import (
    Cost,
    adm,
    adm_imagenet64,
    adm_imagenet128,
    adm_imagenet256,
    adm_imagenet512,
    cost,
    ddpm_256,
    ddpm_cifar10,
    from_preset,
    instruct_pix2pix,
    load_lora,
    patch_unet,
    preset_names,
    save_lora,
    save_preset,
    small_unet,
    stable_diffusion_1,
    stable_diffusion_2,
    stable_diffusion_inpainting,
    stable_diffusion_xl,
    text_unet,
    to_diffusers,
    unet_layout,
)

__version__ = "0.1.0"

__all__ = [
    # the network
    "build_unet", "Level", "encoder_block", "decoder_block", "bridge", "sandwich", "pointwise_head", "norm_head",
    "timestep", "class_label", "vector", "position", "pooled_and_sizes", "side_by_side",
    "sequence", "masked_sequence", "projected", "mean_pool",
    "conv_block", "res_block", "norm_add", "norm_film",
    "self_attention", "cross_attention", "spatial_transformer",
    "max_pool", "strided_conv", "res_down", "conv_transpose", "nearest_conv", "res_up", "keep_filters",
    "freeze", "with_channels", "with_size", "with_dtype", "skip_taps",
    # noise, training, sampling
    "DiffusionModel", "AdamW", "Muon",
    "Schedule", "Point", "Points", "CLEAN", "linear", "scaled_linear", "cosine", "sigmoid", "flow", "zero_terminal_snr",
    "trailing", "leading", "linspace", "karras", "exponential", "beta",
    "Values", "pixels", "latents",
    "Prediction", "noise", "velocity", "clean", "flow_velocity", "min_snr", "logit_normal",
    "Row", "ddpm", "ddpm_learned", "ddim", "ddim_inversion", "euler", "euler_ancestral", "lcm", "flow_euler",
    "flow_heun", "heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde",
    "lms", "plms", "deis", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "unipc",
    "classifier_free", "rescaled", "interval", "clipped", "dynamic", "unclipped",
    # fine-tuning
    "enable_lora", "merge_lora", "save_lora", "load_lora",
    # text
    "TokenEncoder", "ClipEncoder", "T5Encoder", "BertEncoder", "cached", "attention", "Attended",
    # ready networks, data, pictures
    "patch_unet", "small_unet", "text_unet", "ddpm_cifar10", "ddpm_256",
    "adm", "adm_imagenet64", "adm_imagenet128", "adm_imagenet256", "adm_imagenet512",
    "stable_diffusion_1", "stable_diffusion_2", "stable_diffusion_xl",
    "stable_diffusion_inpainting", "instruct_pix2pix",
    "from_preset", "preset_names", "save_preset", "to_diffusers", "cost", "Cost", "unet_layout",
    "load_emoji", "emoji_table", "emoji_captions", "Recoloured", "Redrawn", "image_folder", "image_stream", "by_label",
    "plots", "explore", "SampleGrid", "Checkpoint", "LossGuard",
    # how good it is
    "metrics", "nll_bound", "nll_ode", "Evaluate", "CsvLog", "TensorBoardLog",
]  # fmt: skip
