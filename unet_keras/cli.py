"""The command line: ``unet-keras train`` and ``unet-keras sample``."""

import argparse
import math
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from unet_keras import plots, runs
from unet_keras.callbacks import SampleGrid
from unet_keras.data import by_label, emoji_table, image_folder
from unet_keras.diffusion import multicall, multistep, predictions, samplers, schedules
from unet_keras.diffusion.model import DiffusionModel
from unet_keras.nn.unet import build_unet, class_label, timestep
from unet_keras.zoo import ddpm_cifar10, patch_unet, small_unet

NETWORKS = {"patch": patch_unet, "small": small_unet, "slides": build_unet, "ddpm-cifar10": ddpm_cifar10}
SCHEDULES = {"linear": schedules.linear, "scaled-linear": schedules.scaled_linear, "cosine": schedules.cosine}
PREDICTIONS = {"noise": predictions.noise, "velocity": predictions.velocity, "clean": predictions.clean}
SAMPLERS = {
    "ddim": samplers.ddim,
    "ddpm": samplers.ddpm,
    "euler": samplers.euler,
    "euler-ancestral": samplers.euler_ancestral,
    "heun": multicall.heun,
    "dpm2": multicall.dpm2,
    "dpm2-ancestral": multicall.dpm2_ancestral,
    "dpmpp-2s-ancestral": multicall.dpmpp_2s_ancestral,
    "dpmpp-sde": multicall.dpmpp_sde,
    "lms": multistep.lms,
    "plms": multistep.plms,
    "deis": multistep.deis,
    "dpmpp-2m": multistep.dpmpp_2m,
    "dpmpp-2m-sde": multistep.dpmpp_2m_sde,
    "dpmpp-3m": multistep.dpmpp_3m,
    "dpmpp-3m-sde": multistep.dpmpp_3m_sde,
    "unipc": multistep.unipc,
    "lcm": samplers.lcm,
}

TRAIN = """Train a U-Net on images and keep everything in a run folder.

examples:
  unet-keras train --minutes 8                        the built-in emoji, into runs/emoji
  unet-keras train --data photos --size 64 --epochs 200 --out runs/photos
  unet-keras train --data photos --classes            a class for each sub-folder of photos
  unet-keras train --out runs/emoji --resume --minutes 30      go on with a run

Ctrl-C ends training after the batch at hand; the run can be sampled and resumed.
"""

SAMPLE = """Sample images from a run folder or a .keras file.

examples:
  unet-keras sample runs/emoji                        a grid of 16 in runs/emoji/samples.png
  unet-keras sample runs/emoji --count 64 --steps 100 --seed 7 --out grid.png --each pictures
  unet-keras sample runs/photos --class cats --guidance 3 --gif cats.gif
"""


