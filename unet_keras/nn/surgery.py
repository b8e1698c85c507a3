"""Changes to a finished network, for fine-tuning: which layers train, channels in and out, which size and precision.

The changed networks are new ones, with copies of the weights; a change of what trains is made in place.
"""

import re

import keras
import numpy as np
from keras import layers

from unet_keras.checks import is_int
from unet_keras.nn.layers import channel_axis
from unet_keras.nn.lora import expression


def freeze(network: keras.Model, pattern: str) -> list[str]:
    """Keep all layers from training whose whole name matches ``pattern``, a regular expression; returns their names.

        freeze(model.network, "down.*|bridge.*")      only the way up is trained

    Call it before ``compile``, which makes the optimizer for what is trainable then. Names are those of ``summary()``.
    Raises ValueError where no layer with weights has such a name, or where none is left to train.
    """
    known = expression("pattern", pattern)
    chosen = [layer for layer in network.layers if layer.weights and known.fullmatch(layer.name)]
    if not chosen:
        raise ValueError(f"pattern={pattern!r} matches no layer with weights: names are as down0_block0_conv1.")
    if {id(layer) for layer in network.layers if layer.trainable_weights} <= {id(layer) for layer in chosen}:
        raise ValueError(f"pattern={pattern!r} leaves nothing to train.")
    for layer in chosen:
        layer.trainable = False
    return [layer.name for layer in chosen]


def with_channels(
    network: keras.Model, *, image: int | None = None, out: int | None = None, maps: dict[str, int] | None = None
) -> keras.Model:
    """Make a network of other channels, with copies of the weights: for masks, depth, an image to start from.

    image    channels of the image
    out      channels of the output
    maps     {name: channels} of further inputs beside the image, after those it has: see ``build_unet``

    Kernels of new inputs are zero, so that the output is at first as before (as for Stable Diffusion's inpainting);
    those of new outputs are drawn at random. Raises ValueError unless the network has a convolution ``stem`` and
    ``head``, and for a change that is none.
    """
    config = _config(network)
    for name, count in {"image": image, "out": out, **(maps or {})}.items():
        if count is not None and not is_int(count):
            raise ValueError(f"{name}: {count!r} is no number of channels: give 1 or more.")
    named = {layer["name"]: layer for layer in config["layers"]}
    for end in ("stem", "head"):
        if not isinstance(network.get_layer(end) if end in named else None, layers.Conv2D):
            raise ValueError(f"{network.name} has no convolution named {end}: build it with stem= and head=.")
    given = dict(network.input) if isinstance(network.input, dict) else {"image": network.input}
    if set(maps or {}) & set(given):
        raise ValueError(f"{network.name} has the inputs {sorted(given)} already: give maps={maps} other names.")
    if image is None and out is None and not maps:
        raise ValueError("Nothing to change: give image, out or maps.")
    axis = channel_axis()
    before = network.get_layer("stem").input.shape[axis]
    if image is not None:
        _resize(named["image"], {axis % 4: image})
    if maps:
        _put_beside(config, named, maps, axis)
    if out is not None:
        named["head"]["config"]["filters"] = out
    changed = _built(config)
    # The image's channels come first, those of the maps after it.
    kept = min(image or given["image"].shape[axis], given["image"].shape[axis])
    rest = before - given["image"].shape[axis]
    first = image or given["image"].shape[axis]
    _copy(network, changed, [(slice(kept), slice(kept)), (slice(before - rest, before), slice(first, first + rest))])
    return changed


def with_size(network: keras.Model, size: tuple[int | None, int | None] | int | None) -> keras.Model:
    """Make a network for images of another height and width, with copies of the weights; None leaves them open.

    Raises ValueError where the network is of one piece with its size: one of a known size that divides cuts nothing on
    the way up, and works at such sizes alone.
    """
    config = _config(network)
    height, width = size if isinstance(size, tuple | list) else (size, size)
    spatial = (1, 2) if channel_axis() == -1 else (2, 3)
    for layer in config["layers"]:
        if layer["class_name"] == "InputLayer" and len(layer["config"]["batch_shape"]) == 4:
            _resize(layer, dict(zip(spatial, (height, width), strict=True)))
    try:
        changed = _built(config)
    except ValueError as error:
        raise ValueError(f"{network.name} does not work at the size {size}: build it anew. {error}") from error
    _copy(network, changed)
    return changed


