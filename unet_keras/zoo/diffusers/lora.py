"""LoRA files of diffusers and PEFT: read whole, each tensor once, or refused; and written.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight    (rank, in) or (rank, in, h, w)
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight    (out, rank) or (out, rank, 1, 1)

alpha stands in the file's metadata, as PEFT's configuration, or in tensors beside; where it does not, it is the rank.
PEFT itself writes ``adapter_model.safetensors``, of other names, and its configuration as a file beside.
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path

import keras
import numpy as np

from unet_keras.diffusion.model import DiffusionModel
from unet_keras.files import Tensors, json_object, read_json
from unet_keras.lora import adapt, network_of
from unet_keras.nn.lora import Factors, adaptable, adapted, check_plain
from unet_keras.zoo.diffusers.names import kernel_to_ours, places, to_theirs

STEM, PEFT_STEM, PEFT_CONFIG = "pytorch_lora_weights", "adapter_model", "adapter_config.json"
PEFT_PREFIX = "base_model.model."
METADATA = "lora_adapter_metadata"
SIDES = ("lora_A.weight", "lora_B.weight")
PREFIX = "unet."

OLDER = [
    (r"^(base_model\.model\.)?(unet\.)?", ""),
    (r"\.processor\.", "."),
    (r"\.to_out_lora\.", ".to_out.0.lora."),
    (r"\.to_([qkv])_lora\.", r".to_\1.lora."),
    (r"\.lora(_linear_layer)?\.down\.weight$", ".lora_A.weight"),
    (r"\.lora(_linear_layer)?\.up\.weight$", ".lora_B.weight"),
    (r"\.lora\.alpha$", ".alpha"),
]
"""From the names of files written before PEFT to those of now, without the prefix."""


# ---- reading --------------------------------------------------------------------------------------------------------


def load_lora(model: keras.Model, path: str | os.PathLike, scale: float = 1.0) -> list[str]:
    """Adapt a DiffusionModel or a network as a LoRA file of diffusers says, ready to use or to train on.

    ``path`` is the file, or the folder of ``pytorch_lora_weights.safetensors``, or PEFT's own, of
    ``adapter_model.safetensors`` and ``adapter_config.json``; ``scale`` multiplies what it adds. Returns the paths of
    the adapted layers; everything else is frozen, as by ``enable_lora``.

    Raises ValueError, and changes nothing, for a scale that is no finite number, unless each tensor of the file is used
    and all shapes agree (it lists both sides), for a model that has LoRA already, and for a network that diffusers has
    no names for.
    """
    check_plain(network_of(model))
    if not isinstance(scale, int | float) or not np.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}.")
    tensors = _tensors(Path(path))
    names = _now_called(tensors)
    table, known = _by_module(network_of(model)), adaptable(network_of(model))
    modules = defaultdict(dict)
    for name, written in names.items():
        module, side = re.fullmatch(r"(.*?)\.?(alpha|lora_[AB]\.weight|[^.]*)", name).groups()
        modules[module][side] = written
    faults = _faults(tensors, modules, table, known)
    if faults:
        raise ValueError(f"{path}: the LoRA does not fit the network. {' '.join(faults)}")
    alpha_of = _alphas(tensors, known="alpha" in {side for parts in modules.values() for side in parts})
    plan, values = {}, {}
    for module, parts in modules.items():
        a, b = (tensors[parts[side]].astype("float32") for side in SIDES)
        rank = len(a)
        alpha = tensors[parts["alpha"]].item() if "alpha" in parts else alpha_of(module, rank)
        for path, half in table[module]:
            kernel = tuple(known[path].kernel.shape)
            mine = b if half is None else np.split(b, 2)[half]
            plan[path] = Factors(rank, alpha * scale)
            values[path] = kernel_to_ours(a, kernel), mine.reshape(len(mine), rank).T
    return adapt(model, plan, values)


def _tensors(path):
    if path.is_dir():
        ours = (path / f"{STEM}.safetensors").is_file() or not (path / f"{PEFT_STEM}.safetensors").is_file()
        return Tensors(path, STEM if ours else PEFT_STEM)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path} is no safetensors file, nor a folder with {STEM}.safetensors.")
    return Tensors(path.parent, path.stem)


def _now_called(tensors):
    """{today's name, without the prefix: the name in the file}"""
    names = {}
    for written in tensors:
        name = written
        for pattern, now in OLDER:
            name = re.sub(pattern, now, name)
        if name in names:
            raise ValueError(f"{tensors.folder}: {written} and {names[name]} are one tensor, {name}.")
        names[name] = written
    return names


def _by_module(network):
    """{module of theirs: [(path of a layer of ours, half)]}"""
    layers, table = adaptable(network) | adapted(network), defaultdict(list)
    for path, place in places(network).items():
        layer = path.rpartition("/kernel")[0]
        if layer in layers:
            table[place.tensor.removesuffix(".weight")].append((layer, place.half))
    return {module: sorted(found, key=lambda target: target[1] or 0) for module, found in table.items()}


def _faults(tensors, modules, table, known):
    used = {module for module, parts in modules.items() if module in table and set(parts) - {"alpha"} == set(SIDES)}
    stray = sorted(written for m, parts in modules.items() if m not in used for written in parts.values())
    shapes = []
    for module in sorted(used):
        a, b = (tensors.shape(modules[module][side]) for side in SIDES)
        kernels = [tuple(known[path].kernel.shape) for path, _ in table[module] if path in known]
        if not all(_fits(a, b, kernel, len(kernels)) for kernel in kernels):
            taken = " and ".join(f"{path} {shape}" for (path, _), shape in zip(table[module], kernels, strict=True))
            shapes.append(f"{module} {a} and {b} for {taken}")
    lists = {"Tensors that no layer takes, or without their pair": stray, "Other shapes": shapes}
    if stray:
        lists["Layers that the file says nothing of"] = sorted(set(table) - used)
    found = [
        f"{what} ({len(said)}): {', '.join(said[:8])}{', ...' * (len(said) > 8)}."
        for what, said in lists.items()
        if said
    ]
    return found if modules else ["There are no tensors in it."]


def _fits(a, b, kernel, halves):
    if len(a) not in (2, 4) or len(b) not in (2, 4) or not a[0] or b[1] != a[0] or b[2:] not in ((), (1, 1)):
        return False
    part = kernel_to_ours(np.broadcast_to(np.float32(0), a), kernel)
    return part.shape == (*kernel[:-1], a[0]) and b[0] == halves * kernel[-1]


def _alphas(tensors, known):
    """Read PEFT's configuration: a function from a module's name and rank to alpha. ``known``: tensors say alpha."""
    folder, config = Path(tensors.folder), {}
    theirs = any(name.startswith(PEFT_PREFIX) for name in tensors)
    if METADATA in tensors.metadata:
        config = json_object(tensors.metadata[METADATA], f"The file's {METADATA}")
    elif theirs and (folder / PEFT_CONFIG).is_file():
        config = read_json(folder / PEFT_CONFIG)
    elif theirs and not known and (folder / f"{PEFT_STEM}.safetensors").is_file():
        raise ValueError(f"{folder} has no {PEFT_CONFIG}, where PEFT keeps alpha: put it beside the file.")
    config = {key.removeprefix(PREFIX): value for key, value in config.items()}
    patterns, usual = config.get("alpha_pattern") or {}, config.get("lora_alpha")

    def alpha_of(module, rank):
        # As PEFT matches them: from the start, or from any dot on.
        found = next((v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), usual)
        alpha = float(rank if found is None else found)
        return alpha * rank**0.5 if config.get("use_rslora") else alpha

    return alpha_of


# ---- writing --------------------------------------------------------------------------------------------------------


def save_lora(model: keras.Model, path: str | os.PathLike, *, linear: bool = True) -> Path:
    """Write A and B of a model's LoRA as diffusers reads them (``load_lora_weights``, ``load_lora_adapter``).

    ``path`` is a folder, or a file that ends with ``.safetensors``; returns the file. Of a DiffusionModel, the averaged
    A and B are written where an average is kept. ``linear=False`` writes those of the maps around transformers as 1x1
    convolutions, as Stable Diffusion 1 has them.

    Theirs has the feed-forward's value and gate as one linear map: where the two have learned an A each, they are
    written as one of twice the rank, B of two blocks, which adds exactly the same.

    Raises ValueError for a model without LoRA, and for a network that diffusers has no names for.
    """
    from safetensors.numpy import save_file

    network = model.averaged if isinstance(model, DiffusionModel) else model
    found = adapted(network)
    if not found:
        raise ValueError(f"{network.name} has no LoRA to save: enable_lora or load_lora gives it some.")
    arrays, factors = {}, {}
    for module, targets in _by_module(network).items():
        if any(layer in found for layer, _ in targets):
            a, b, factors[module] = _joined([found.get(layer) for layer, _ in targets])
            a = to_theirs(a, f"{targets[0][0]}/kernel", linear=linear)
            arrays |= {f"{PREFIX}{module}.{side}": v for side, v in zip(SIDES, (a, _like(b.T, a)), strict=True)}
    file = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / f"{STEM}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, file, metadata={"format": "pt", METADATA: json.dumps(_peft_config(factors), indent=2)})
    return file


def _joined(layers):
    """Write the layers that are one in theirs (None for one without LoRA) as one A, one B and their Factors."""
    some = next(layer for layer in layers if layer is not None)
    pairs = [None if layer is None else [_numpy(v) for v in layer.factors] for layer in layers]
    rank, alpha = some.lora_rank, some.lora_alpha
    own = [pair for pair in pairs if pair is not None]
    nothing = np.zeros_like(own[0][1])  # value and gate have one shape
    if all(np.array_equal(pair[0], own[0][0]) for pair in own):
        b = np.concatenate([nothing if pair is None else pair[1] for pair in pairs], axis=1)
        return own[0][0], b, Factors(rank, alpha)
    (a0, b0), (a1, b1) = pairs
    b = np.block([[b0, nothing], [nothing, b1]])
    return np.concatenate([a0, a1], axis=-1), b, Factors(2 * rank, 2 * alpha)


def _numpy(variable):
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))


def _like(b, a):
    """B as a 1x1 convolution where A is a convolution."""
    return np.ascontiguousarray(b[:, :, None, None] if a.ndim == 4 else b)


def _peft_config(factors):
    """PEFT's configuration of modules with their ranks and alphas; exact names, so that no name matches another's."""
    usual = next(iter(factors.values()))
    others = {f"^{re.escape(module)}": f for module, f in factors.items() if f != usual}
    config = {
        "r": usual.rank,
        "lora_alpha": usual.alpha,
        "rank_pattern": {module: f.rank for module, f in others.items()},
        "alpha_pattern": {module: f.alpha for module, f in others.items()},
        "target_modules": sorted(factors),
    }
    return {f"{PREFIX}{key}": value for key, value in config.items()}
