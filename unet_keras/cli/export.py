"""Write a run as a preset: its averaged weights in half precision, without the optimizer."""

from pathlib import Path

from unet_keras.cli.asking import POLICIES, check_empty, facts
from unet_keras.zoo.presets import from_preset, save_preset

EXAMPLES = """Write a run as a preset: a small folder to sample from, to train on, to share.

examples:
  unet-keras export runs/words presets/words
  unet-keras sample --preset presets/words "a red apple"
"""


def add_options(p):
    """Add the command's options to its parser."""
    p.add_argument("model", type=Path, help="a run folder or a .keras file")
    p.add_argument("folder", type=Path, help="where the preset goes")
    p.add_argument(
        "--dtype", default="float16", choices=("float16", "float32"), help="of the file (default: %(default)s)"
    )
    p.add_argument("--policy", choices=POLICIES, help="what the network computes in (default: what it was trained in)")
    p.set_defaults(run=export)


def export(arguments) -> None:
    """Write the preset, with what the run knows of itself."""
    check_empty(arguments.folder)
    model, about = from_preset(arguments.model, dtype=arguments.policy), facts(arguments.model)
    print(save_preset(model, arguments.folder, about=about, dtype=arguments.dtype))
