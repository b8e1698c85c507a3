"""Train a U-Net on images and keep everything in a run folder."""

import contextlib
import inspect
import math
import signal
from pathlib import Path

import keras

from unet_keras import plots, runs
from unet_keras.callbacks import CsvLog, SampleGrid, TensorBoardLog
from unet_keras.checkpoints import Checkpoint, LossGuard
from unet_keras.cli.asking import POLICIES, asked, opened
from unet_keras.cli.material import training_data
from unet_keras.cli.pace import Deadline, LearningRate
from unet_keras.diffusion import predictions, schedules, timesteps
from unet_keras.diffusion.model import DiffusionModel
from unet_keras.nn.conditions import class_label
from unet_keras.nn.unet import build_unet
from unet_keras.optimizers import AdamW, Muon
from unet_keras.zoo import ddpm_cifar10, from_preset, patch_unet, small_unet, text_unet

NETWORKS = {
    "patch": patch_unet, "text": text_unet, "small": small_unet, "slides": build_unet, "ddpm-cifar10": ddpm_cifar10,
}  # fmt: skip
READERS = ("text", "slides")  # the networks that take a context
SCHEDULES = {"linear": schedules.linear, "scaled-linear": schedules.scaled_linear, "cosine": schedules.cosine}
PREDICTIONS = {"noise": predictions.noise, "velocity": predictions.velocity, "clean": predictions.clean}
OPTIMIZERS = {"adamw": AdamW, "muon": Muon}
DEFAULTS = {"schedule": "cosine", "prediction": "velocity"}
"""Of a new network."""
USUAL = {
    "data": "emoji", "size": 32, "batch_size": 32, "samples_every": 5, "save_every": 300.0, "keep": 2, "seed": 0,
    "optimizer": "adamw",
}  # fmt: skip
"""Of a new run."""
CHANGEABLE = ("epochs", "minutes", "learning_rate", "samples_every", "save_every", "keep")
"""What a run that is resumed may be given anew."""
ENDLESS = 10**6
"""The epochs of a run that ends by the clock."""

EXAMPLES = """Train a U-Net on images and keep everything in a run folder.

examples:
  unet-keras train --minutes 8                        the built-in emoji, into runs/emoji
  unet-keras train --data photos --size 64 --epochs 200 --out runs/photos
  unet-keras train --data photos --classes            a class for each sub-folder of photos
  unet-keras train --data photos --stream             a folder too large for memory
  unet-keras train --text --out runs/words            text to image: the emoji by their captions
  unet-keras train --start emoji-32 --text --data photos       a preset, trained further on your own captions
  unet-keras train --out runs/emoji --resume --minutes 30      go on with a run, also one that was killed

A twentieth of a folder's images is held out to validate with, where there are 20 or more.
Ctrl-C ends training after the batch at hand; the run can be sampled and resumed. So can one that was killed: it goes on
from its last checkpoint.
"""


def add_options(p):
    """Add the command's options to its parser."""
    add = p.add_argument
    add("--data", help="'emoji', the built-in images, or a folder of images (default: emoji)")
    add("--stream", action="store_true", help="read the folder while training, for one too large for memory")
    add("--size", type=int, help="height and width to train at (default: 32)")
    add("--out", type=Path, default=Path("runs/emoji"), help="the run folder (default: %(default)s)")
    add("--minutes", type=float, help="stop after so many minutes, the learning rate falling to a hundredth by then")
    add("--epochs", type=int, help="passes over the data in all (default: 100, unless --minutes is given)")
    add("--batch-size", type=int, help="images a step (default: 32)")
    add("--start", metavar="MODEL", help="a preset, run folder or .keras file to train further, on other data say")
    add("--network", choices=NETWORKS, help="(default: patch, or text with --text)")
    add("--text", action="store_true", help="condition on the emoji's captions, or on the folder's metadata file")
    add("--classes", action="store_true", help="condition on the emoji's group, or on the folder's sub-folders")
    add("--learning-rate", type=float, help="at its highest (default: 0.0015)")
    add("--optimizer", choices=OPTIMIZERS, help="(default: adamw)")
    add("--schedule", choices=SCHEDULES, help="(default: cosine)")
    add("--prediction", choices=PREDICTIONS, help="(default: velocity)")
    add(
        "--logit-normal",
        type=float,
        nargs=2,
        metavar=("MEAN", "STD"),
        help="draw timesteps so, e.g. 1 1 for more of the noisier (default: all alike, or as --start has it)",
    )
    add("--samples-every", type=int, help="epochs between two grids of samples (default: 5)")
    add("--save-every", type=float, help="seconds between two checkpoints (default: 300)")
    add("--keep", type=int, help="how many checkpoints are kept (default: 2)")
    add("--dtype", choices=POLICIES, help="(default: float32, or what --start has)")
    add("--remat", action="store_true", help="less memory, more time: activations are computed again")
    add("--seed", type=int, help="(default: 0)")
    add(
        "--resume",
        action="store_true",
        help="go on with the run in --out, with its own settings; but for --epochs, --minutes, --learning-rate, "
        "--samples-every, --save-every and --keep",
    )
    p.set_defaults(run=train)


