"""Write a model as a folder of diffusers', or as a preset."""

from pathlib import Path

from unet_keras.cli.asking import check_empty, facts
from unet_keras.zoo.diffusers.folder import to_diffusers
from unet_keras.zoo.presets import from_preset, save_preset

EXAMPLES = """Write a model as a folder of diffusers', or as a preset: its averaged weights, where it keeps an average.

examples:
  unet-keras convert runs/emoji emoji-diffusers                        a run, for diffusers
  unet-keras convert hf://google/ddpm-cifar10-32 presets/cifar --to preset --dtype float16
  unet-keras convert path/to/pipeline half --variant fp16 --dtype float16
"""


def add_options(p):
    """Add the command's options to its parser."""
    p.add_argument("source", help="a preset's name, hf://owner/name, a diffusers folder, a run folder, a .keras file")
    p.add_argument("folder", type=Path, help="where it goes: a new folder or an empty one")
    p.add_argument("--to", default="diffusers", choices=("diffusers", "preset"), help="(default: %(default)s)")
    p.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="(default: %(default)s)")
    p.add_argument("--variant", metavar="NAME", help="which weights of a diffusers folder to read, e.g. fp16")
    p.set_defaults(run=convert)


def convert(arguments) -> None:
    """Load the source, and write it anew."""
    folder = arguments.folder
    check_empty(folder)
    model = from_preset(arguments.source, **({"variant": arguments.variant} if arguments.variant else {}))
    if arguments.to == "diffusers":
        print(to_diffusers(model, folder, dtype=arguments.dtype))
    else:
        print(save_preset(model, folder, about=facts(arguments.source), dtype=arguments.dtype))
