"""What a model is made with, checked at the door."""

import numpy as np

from unet_keras.checks import check_seed
from unet_keras.diffusion.predictions import Prediction
from unet_keras.diffusion.replicas import check_strategy
from unet_keras.diffusion.schedules import Schedule
from unet_keras.diffusion.values import Values


def check_parts(schedule, prediction, values):
    """Raise ValueError for what is no schedule, e.g. a function that makes one, no prediction and no values."""
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule must be a Schedule, as linear() and cosine() give, got {schedule!r:.100}.")
    if not isinstance(prediction, Prediction):
        raise ValueError(f"prediction must be a Prediction, such as noise or velocity, got {prediction!r:.100}.")
    if not isinstance(values, Values):
        raise ValueError(f"values must be a Values, such as pixels or latents, got {values!r:.100}.")


def check_options(model):
    """Raise ValueError for a seed, weights, a prediction or an average that make no model."""
    schedule = model.schedule
    if not isinstance(model.remat, bool):
        raise ValueError(f"remat must be True or False, got {model.remat!r}.")
    check_seed(model.seed)
    for name, table in {"weight": model.weight, "density": model.density}.items():
        if table is None:
            continue
        if table.shape != schedule.alpha.shape or not ((table >= 0) & (table < np.inf)).all():
            raise ValueError(f"{name} must be a table of {len(schedule)} finite numbers >= 0, got shape {table.shape}.")
    if model.density is not None and not model.density.any():
        raise ValueError("density must be above 0 for some timestep, got only zeros: leave it out to draw all alike.")
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = model.prediction.estimate(1.0, 1.0, schedule.alpha, schedule.sigma)
    if not np.isfinite(estimate).all():
        raise ValueError(
            "A schedule that ends in pure noise (alpha = 0) cannot be trained to predict noise: use velocity."
        )
    if model.ema is not None and not 0 <= model.ema < 1:
        raise ValueError(f"ema must lie in [0, 1), or be None for no average, got {model.ema}.")


def check_compiled(model, optimizer, options: dict):
    """Raise ValueError for what ``compile`` cannot train with."""
    if options.get("metrics") or options.get("weighted_metrics"):
        raise ValueError("metrics are not taken by DiffusionModel.compile: use a callback, or validation's loss.")
    if options.get("loss_weights") is not None:
        raise ValueError("loss_weights is not taken: give DiffusionModel a weight for each timestep, or sample_weight.")
    if optimizer is None:
        raise ValueError("optimizer must be one of Keras's, got None.")
    if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
        raise ValueError("optimizer has use_ema=True: leave it off and use DiffusionModel(..., ema=0.999).")
    if model.ema_network is not None:
        own, average = ([v.shape for v in network.weights] for network in (model.network, model.ema_network))
        if own != average:
            raise ValueError(
                "model.network has other weights than the average of them: give enable_lora and the like the model, "
                "not its network, or make a new DiffusionModel of the changed network."
            )
    coarse = {v.dtype for v in model.trainable_variables} & {"float16", "bfloat16"}
    if coarse:
        name = coarse.pop()
        raise ValueError(f"The weights are {name}, in which small steps are lost: train with dtype='mixed_{name}'.")
    check_strategy(getattr(model, "distribute_strategy", None), optimizer, options)