def train(arguments) -> None:
    """Train, and leave a run folder."""
    folder = arguments.out
    _check_numbers(arguments)
    if arguments.resume:
        settings, model = _found(arguments)
    else:
        settings, model = _new_settings(arguments), None
    if model is None and settings.get("start"):
        model = _further(settings)
    data = training_data(settings, model)
    model = model or _new_model(settings, data["class_names"], data["encoder"])
    settings["class_names"] = data["class_names"] or settings.get("class_names")
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_settings(folder, settings)
    settings = _fit(model, data, folder, settings)
    _pictures(model, data, folder, settings)


def _check_numbers(arguments):
    for name in ("size", "batch_size", "samples_every", "epochs", "minutes", "learning_rate", "save_every", "keep"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}.")


def _found(arguments):
    """Read a run's settings, changed where asked, and its model; no model where it was killed before it kept one."""
    folder = arguments.out
    checkpoint = runs.newest(folder)
    settings = runs.read_settings(checkpoint or folder)
    _check_same(arguments, settings)
    if checkpoint is None and (folder / runs.MODEL).exists():
        raise ValueError(f"{folder} holds a model but no whole checkpoint to go on from: give another --out.")
    if settings["minutes"] and not (arguments.minutes or arguments.epochs):
        raise ValueError(
            f"{folder} was trained by the clock: say for how much longer with --minutes, or give --epochs."
        )
    done = settings["epochs_done"]
    if arguments.epochs and not arguments.minutes and arguments.epochs <= done:
        raise ValueError(f"--epochs {arguments.epochs}: {folder} has {done} already. Give how many there are to be.")
    asked = {name: getattr(arguments, name) for name in CHANGEABLE}
    asked["epochs"] = asked["epochs"] or (ENDLESS if arguments.minutes else None)
    settings |= {name: value for name, value in asked.items() if value is not None} | {"minutes": arguments.minutes}
    return settings, checkpoint and from_preset(checkpoint)


def _check_same(arguments, settings):
    """Raise ValueError where a run that is resumed is given other settings than those that it keeps."""
    kept = (*CHANGEABLE, "run", "out", "resume")
    given = {name: value for name, value in vars(arguments).items() if value is not None and value is not False}
    other = [name for name, value in given.items() if name not in kept and settings.get(name) != value]
    if other:
        told = ", ".join(f"--{name.replace('_', '-')} {settings.get(name)}" for name in other)
        raise ValueError(f"{arguments.out} has {told}: leave it out to go on with the run, or give another --out.")


def _new_settings(arguments):
    if (arguments.out / runs.SETTINGS).exists():
        raise ValueError(f"{arguments.out} holds a run: give --resume to go on with it, or another --out.")
    kept = {k: v for k, v in vars(arguments).items() if k not in ("run", "out", "resume")}
    own = ("size",) if arguments.start else ()  # that of the model
    kept |= {name: value for name, value in USUAL.items() if kept[name] is None and name not in own}
    kept["learning_rate"] = arguments.learning_rate or 1.5e-3
    new = {"network": "text" if arguments.text else "patch", **DEFAULTS}
    given = [f"--{name}" for name in new if kept[name]]
    if arguments.start and given:
        raise ValueError(f"{', '.join(given)} is for a new network: leave it out, as {arguments.start} has its own.")
    if not arguments.start:
        kept |= {name: kept[name] or default for name, default in {**new, "dtype": "float32"}.items()}
    if arguments.text and kept["network"] not in (*READERS, None):
        raise ValueError(f"--network {arguments.network} reads no text: use one of {', '.join(READERS)} with --text.")
    if kept["network"] == "text" and not arguments.text:
        raise ValueError("--network text needs captions: give --text as well.")
    epochs = ENDLESS if arguments.minutes else 100
    return {**kept, "epochs": arguments.epochs or epochs, "epochs_done": 0, "losses": {}}


def _further(settings):
    """Load the model to train further: its averaged weights, and none of what its optimizer has gathered."""
    start = settings["start"]
    loaded, names, _ = opened(None, start, settings["dtype"])
    if settings["text"] and loaded.encoder is None:
        raise ValueError(f"--text: {start} reads no captions (train --text).")
    if settings["classes"] and not names:
        raise ValueError(f"--classes: {start} knows no classes (train --classes).")
    settings["class_names"] = names
    settings["size"] = _size(settings["size"], loaded.named_inputs.image.shape, start)
    own = {"seed": settings["seed"], "remat": settings["remat"]}
    own |= {"density": _density(settings, loaded.schedule)} if settings.get("logit_normal") else {}
    model = DiffusionModel.from_config({**loaded.get_config(), **own})
    for network in filter(None, (model.network, model.ema_network)):
        network.set_weights(loaded.averaged.get_weights())
    _compile(model, settings)
    return model


