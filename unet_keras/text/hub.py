"""Where pretrained weights come from: KerasHub's presets, and folders as Hugging Face's transformers writes them.

Weights are taken whole or not at all: every tensor of a file is read once, or known to be another part's; every
variable is set once; shapes agree. Nothing here unpickles.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

from unet_keras.files import Tensors, download, read_json


def keras_hub():
    """Import KerasHub, which takes seconds; raise ImportError with the remedy where it is not installed."""
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError("Text encoders need KerasHub: pip install unet-keras[text].") from error
    return keras_hub


# ---- folders ----------------------------------------------------------------------------------------------------


def fetched(handle: str) -> Path | None:
    """Fetch the files of "hf://owner/name" and give their folder; None where KerasHub is to read the handle itself."""
    if not handle.startswith("hf://"):
        return None
    folder = download(handle, ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"])
    return folder if "model_type" in read_json(folder / "config.json") else None  # else in KerasHub's own format


def check_config(config: dict, path, *, types, only):
    """Raise ValueError where a model is of another type, or has a setting with an effect that is not built here.

    ``only`` maps a setting to the values that can be had; a setting that is absent has transformers' default.
    """
    if config.get("model_type") not in types:
        raise ValueError(f"{path} has model_type {config.get('model_type')!r}; this encoder reads {sorted(types)}.")
    for name, values in only.items():
        if name in config and config[name] not in values:
            raise ValueError(f"{path} has {name} = {config[name]!r}; this encoder knows {list(values)}.")


# ---- weights ----------------------------------------------------------------------------------------------------


class Linear(NamedTuple):
    """A variable that a file holds transposed: torch's (out, in) for Keras's (in, out) or (in, heads, dim)."""

    variable: object


def assign(tensors: Tensors, table: dict, variables, *, elsewhere: str):
    """Set all ``variables`` from a file's tensors, or raise ValueError and set none.

    ``table`` maps the tensors' names to variables, bare or as Linear. ``elsewhere`` is a regular expression for names
    that belong to another part of the model.
    """
    table = {name: v if isinstance(v, Linear) else _Same(v) for name, v in table.items()}
    faults = _faults(tensors, table, variables, elsewhere)
    if faults:
        raise ValueError(f"{tensors.folder}: the weights and config.json do not fit. " + " ".join(faults))
    for name, target in table.items():
        value = tensors[name]
        target.variable.assign((value.T if isinstance(target, Linear) else value).reshape(target.variable.shape))


class _Same(NamedTuple):
    variable: object


def _faults(tensors, table, variables, elsewhere):
    found = {name for name in tensors if name in table or not re.fullmatch(elsewhere, name)}
    set_here = {id(target.variable) for target in table.values()}
    both = sorted(found & set(table))
    lists = {
        "Tensors that nothing takes": sorted(found - set(table)),
        "Tensors that are missing": sorted(set(table) - found),
        "Variables that nothing sets": [v.path for v in variables if id(v) not in set_here],
        "Other shapes": [
            f"{n} {tensors.shape(n)} for {_wanted(table[n])}" for n in both if not _fits(tensors, n, table)
        ],
    }
    return [
        f"{what} ({len(names)}): {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
        for what, names in lists.items()
        if names
    ]


def _wanted(target):
    return f"{target.variable.path} {tuple(target.variable.shape)}"


def _fits(tensors, name, table):
    given, wanted = tensors.shape(name), tuple(table[name].variable.shape)
    if not isinstance(table[name], Linear):
        return given == wanted or len(given) == 1 and given[0] == math.prod(wanted)  # a bias of (heads, dim)
    return given[::-1] in {wanted, (wanted[0], math.prod(wanted[1:])), (math.prod(wanted[:-1]), wanted[-1])}
