"""Which tensor of a diffusers file each of our variables is.

    down1_block0_conv1/kernel                 down_blocks.1.resnets.0.conv1.weight
    down1_attend0_layer0_feed_value/bias      the first half of
                                              down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.bias

One table of rules, from our names to theirs; which way a tensor's axes go follows from the variable's kind.
"""

import re
from typing import NamedTuple

import keras
import numpy as np


class Place(NamedTuple):
    """Where a variable lies in a file: the tensor's name, and the half of it (0 or 1), or None for the whole."""

    tensor: str
    half: int | None = None


ELSEWHERE = ("seed_generator_state", "lora_kernel_a", "lora_kernel_b")
"""Variables that no file of a network's weights holds."""

ROLES = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias", "bias": "bias"}

PARTS = [
    # of a residual block
    (r"(norm[12]|conv[12])", r"\1"),
    (r"emb", "time_emb_proj"),
    (r"shortcut", "conv_shortcut"),
]
SELF_ATTENTION = [
    (r"norm", "group_norm"),
    (r"attention/(query|key|value|out)", lambda m: PROJECTIONS[m[1]]),
]
TRANSFORMER = [
    (r"(norm|proj_in|proj_out)", r"\1"),
    (r"layer(\d+)_(norm\d)", r"transformer_blocks.\1.\2"),
    (r"layer(\d+)_self/(\w+)", lambda m: f"transformer_blocks.{m[1]}.attn1.{PROJECTIONS[m[2]]}"),
    (r"layer(\d+)_cross/(\w+)", lambda m: f"transformer_blocks.{m[1]}.attn2.{PROJECTIONS[m[2]]}"),
    (r"layer(\d+)_feed_(?:value|gate)", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"layer(\d+)_feed_out", r"transformer_blocks.\1.ff.net.2"),
]
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
OLD_PROJECTIONS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
ENDS = [
    (r"stem", "conv_in"),
    (r"head_norm", "conv_norm_out"),
    (r"head", "conv_out"),
    (r"timestep_dense(\d)", r"time_embedding.linear_\1"),
    (r"label_embedding", "class_embedding"),
    (r"label_dense([12])", r"class_embedding.linear_\1"),
    (r"label_dense", "class_embedding"),
    (r"pooled_dense(\d)", r"add_embedding.linear_\1"),
    (r"context_dense", "encoder_hid_proj"),
]


def place_of(path: str, levels: int, transformers: set[str]) -> Place:
    """Say where a variable of ours, by its path, lies in a file of a network with so many ``levels``.

    ``transformers`` holds the prefixes of those attends that are transformers, e.g. ``down0_attend0``. Raises
    ValueError for a variable that has no place in diffusers' networks.
    """
    layer, role = path.rsplit("/", 1)
    name = _module(layer, levels, transformers)
    if name is None or role not in ROLES:
        raise ValueError(f"{path} has no counterpart in diffusers' networks.")
    half = {"value": 0, "gate": 1}.get(layer.rsplit("_", 1)[-1]) if "_feed_" in layer else None
    return Place(f"{name}.{ROLES[role]}", half)


def _module(layer, levels, transformers):
    m = re.fullmatch(r"(down|up|bridge)(\d*)_(block|attend)(\d+)_(.+)", layer)
    if m:
        where, level, kind, index, rest = m.groups()
        group = {"down": f"down_blocks.{level}", "bridge": "mid_block"}.get(where) or _up(int(level), levels)
        if kind == "block":
            return _joined(f"{group}.resnets.{index}", _renamed(rest, PARTS))
        rules = TRANSFORMER if layer.split(f"attend{index}_")[0] + f"attend{index}" in transformers else SELF_ATTENTION
        return _joined(f"{group}.attentions.{index}", _renamed(rest, rules))
    m = re.fullmatch(r"(down|up)(\d+)_(?:down|up)(?:_(.+))?", layer)
    if m:
        where, level, rest = m.groups()
        # Their blocks end with the upsampling that ours of the next finer level begin with.
        group = f"down_blocks.{level}.down" if where == "down" else f"{_up(int(level) + 1, levels)}.up"
        return _joined(f"{group}samplers.0", _renamed(rest, PARTS) if rest else "conv")
    return _renamed(layer, ENDS)


def _up(level, levels):
    return f"up_blocks.{levels - 1 - level}"


def _joined(group, rest):
    return None if rest is None else f"{group}.{rest}"


def _renamed(name, rules):
    for pattern, theirs in rules:
        m = re.fullmatch(pattern, name)
        if m:
            return m.expand(theirs) if isinstance(theirs, str) else theirs(m)
    return None


def places(network: keras.Model) -> dict[str, Place]:
    """Say for each variable of a network, by its path, where it lies in diffusers' file; those of LoRA are left out."""
    paths = [v.path for v in network.variables if v.path.split("/")[-1] not in ELSEWHERE]
    levels = 1 + max((int(m[1]) for m in (re.match(r"down(\d+)_", path) for path in paths) if m), default=-1)
    transformers = {path.split("_proj_in")[0] for path in paths if "_proj_in/" in path}
    return {path: place_of(path, levels, transformers) for path in paths}


def to_ours(array: np.ndarray, variable) -> np.ndarray:
    """Bring a tensor of a file to a variable's axes: OIHW to HWIO, (out, in) to (in, out); the rest stays.

    A 1x1 convolution and a linear map are one thing: each is read as the other where need be.
    """
    return kernel_to_ours(array, tuple(variable.shape)) if variable.path.endswith("/kernel") else array


def kernel_to_ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring a kernel of a file to the axes of ours, which has this ``shape``."""
    if array.ndim == 4 and len(shape) == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim == 2 and len(shape) == 4 and shape[:2] == (1, 1):
        array = array[:, :, None, None]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_theirs(array: np.ndarray, path: str, *, linear: bool = True) -> np.ndarray:
    """Undo ``to_ours``; ``linear=False`` writes the maps around transformers as 1x1 convolutions."""
    if path.endswith("/kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if not linear and re.search(r"_proj_(in|out)/", path):
            array = array[:, :, None, None]
    return np.ascontiguousarray(array)