def main(argv=None) -> int:
    """Run the command line; returns the exit status. What is wrong with the input is told in one line."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"unet-keras: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    top = argparse.ArgumentParser(prog="unet-keras", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="train | sample")
    layout = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    _train_options(commands.add_parser("train", help="train a U-Net on images", description=TRAIN, **layout))
    _sample_options(commands.add_parser("sample", help="sample images from a run", description=SAMPLE, **layout))
    return top


def _train_options(p):
    add = p.add_argument
    add("--data", default="emoji", help="'emoji', the built-in images, or a folder of images (default: %(default)s)")
    add("--size", type=int, default=32, help="height and width to train at (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/emoji"), help="the run folder (default: %(default)s)")
    add("--minutes", type=float, help="stop after so many minutes, the learning rate falling to zero by then")
    add("--epochs", type=int, help="passes over the data in all (default: 100, unless --minutes is given)")
    add("--batch-size", type=int, default=32, help="images a step (default: %(default)s)")
    add("--network", choices=NETWORKS, default="patch", help="(default: %(default)s)")
    add("--classes", action="store_true", help="condition on the emoji's group, or on the folder's sub-folders")
    add("--learning-rate", type=float, default=1.5e-3, help="at its highest, with AdamW (default: %(default)s)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="(default: %(default)s)")
    add("--prediction", choices=PREDICTIONS, default="velocity", help="(default: %(default)s)")
    add("--samples-every", type=int, default=5, help="epochs between two grids of samples (default: %(default)s)")
    add("--dtype", default="float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    p.set_defaults(run=train)


def _sample_options(p):
    add = p.add_argument
    add("model", type=Path, help="a run folder or a .keras file")
    add("--count", type=int, default=16, help="images (default: %(default)s)")
    add(
        "--steps",
        type=int,
        default=50,
        help="1 to 1000; some samplers call twice a step (default: %(default)s)",
    )
    add("--sampler", choices=SAMPLERS, default="ddim", help="(default: %(default)s)")
    add("--class", dest="label", help="the class to sample, by name or number; all in turn unless given")
    add("--guidance", type=float, default=1.0, help="how strictly to keep to the class; 1 is as trained")
    add("--seed", type=int, default=0, help="another seed, other images (default: %(default)s)")
    add("--out", type=Path, help="the grid's file (default: samples.png in the run folder)")
    add("--each", type=Path, help="a folder to write the images to one by one as well")
    add("--gif", type=Path, help="a file for an animation from noise to image")
    p.set_defaults(run=sample)


# ---- train ----------------------------------------------------------------------------------------------------------


def train(arguments) -> None:
    """Train, and leave a run folder."""
    folder = arguments.out
    if arguments.resume:
        settings = {**runs.read_settings(folder), "minutes": arguments.minutes}
        settings["epochs"] = arguments.epochs or settings["epochs"]
        model, data = runs.load_model(folder), _data(settings)
    else:
        settings = _new_settings(arguments)
        data = _data(settings)
        model = _new_model(settings, data["class_names"])
        settings["class_names"] = data["class_names"]
    folder.mkdir(parents=True, exist_ok=True)
    _fit(model, data, folder, settings)
    _pictures(model, folder, settings)


def _new_settings(arguments):
    if (arguments.out / runs.SETTINGS).exists():
        raise ValueError(f"{arguments.out} holds a run: give --resume to go on with it, or another --out.")
    for name in ("size", "batch_size", "samples_every", "epochs", "minutes", "learning_rate"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}.")
    kept = {k: v for k, v in vars(arguments).items() if k not in ("run", "out", "resume")}
    endless = 10**6 if arguments.minutes else 100
    return {**kept, "epochs": arguments.epochs or endless, "epochs_done": 0, "losses": {}}


def _data(settings):
    """Read images to train on, images to validate on if there are any, and the classes' names if asked for."""
    if settings["data"] == "emoji":
        return _emoji(settings)
    options = {"batch_size": settings["batch_size"], "seed": settings["seed"]}
    conditions = by_label if settings["classes"] else None
    folder = image_folder(settings["data"], settings["size"], conditions=conditions, **options)
    names = folder.class_names if settings["classes"] else None
    return {"x": folder, "y": None, "validation": None, "class_names": names}


def _emoji(settings):
    if settings["size"] != 32:
        raise ValueError(f"The built-in images are 32 x 32, got --size {settings['size']}: leave it out.")
    table = emoji_table()
    names, labels = np.unique(table.groups, return_inverse=True)
    train_, held = (np.isin(table.splits, splits) for splits in (["train"], ["val", "compose"]))

    def part(chosen):
        return table.images[chosen], {"label": labels[chosen].astype("int32")} if settings["classes"] else None

    (x, y), validation = part(train_), part(held)
    return {"x": x, "y": y, "validation": validation, "class_names": names.tolist() if settings["classes"] else None}


def _new_model(settings, class_names):
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy(settings["dtype"])
    size, options = settings["size"], {}
    conditions = [timestep()]
    if class_names:
        conditions.append(class_label(len(class_names) + 1))  # the last stands for "any"
        options = {"null": {"label": len(class_names)}, "drop": 0.1}
    network = NETWORKS[settings["network"]]((size, size, 3), conditions=conditions)
    schedule, prediction = SCHEDULES[settings["schedule"]](), PREDICTIONS[settings["prediction"]]
    model = DiffusionModel(network, schedule, prediction, seed=settings["seed"], **options)
    model.compile(keras.optimizers.AdamW(settings["learning_rate"], weight_decay=1e-4, global_clipnorm=1.0))
    return model


