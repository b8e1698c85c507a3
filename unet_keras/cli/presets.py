"""List networks by name, or say what one costs before anything is allocated."""

import keras

from unet_keras.zoo.costs import cost
from unet_keras.zoo.outline import outline
from unet_keras.zoo.presets import SHIPPED, WEIGHTS, preset_names
from unet_keras.zoo.published import PUBLISHED

EXAMPLES = """List networks by name; or say what one costs in training and in sampling, before anything is allocated.

examples:
  unet-keras presets                                          a table
  unet-keras presets stable-diffusion-1.5 --batch 16 --dtype mixed_bfloat16
  unet-keras presets runs/emoji --batch 64                    a run, a preset's folder, a diffusers folder
  unet-keras presets hf://google/ddpm-cifar10-32 --size 64    its config.json alone is fetched

Memory is that of the backend in use (KERAS_BACKEND); guidance doubles the batch of sampling.
"""

ROW = "{:<28}{:>15}  {:<14}{:>10}  {}"


def add_options(p):
    """Add the command's options to its parser."""
    p.add_argument("name", nargs="?", help="a name of the table, or anything else that from_preset takes")
    p.add_argument("--batch", type=int, help="images at a time (default: 1)")
    p.add_argument("--dtype", choices=("float32", "mixed_bfloat16", "bfloat16"), help="(default: as it was saved)")
    p.add_argument("--size", type=int, help="height and width, of latents where it works on those (default: its own)")
    p.set_defaults(run=presets)


def presets(arguments) -> None:
    """Print the table, or what one network costs."""
    if arguments.name is None:
        for option in ("batch", "dtype", "size"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option} is of one network: give its name as well.")
        return _table()
    batch = 1 if arguments.batch is None else arguments.batch
    network = outline(arguments.name, dtype=arguments.dtype)
    for label, value in _told(cost(network, batch, size=arguments.size), network, arguments):
        print(f"{label:<32}{value}" if value else label)


def _table():
    """A row as soon as its network is built, on shapes alone."""
    print(ROW.format("name", "parameters", "image", "weights", "conditions"))
    for name in (*preset_names(), *PUBLISHED):
        network = outline(name)
        shipped = SHIPPED / name / WEIGHTS
        size = _memory(shipped.stat().st_size if shipped.is_file() else 4 * network.count_params())
        size = "none *" if name in PUBLISHED and PUBLISHED[name].source is None else size
        row = name, f"{network.count_params():,}", _shape(_image(network)), size, _conditions(network)
        print(ROW.format(*row), flush=True)
    print(
        "\nweights: on disk, published ones in float32. * Published in no form that can be read: yours to train, with"
    )
    print("from_preset(name, weights=False).")


def _told(found, network, arguments):
    """Lines of (label, value)."""
    image, size = _image(network), arguments.size
    yield f"{arguments.name}, batch {found.batch}, {network.dtype_policy.name}, {keras.backend.backend()}", ""
    yield "parameters", f"{found.parameters:,}"
    yield "image", f"{size} x {size} x {image.shape[-1]}" if size else _shape(image)
    yield "conditions", _conditions(network)
    yield "operations of a forward pass", _operations(found.forward_flops)
    yield "operations of a training step", f"{_operations(found.training_flops)} (three times the forward pass)"
    if found.uncounted:
        yield "  not counted, as not known", ", ".join(found.uncounted)
    yield "memory of training", _memory(found.training)
    parts = {"weights": found.weights, "their average": found.average, "AdamW's state": found.optimizer}
    parts |= {"gradients": found.gradients, "copies of weights": found.weight_copies}
    for label, value in {**parts, "activations": found.training_activations}.items():
        yield f"  {label}", _memory(value)
    yield "memory of sampling", _memory(found.sampling)
    yield "  weights", _memory(found.weights)
    yield "  activations", _memory(found.sampling_activations)


def _image(network):
    """The input of the image, the only one there is or the one of this name."""
    return next((x for x in network.inputs if x.name == "image"), network.inputs[0])


def _shape(image):
    return " x ".join("any" if n is None else str(n) for n in image.shape[1:])


def _conditions(network):
    """The named inputs beside the image, with the sizes of those that have any."""
    named = {x.name: _shape(x) for x in network.inputs if x is not _image(network)}
    return ", ".join(f"{name} ({sizes})" if sizes else name for name, sizes in named.items()) or "none"


def _memory(size):
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _operations(count):
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _scaled(value, base, units):
    for unit in units[:-1]:
        if value < base:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= base
    return f"{value:.3g} {units[-1]}"