def _size(asked, image, start):
    """The size to train a model at: its own, where that is known."""
    rows_first = keras.config.image_data_format() == "channels_last"
    own = list(image[1:3] if rows_first else image[2:])
    if None in own:
        return asked or USUAL["size"]
    size = own[0] if own[0] == own[1] else own
    if asked and asked != size:
        raise ValueError(f"--size {asked}: {start} is of {own[0]} x {own[1]} pixels. Leave it out.")
    return size


def _new_model(settings, class_names, encoder):
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy(settings["dtype"])
    build = NETWORKS[settings["network"]]
    conditions = [*inspect.signature(build).parameters["conditions"].default]  # the network's own timestep
    size, read, null, drop = settings["size"], {}, {}, 0.0
    if class_names:
        conditions.append(class_label(len(class_names) + 1))  # the last stands for "any"
        null, drop = {"label": len(class_names)}, 0.1
    if encoder:
        # With classes too, either alone or none at all can be asked for.
        read, drop = {"context": encoder.context}, {"prompt": 0.5, "label": 0.35} if class_names else 0.1
    network = build((size, size, 3), conditions=conditions, **read)
    schedule, prediction = SCHEDULES[settings["schedule"]](), PREDICTIONS[settings["prediction"]]
    options = {"null": null, "drop": drop, "remat": settings["remat"], "seed": settings["seed"]}
    options |= {"density": _density(settings, schedule)}
    model = DiffusionModel(network, schedule, prediction, encoder=encoder, **options)
    _compile(model, settings)
    return model


def _density(settings, schedule):
    asked = settings.get("logit_normal")  # runs from before there was a choice say nothing
    return timesteps.logit_normal(schedule, *asked) if asked else None


def _compile(model, settings):
    optimizer = OPTIMIZERS[settings.get("optimizer", "adamw")]  # runs from before there was a choice say nothing
    model.compile(optimizer(settings["learning_rate"], weight_decay=1e-4, global_clipnorm=1.0))


def _fit(model, data, folder, settings):
    """Train from where the run stands; returns its settings as they are now."""
    deadline = Deadline(60 * settings["minutes"]) if settings["minutes"] else None
    last, steps = settings["epochs"], data["x"].num_batches

    def rate(step):
        """Rise over 100 steps, then fall as half a cosine, to a hundredth at the end of the run."""
        done = deadline.passed() if deadline else step / (last * steps)
        fall = max(0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)), 0.01)
        return settings["learning_rate"] * fall * min((step + 1) / 100, 1.0)

    pictures, captions = _examples(model, settings, data, 16)
    checkpoint = Checkpoint(folder, data["x"], every=settings["save_every"], keep=settings["keep"])
    place = checkpoint.resume(model)
    checkpoint.settings |= settings
    callbacks = [
        *([deadline] if deadline else []),
        LearningRate(rate, steps),
        LossGuard(data["x"][0], checkpoint),
        CsvLog(folder / "log.csv"),
        TensorBoardLog(folder / "board"),
        SampleGrid(
            pictures,
            folder / "samples",
            captions=captions,
            every=settings["samples_every"],
            steps=min(25, len(model.schedule)),
            board=folder / "board",
        ),
        checkpoint,
    ]
    held = data["validation"]
    options = {"validation_batch_size": settings["batch_size"]} if isinstance(held, tuple) else {}
    print(f"{model.network.count_params():,} parameters; the run is kept in {folder}", flush=True)
    with _ended_by_interrupt(model):
        model.fit(data["x"], epochs=last, validation_data=held, callbacks=callbacks, **place, **options)
    return checkpoint.settings


@contextlib.contextmanager
def _ended_by_interrupt(model):
    """Let the first Ctrl-C end training after the batch at hand; the second does what it always does."""

    def stop(number, frame):
        print("\nending after this batch; Ctrl-C again to break off", flush=True)
        model.stop_training = True
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pictures(model, data, folder, settings):
    """Draw the losses, a grid of samples and how they came about."""
    try:
        plots.loss(settings["losses"], path=folder / "loss.png")
    except ImportError as error:
        print(f"no loss.png: {error}")
    pictures, captions = _examples(model, settings, data, 16)
    steps = min(50, len(model.schedule))
    frames = [keras.ops.convert_to_numpy(f.x) for f in model.denoising(pictures, steps=steps, seed=settings["seed"])]
    plots.grid(frames[-1].clip(-1, 1), captions=captions, path=folder / "samples.png")
    plots.animation(frames, folder / "denoising.gif")
    print(f"samples in {folder / 'samples.png'}; more with: unet-keras sample {folder}")


def _examples(model, settings, data, count):
    """What the pictures of a run are asked for, and their captions: some of the data's, for a model that reads."""
    prompts = []
    if settings["text"]:
        prompts = list(data["captions"])[:: max(len(data["captions"]) // count, 1)][:count]
    return asked(model, data["class_names"], prompts, 1 if prompts else count)
