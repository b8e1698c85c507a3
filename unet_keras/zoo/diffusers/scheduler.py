"""diffusers' scheduler_config.json as our schedule and prediction, and back.

A file there says how to train (the betas, what is predicted) and how to sample (the class, the spacing). The first is
the model's; of the second only the clipping of the clean estimate is, the sampler is chosen when images are asked for.
"""

import numpy as np

from unet_keras.diffusion.guidance import clipped, unclipped
from unet_keras.diffusion.predictions import Prediction, clean, noise, velocity
from unet_keras.diffusion.schedules import (
    Schedule,
    cosine,
    from_betas,
    linear,
    scaled_linear,
    sigmoid,
    zero_terminal_snr,
)
from unet_keras.diffusion.variance import learned

VARIANCE_PRESERVING = (
    "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "DDIMInverse", "PNDM", "LMSDiscrete", "EulerDiscrete",
    "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep",
    "DPMSolverMultistepInverse", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "LCM", "TCD",
    "SASolver",
)  # fmt: skip
CLIPPING = ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse")
"""The classes that clip the clean estimate unless a file says otherwise."""

FIELDS = {
    "clip_sample": (*CLIPPING, "HeunDiscrete", "LCM", "TCD"),
    "rescale_betas_zero_snr": (
        *CLIPPING, "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LCM", "TCD",
    ),
    "thresholding": (
        "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DPMSolverMultistep", "DPMSolverMultistepInverse",
        "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "LCM", "TCD", "SASolver",
    ),
}  # fmt: skip
"""The classes that have a field. A file made from another class's keeps that one's fields, which its own ignores."""

VALUES = "_unet_keras_values"
"""A field of ours, which theirs passes over: "pixels" or "latents"."""

NARROW = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE", "LCM", "TCD")
"""The classes whose betas go from 0.00085 to 0.012 unless a file says otherwise; the others' from 0.0001 to 0.02."""

MOST_STEPS = 10**6
"""Of a schedule, whose tables are kept in memory."""

PREDICTIONS = {"epsilon": noise, "v_prediction": velocity, "sample": clean}
SHAPES = {"linear": linear, "scaled_linear": scaled_linear, "sigmoid": sigmoid}


def read_schedule(config: dict) -> tuple[Schedule, Prediction]:
    """Give the schedule and the prediction of a scheduler's configuration.

    Raises ValueError for a class, a beta schedule, a prediction or a variance that is not known.
    """
    kind = _kind(config)
    shape = config.get("beta_schedule", "scaled_linear" if kind in ("LCM", "TCD") else "linear")
    steps = config.get("num_train_timesteps", 1000)
    start, end = (0.00085, 0.012) if kind in NARROW else (0.0001, 0.02)
    start, end = config.get("beta_start", start), config.get("beta_end", end)
    if not (type(steps) is int and 0 < steps <= MOST_STEPS):
        raise ValueError(f"num_train_timesteps={steps!r:.100} must be a whole number of 1 to {MOST_STEPS}.")
    if not all(type(beta) in (int, float) and 0 < beta < 1 for beta in (start, end)):
        raise ValueError(f"beta_start={start!r:.100} and beta_end={end!r:.100} must be numbers between 0 and 1.")
    if config.get("trained_betas") is not None:
        schedule = from_betas(np.asarray(config["trained_betas"], "float64"))
    elif shape == "squaredcos_cap_v2":
        schedule = cosine(steps)
    elif isinstance(shape, str) and shape in SHAPES:
        schedule = SHAPES[shape](steps, start, end)
    else:
        raise ValueError(f"beta_schedule={shape!r} is not known: it must be one of {[*SHAPES, 'squaredcos_cap_v2']}.")
    if _field(config, "rescale_betas_zero_snr"):
        schedule = zero_terminal_snr(schedule)
    predicted = config.get("prediction_type", "epsilon")
    if not isinstance(predicted, str) or predicted not in PREDICTIONS:
        raise ValueError(f"prediction_type={predicted!r} is not known: it must be one of {list(PREDICTIONS)}.")
    return schedule, PREDICTIONS[predicted]