def _fit(model, data, folder, settings):
    deadline = runs.Deadline(60 * settings["minutes"]) if settings["minutes"] else None
    first, last = settings["epochs_done"], settings["epochs"]
    images = len(data["x"] if isinstance(data["x"], np.ndarray) else data["x"].images)
    steps = -(-images // settings["batch_size"])

    def rate(step):
        """Rise over 100 steps, then fall as half a cosine, to a hundredth at the end of the run."""
        done = deadline.passed() if deadline else step / (last * steps)
        fall = max(0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)), 0.01)
        return settings["learning_rate"] * fall * min((step + 1) / 100, 1.0)

    callbacks = [
        *([deadline] if deadline else []),
        runs.LearningRate(rate),
        runs.SaveRun(folder, settings),
        SampleGrid(_in_turn(settings, 16), folder / "samples", every=settings["samples_every"], steps=25),
        _interrupt(),
    ]
    options = {"validation_data": data["validation"]} if data["validation"] else {}
    if data["y"] is not None or isinstance(data["x"], np.ndarray):
        options["batch_size"] = settings["batch_size"]
    print(f"{model.network.count_params():,} parameters; the run is kept in {folder}", flush=True)
    model.fit(data["x"], data["y"], epochs=last, initial_epoch=first, callbacks=callbacks, **options)


def _interrupt():
    """Let the first Ctrl-C end training after the batch at hand; the second does what it always does."""
    callback = keras.callbacks.Callback()

    def stop(number, frame):
        print("\nending after this batch; Ctrl-C again to break off", flush=True)
        callback.model.stop_training = True
        signal.signal(number, signal.default_int_handler)

    def begin(logs=None):
        callback.before = signal.signal(signal.SIGINT, stop)

    callback.on_train_begin = begin
    callback.on_train_end = lambda logs=None: signal.signal(signal.SIGINT, callback.before)
    return callback


def _pictures(model, folder, settings):
    """Draw the losses, a grid of samples and how they came about."""
    try:
        plots.loss(settings["losses"], path=folder / "loss.png")
    except ImportError as error:
        print(f"no loss.png: {error}")
    frames = [keras.ops.convert_to_numpy(f.x) for f in model.denoising(_in_turn(settings, 16), seed=settings["seed"])]
    plots.grid(frames[-1].clip(-1, 1), path=folder / "samples.png")
    plots.animation(frames, folder / "denoising.gif")
    print(f"samples in {folder / 'samples.png'}; more with: unet-keras sample {folder}")


def _in_turn(settings, count, label=None):
    """What ``generate`` is to be asked for: a count, or a class for each image, all in turn unless one is named."""
    names = settings.get("class_names")
    if not names:
        if label is not None:
            raise ValueError(f"--class {label}: the model was trained without classes (train --classes).")
        return count
    if label is None:
        return {"label": np.arange(count) % len(names)}
    if label in names:
        return {"label": np.full(count, names.index(label))}
    if label.isdecimal() and int(label) < len(names):
        return {"label": np.full(count, int(label))}
    raise ValueError(f"--class {label} is none of the model's classes: {', '.join(names)}.")


# ---- sample ---------------------------------------------------------------------------------------------------------


def sample(arguments) -> None:
    """Sample, and write a grid; single images and an animation if asked for."""
    if arguments.count < 1:
        raise ValueError(f"--count must be 1 or more, got {arguments.count}.")
    model = runs.load_model(arguments.model)
    settings = runs.read_settings(arguments.model) if arguments.model.is_dir() else {}
    conditions = _in_turn(settings, arguments.count, arguments.label)
    options = {"steps": arguments.steps, "guidance": arguments.guidance, "seed": arguments.seed}
    options["sampler"] = SAMPLERS[arguments.sampler]
    images = model.generate(conditions, **options)
    names = settings.get("class_names")
    captions = [names[i] for i in conditions["label"]] if names else None
    home = arguments.model if arguments.model.is_dir() else arguments.model.parent
    out = arguments.out or home / "samples.png"
    plots.grid(images, captions=captions, path=out)
    print(out)
    if arguments.each:
        for i, image in enumerate(images):
            plots.grid(image[None], scale=1, padding=0, path=arguments.each / f"{i:04d}.png")
        print(arguments.each)
    if arguments.gif:
        frames = [keras.ops.convert_to_numpy(frame.x) for frame in model.denoising(conditions, **options)]
        print(plots.animation(frames, arguments.gif))


if __name__ == "__main__":
    sys.exit(main())
