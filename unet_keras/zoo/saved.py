"""What Keras saved, read back at a door of its own: nothing in a file is run, and sizes come before memory.

A configuration may name registered classes and Keras's own, nothing else (``safe_mode``); the network it describes is
built on shapes alone first, so that one larger than the machine is told before a byte of it is taken.
"""

import math
import os
import re
from copy import deepcopy
from pathlib import Path

import keras

from unet_keras.files import keras_config
from unet_keras.nn.abstract import shapes_only
from unet_keras.zoo.layer_costs import bytes_of


def load_keras(path: Path) -> keras.Model:
    """Load a ``.keras`` file. Raises ValueError, which names it, for whatever is wrong with it."""
    check_config(keras_config(path), path)
    return told(path, keras.saving.load_model, path, safe_mode=True)


def deserialized(config: dict, path: Path):
    """Make what a configuration describes. Raises ValueError, which names the file, where that cannot be done."""
    return told(path, keras.saving.deserialize_keras_object, deepcopy(config), safe_mode=True)  # Keras empties it


def check_config(config: dict, path: Path) -> None:
    """Raise ValueError unless a configuration describes a DiffusionModel whose network fits into memory."""
    inner = config.get("config")
    if config.get("registered_name") != "unet_keras>DiffusionModel" or not isinstance(inner, dict):
        raise ValueError(f"{path} must hold a DiffusionModel, got {str(config.get('class_name')):.100}.")
    with shapes_only():
        network = deserialized(inner.get("network"), path)
    if not isinstance(network, keras.Model):
        raise ValueError(f"{path} must hold a DiffusionModel with a network, got a {type(network).__name__}.")
    check_memory(network)


def check_memory(network: keras.Model) -> None:
    """Raise ValueError where the weights of a network, built on shapes alone, are larger than the machine's memory."""
    need, have = sum(bytes_of(v) for v in network.variables), _physical_memory()
    if need > have:
        raise ValueError(
            f"The weights of {network.name!r} would take {need / 2**30:,.1f} GiB, and this machine has "
            f"{have / 2**30:,.1f}: its configuration asks for more than can be had."
        )


def told(path: Path, load, *args, **options):
    """Call what reads a file, or builds what it says. Raises ValueError, which names the file, for whatever goes wrong.

    Keras, its layers and the formats' libraries raise almost anything on broken data.
    """
    try:
        return load(*args, **options)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"cannot be loaded, {type(error).__name__}: "
        raise ValueError(f"{path}: {kind}{_reason(error)}") from error


def _reason(error):
    """What went wrong in one line: Keras wraps it in others, and prints it in bold."""
    text = str(error).split("Exception encountered: ")[-1].strip()
    bold = re.search("\x1b\\[1m(.*?)\x1b", text, flags=re.DOTALL)
    return " ".join((bold[1] if bold else text).split())[:1000]


def _physical_memory():
    """Tell how many bytes of memory the machine has; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf
