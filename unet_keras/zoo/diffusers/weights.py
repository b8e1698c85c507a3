"""Weights between diffusers' files and our networks: all of them, each once, or none."""

from collections import defaultdict

import keras
import numpy as np

from unet_keras.files import Tensors
from unet_keras.nn.abstract import fill, fill_rest
from unet_keras.zoo.diffusers.names import OLD_PROJECTIONS, places, to_ours, to_theirs


def load(network: keras.Model, tensors: Tensors) -> None:
    """Set every variable of a network from a file's tensors, one at a time.

    Raises ValueError, and sets none, unless each tensor of the file is used, each variable is set and all shapes agree:
    it lists both sides.
    """
    table = _as_named_in(tensors, _by_tensor(network))
    faults = _faults(tensors, table)
    if faults:
        raise ValueError(f"{tensors.folder}: the weights do not fit config.json. {' '.join(faults)}")
    for name, targets in table.items():
        array = tensors[name]
        for variable, half in targets:
            fill(variable, to_ours(_part(array, half), variable))
    fill_rest(network)


def arrays_of(network: keras.Model, *, linear: bool = True, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Give a network's weights as diffusers names and shapes them. ``linear`` as in ``to_theirs``.

    Raises ValueError for a ``dtype`` of no floats, and for weights that it cannot hold.
    """
    if dtype not in ("float16", "bfloat16", "float32"):
        raise ValueError(f"dtype must be 'float16', 'bfloat16' or 'float32', got {dtype!r}.")
    arrays = {}
    for name, targets in _by_tensor(network).items():
        parts = []
        for variable, _ in sorted(targets, key=lambda target: target[1] or 0):
            array = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
            with np.errstate(over="ignore"):
                array = array.astype(dtype)
            if not np.isfinite(array).all():
                raise ValueError(f"dtype={dtype!r} cannot hold the weights {variable.path}: use float32.")
            parts.append(to_theirs(array, variable.path, linear=linear))
        arrays[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return arrays


def _by_tensor(network):
    """{tensor: [(variable, half)]}"""
    found, table = places(network), defaultdict(list)
    for variable in network.variables:
        if variable.path in found:
            place = found[variable.path]
            table[place.tensor].append((variable, place.half))
    return dict(table)


def _as_named_in(tensors, table):
    """Take the names that files written before 2023 have for attention's maps, where the file has those."""
    present = set(tensors)

    def name_of(name):
        for new, old in OLD_PROJECTIONS.items():
            older = name.replace(f".{new}.", f".{old}.")
            if name not in present and older in present:
                return older
        return name

    return {name_of(name): targets for name, targets in table.items()}


def _faults(tensors, table):
    present, wanted = set(tensors), set(table)
    lists = {
        "Tensors that no variable takes": sorted(present - wanted),
        "Variables that no tensor sets": sorted(f"{table[name][0][0].path} ({name})" for name in wanted - present),
        "Other shapes": [
            f"{name} {tensors.shape(name)} for {' and '.join(f'{v.path} {tuple(v.shape)}' for v, _ in table[name])}"
            for name in sorted(present & wanted)
            if not _fits(tensors.shape(name), table[name])
        ],
    }
    return [
        f"{what} ({len(names)}): {', '.join(names[:8])}{', ...' * (len(names) > 8)}."
        for what, names in lists.items()
        if names
    ]


def _fits(shape, targets):
    halves = len(targets)
    if not shape or shape[0] % halves or halves != 1 + any(half is not None for _, half in targets):
        return False
    part = np.broadcast_to(np.float32(0), (shape[0] // halves, *shape[1:]))
    return all(to_ours(part, variable).shape == tuple(variable.shape) for variable, _ in targets)


def _part(array, half):
    return array if half is None else np.split(array, 2)[half]