def read_threshold(config: dict):
    """Give what a scheduler's configuration does to the clean estimate: ``clipped`` or ``unclipped``.

    Raises ValueError for a range other than [-1, 1], and for dynamic thresholding, which is asked for when sampling.
    """
    if _field(config, "thresholding"):
        raise ValueError(
            "thresholding=True is not read: set it to false, and ask generate(..., threshold=dynamic()) for it."
        )
    clip = _field(config, "clip_sample", _kind(config) in CLIPPING)
    if clip and config.get("clip_sample_range", 1.0) != 1.0:
        raise ValueError(f"clip_sample_range={config['clip_sample_range']} is not supported: it must be 1.")
    return clipped if clip else unclipped


def check_variance(config: dict, channels: tuple[int, int]):
    """Raise ValueError unless a network of these channels, in and out, gives the variance that is asked of it."""
    kind = config.get("variance_type")
    if kind == "learned":
        raise ValueError(
            "variance_type='learned' is not read: there the network tells the variance itself, here where it lies "
            "between its bounds. Set 'learned_range' if that is what it does, or 'fixed_small' to use the image alone."
        )
    if kind == "learned_range" and channels[1] != 2 * channels[0]:
        raise ValueError(
            f"variance_type='learned_range' needs a network with twice as many out_channels as in_channels, got "
            f"{channels[1]} and {channels[0]}: set 'fixed_small' if it has not learned the variance."
        )


def read_bounded(config: dict) -> bool | None:
    """Tell whether images are pixels, where a file of ours says so. Raises ValueError for what it cannot say."""
    said = config.get(VALUES)
    if said not in (None, "pixels", "latents"):
        raise ValueError(f"{VALUES}={said!r:.100} must be 'pixels' or 'latents'.")
    return None if said is None else said == "pixels"


def _field(config, name, default=None):
    """Give a field, where the class has it."""
    return config.get(name, default) if _kind(config) in FIELDS[name] else default


def _kind(config):
    name = str(config.get("_class_name"))
    kind = name.removesuffix("Scheduler")
    if kind not in VARIANCE_PRESERVING:
        known = ", ".join(f"{kind}Scheduler" for kind in VARIANCE_PRESERVING)
        raise ValueError(f"_class_name={name!r} is not a scheduler that can be read: it must be one of {known}.")
    return kind


def scheduler_config(model) -> dict:
    """Write a model's schedule, prediction and clipping as the configuration of a DDIMScheduler.

    Where the network learned the variance it is a DDPMScheduler's, which uses it.

    Raises ValueError where theirs cannot say it: a prediction of another kind, variance that is not preserved, or
    another threshold than ``clipped`` and ``unclipped``.
    """
    schedule = model.schedule
    if model.values.threshold not in (clipped, unclipped):
        raise ValueError(
            f"diffusers' schedulers cannot say {model.values!r:.100}: the threshold must be clipped or unclipped."
        )
    named = [name for name, prediction in PREDICTIONS.items() if prediction == model.prediction]
    if not named:
        raise ValueError(f"diffusers' schedulers cannot say this prediction: it must be one of {list(PREDICTIONS)}.")
    if np.abs(schedule.alpha**2 + schedule.sigma**2 - 1).max() > 1e-6:
        raise ValueError("diffusers' schedulers need alpha^2 + sigma^2 = 1, which this schedule does not keep.")
    kind = {"_class_name": "DDIMScheduler", "set_alpha_to_one": True}
    if learned(model.network):
        kind = {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    return {
        **kind,
        "num_train_timesteps": len(schedule),
        **_betas(schedule),
        "prediction_type": named[0],
        "clip_sample": model.values.threshold is clipped,
        VALUES: "pixels" if model.values.bounded else "latents",
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }


def _betas(schedule):
    """Name the schedule where it has a name, or list its betas."""
    steps = len(schedule)
    named = [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
    ]
    for fields in named:
        for rescaled in ({}, {"rescale_betas_zero_snr": True})[: 2 if steps > 1 else 1]:
            asked = {"_class_name": "DDIMScheduler", "num_train_timesteps": steps, **fields, **rescaled}
            if np.allclose(read_schedule(asked)[0].alpha, schedule.alpha, rtol=0, atol=1e-9):
                return {**fields, **rescaled}
    alpha_bar = schedule.alpha**2
    return {"trained_betas": (1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])).tolist()}