def with_dtype(network: keras.Model, dtype) -> keras.Model:
    """Make a network that computes under another Keras dtype policy, "mixed_bfloat16" say, with copies of the weights.

    Its output stays float32 whatever the policy, as ``build_unet`` has it: that of the last layer with weights, and of
    what follows it. Raises ValueError for what names no policy.
    """
    try:
        policy = keras.dtype_policies.get(dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"dtype={dtype!r} is no Keras dtype policy: give 'mixed_bfloat16', say. {error}") from error
    config, last = _config(network), _last(network)
    for layer in config["layers"]:
        own = "dtype" in layer["config"]  # but for bare operations, which follow what they are given
        if own and layer["class_name"] != "InputLayer" and layer["name"] not in last:
            layer["config"]["dtype"] = keras.saving.serialize_keras_object(policy)
    changed = _built(config)
    changed.dtype_policy = policy  # Keras keeps none in a functional model's configuration
    _copy(network, changed)
    return changed


def skip_taps(network: keras.Model) -> keras.Model:
    """Make a network of the same layers and weights that gives its skips as well: {"output": ..., layer: tensor}.

    A skip goes by the name of the layer that made it, e.g. ``down1_block0_add``. Raises ValueError without any.
    """
    skips = {}
    for layer in network.layers:
        if re.fullmatch(r"up\d+_skip\d+", layer.name):
            tensor = layer.input[1]
            skips[tensor._keras_history.operation.name] = tensor
    if not skips:
        raise ValueError(f"{network.name} has no skips: it is no network of build_unet.")
    return keras.Model(network.input, {"output": network.output, **skips}, name=network.name)


def _config(network):
    """Give a network's configuration. Raises ValueError for anything but a functional one, a DiffusionModel for one."""
    config = network.get_config() if isinstance(network, keras.Model) else {}
    if "layers" not in config:
        raise ValueError(
            f"network must be a functional keras.Model, got a {type(network).__name__}: give model.network."
        )
    return config


def _last(network):
    """Name the last layer with weights before each output, and those after it."""
    names, ahead = set(), [tensor._keras_history.operation for tensor in network.outputs]
    while ahead:
        layer = ahead.pop()
        names.add(layer.name)
        if not layer.weights and not isinstance(layer, layers.InputLayer):
            ahead += [tensor._keras_history.operation for tensor in keras.tree.flatten(layer.input)]
    return names


def _resize(layer, sizes):
    shape = list(layer["config"]["batch_shape"])
    for axis, size in sizes.items():
        shape[axis] = size
    layer["config"]["batch_shape"] = tuple(shape)


def _put_beside(config, named, maps, axis):
    """Add inputs to a configuration, and let the stem see them beside what it saw."""
    node = named["stem"]["inbound_nodes"][0]
    seen, *others = node["args"]
    inputs = []
    for name, channels in maps.items():
        shape = list(named["image"]["config"]["batch_shape"])
        shape[axis] = channels
        like = named["image"]
        new = {**like, "name": name, "config": {**like["config"], "name": name, "batch_shape": tuple(shape)}}
        config["layers"].append(new)
        inputs.append(_tensor(name))
        if not isinstance(config["input_layers"], dict):
            config["input_layers"] = {"image": ["image", 0, 0]}
        config["input_layers"][name] = [name, 0, 0]
    together = layers.Concatenate(axis=axis, name="_".join(["with", *maps]))
    entry = keras.saving.serialize_keras_object(together)
    entry |= {"name": together.name, "inbound_nodes": [{"args": [[seen, *inputs]], "kwargs": {}}]}
    config["layers"].append(entry)
    node["args"] = [_tensor(together.name), *others]


def _tensor(name):
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [], "dtype": "float32", "keras_history": [name, 0, 0]},
    }


def _built(config):
    for layer in config["layers"]:
        layer.pop("build_config", None)  # of the old shapes
    return keras.Model.from_config(config)


def _copy(network, changed, stem=None):
    """Copy all weights; of the stem's kernel those inputs that are listed, of the head as many outputs as both have."""
    news = {v.path: v for v in changed.weights}
    for old in network.weights:
        new, value = news[old.path], keras.ops.convert_to_numpy(old)
        if tuple(new.shape) != value.shape:
            whole = keras.ops.convert_to_numpy(new).copy()
            if old.path == "stem/kernel":
                whole[:] = 0
                for source, target in stem:
                    whole[:, :, target] = value[:, :, source]
            else:
                count = min(whole.shape[-1], value.shape[-1])
                whole[..., :count] = value[..., :count]
            value = whole
        new.assign(np.asarray(value))
    for layer in network.layers:
        changed.get_layer(layer.name).trainable = layer.trainable
    for old in network.weights:  # a layer that trains may have parts that do not
        news[old.path].trainable = old.trainable
