"""The U-Net: levels of blocks on the way down, a bridge, and levels of blocks that take the skips on the way up.

``build_unet`` writes a plain functional Keras model out of parts (see blocks.py), conditions and a context
(see conditions.py). The vectors of all conditions are added up to ``emb``, which every block receives; every
``attend`` receives the context. It knows nothing of noise: give ``conditions=()`` and it is the U-Net of segmentation.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import keras
from keras import layers

from unet_keras.checks import check_counts, check_open_counts, is_int
from unet_keras.nn.blocks import (
    conv,
    conv_block,
    conv_transpose,
    crop_like,
    cross_attention,
    max_pool,
    norm_silu,
    role,
)
from unet_keras.nn.conditions import sequence, timestep
from unet_keras.nn.layers import channel_axis, near_zero


class Level(NamedTuple):
    """One resolution of a U-Net: ``depth`` blocks of ``filters`` channels, each followed by ``attend`` if given.

    ``down``, which leaves the level, and ``up``, which comes back to it, where they differ from the other levels'.
    """

    filters: int
    depth: int = 1
    attend: Callable | None = None
    down: Callable | None = None
    up: Callable | None = None


# ---- the U ----------------------------------------------------------------------------------------------------------


def encoder_block(
    x,
    filters,
    emb=None,
    context=None,
    *,
    mask=None,
    depth=1,
    block=conv_block,
    attend=None,
    down=max_pool,
    skips="last",
    name=None,
):
    """Run ``depth`` blocks, then ``down``: one level of the way down. Returns (skip, x) or (list of skips, x).

    ``skips="last"`` hands the last block's output over to the decoder: a single tensor, as in the U-Net of
    Ronneberger et al. 2015. ``skips="all"`` hands over the level's input and every block's output: a list, as in
    DDPM. ``down=None`` keeps the resolution.
    """
    if skips not in ("last", "all"):
        raise ValueError(f'skips must be "last" or "all", got {skips!r}.')
    trail = [x]
    for i in range(depth):
        x = call_part(block, x, filters, emb, name=role(name, f"block{i}"))
        x = _attended(attend, x, context, mask, role(name, f"attend{i}"))
        trail.append(x)
    if down is not None:
        x = call_part(down, x, filters, emb, name=role(name, "down"))
    return (trail if skips == "all" else trail[-1]), x


def decoder_block(
    x,
    skips,
    filters,
    emb=None,
    context=None,
    *,
    mask=None,
    depth=None,
    block=conv_block,
    attend=None,
    up=conv_transpose,
    name=None,
):
    """Run ``up``, then blocks that take the skips in, the last first: one level of the way up. Returns x.

    ``skips`` is what ``encoder_block`` returned: a tensor or a list of them. There are ``depth`` blocks, by default
    one a skip; those beyond the number of skips go without. ``up=None`` keeps the resolution.
    """
    skips = list(skips) if isinstance(skips, list | tuple) else [skips]
    depth = len(skips) if depth is None else depth
    if depth < len(skips):
        raise ValueError(f"depth={depth} blocks cannot take in {len(skips)} skips: use one block a skip or more.")
    if up is not None:
        x = call_part(up, x, filters, emb, like=skips[-1], name=role(name, "up"))
        x = crop_like(x, skips[-1], name=role(name, "crop"))
    for i in range(depth):
        if skips:
            x = layers.Concatenate(axis=channel_axis(), name=role(name, f"skip{i}"))([x, skips.pop()])
        x = call_part(block, x, filters, emb, name=role(name, f"block{i}"))
        x = _attended(attend, x, context, mask, role(name, f"attend{i}"))
    return x


def bridge(x, emb=None, context=None, *, mask=None, filters=None, block=conv_block, attend=None, name="bridge"):
    """Run one block, by default with twice as many filters as x has channels, and ``attend``: the bottom of the U."""
    filters = filters or 2 * x.shape[channel_axis()]
    x = call_part(block, x, filters, emb, name=role(name, "block0"))
    return _attended(attend, x, context, mask, role(name, "attend0"))


def sandwich(x, emb=None, context=None, *, mask=None, block=conv_block, attend=None, name="bridge"):
    """Run block, ``attend``, block at x's own number of filters: the bridge of DDPM and its followers."""
    filters = x.shape[channel_axis()]
    x = call_part(block, x, filters, emb, name=role(name, "block0"))
    x = _attended(attend, x, context, mask, role(name, "attend0"))
    return call_part(block, x, filters, emb, name=role(name, "block1"))


def pointwise_head(x, out_channels, *, name="head"):
    """End with a 1x1 convolution in float32."""
    return conv(x, out_channels, 1, dtype="float32", name=name)


def norm_head(x, out_channels, *, groups=32, eps=1e-5, size=3, name="head"):
    """End with group norm, silu and a convolution in float32: the head that goes with ``res_block``."""
    x = norm_silu(groups, eps, role(name, "norm"))(x)
    return conv(x, out_channels, size, dtype="float32", kernel_initializer=near_zero(), name=name)


def build_unet(
    input_shape,
    levels=(64, 128, 256, 512),
    *,
    up_levels=None,
    maps=None,
    bridge=None,
    block=conv_block,
    down=max_pool,
    up=conv_transpose,
    skips="last",
    conditions=(timestep(),),
    context=None,
    pool=None,
    emb_width=None,
    stem=None,
    head=pointwise_head,
    out_channels=None,
    activation=None,
    name="unet",
):
    """Build a U-Net as a functional ``keras.Model``: images (B, H, W, C), and conditions, to (B, H, W, out_channels).

    The default is the slides' network with the timestep in every block; with ``conditions=()`` it is their listing,
    layer for layer. The result takes a dictionary of its named inputs, ``image`` and those of the conditions and the
    context, and returns float32 whatever the dtype policy; without condition or context it takes the image alone.

    input_shape   (height, width, channels), or (channels, height, width) where Keras's image data format says so;
                  height and width may be None, and need not divide by anything: downsampling rounds up
    levels        filters of each level from fine to coarse, or ``Level`` for more than one block, or with attention
    up_levels     the levels of the way up, fine to coarse as well, where they differ from those of the way down
    maps          {name: channels}: more feature maps (B, H, W, channels) that are put beside the image, e.g. a mask and
                  the masked image to fill in, or an image to start from: named inputs in this order
    bridge        called (x, emb, context, mask=, name=); default: one block with twice the last level's filters, and
                  cross-attention where there is a context
    block, down, up   the parts of every level, see blocks.py; own ones need not take ``name`` or ``like``
    skips         "last": one skip a level, a bridge below the last level. "all": a skip from every block and from the
                  levels' inputs, and the bridge at the last level's resolution
    conditions    functions width -> (inputs, vector)
    context       (tokens, width) for a sequence given from outside, or a function () -> (inputs, sequence, mask)
    pool          called (context, width, mask=, name=): a vector of the whole context that joins those of the
                  conditions, e.g. ``mean_pool``; none unless given
    emb_width     width of the vector that carries the conditions; four times the first level's filters unless given
    stem, head    called (x) before and (x, out_channels) after the U; the stem may be a Keras layer
    activation    applied to the output, for other uses than diffusion (e.g. "sigmoid" for masks)

    Raises ValueError for an input shape of other than three numbers, for empty or malformed levels, for two inputs of
    one name, for a context that is none, e.g. an encoder in its place, and for inputs that no part reads: a context
    without ``attend``, a condition whose vector no block takes.
    """
    _check_input_shape(input_shape)
    check_open_counts(out_channels=out_channels, emb_width=emb_width)
    levels, up_levels = _as_levels(levels, up_levels)
    _check_context(context)
    image = keras.Input(input_shape, name="image")
    inputs = {"image": image}
    emb_width = emb_width or 4 * levels[0].filters
    vectors = _add_conditions(inputs, conditions, emb_width)
    text, mask = _add_context(inputs, context)
    if pool is not None:
        if text is None:
            raise ValueError("pool sums up a context, and there is none: give context as well.")
        vectors.append(_with_mask(pool, text, emb_width, mask=mask, name="pool"))
    emb = _added_up(vectors)

    x = _beside(image, inputs, maps or {})
    x = call_part(stem, x, name="stem") if stem else x
    stages = len(levels) - (skips == "all")  # with all skips the last level neither pools nor is upsampled to
    saved = []
    for i, level in enumerate(levels):
        options = {"mask": mask, "depth": level.depth, "block": block, "attend": level.attend, "skips": skips}
        options["down"] = (level.down or down) if i < stages else None
        skip, x = encoder_block(x, level.filters, emb, text, **options, name=f"down{i}")
        saved.append(skip)
    bridge = bridge or partial(_default_bridge, block=block, attend=cross_attention if context else None)
    x = _with_mask(bridge, x, emb, text, mask=mask, name="bridge")
    for i, level in reversed(list(enumerate(up_levels))):
        options = {"mask": mask, "depth": level.depth + (skips == "all"), "block": block, "attend": level.attend}
        options["up"] = (level.up or up) if i < stages else None
        x = decoder_block(x, saved.pop(), level.filters, emb, text, **options, name=f"up{i}")
    x = call_part(head, x, out_channels or image.shape[channel_axis()], name="head")
    x = crop_like(x, image, name="head_crop")
    if activation is not None:
        x = layers.Activation(activation, dtype="float32", name="activation")(x)
    network = keras.Model(inputs if len(inputs) > 1 else image, x, name=name)
    _check_read(network)
    return network


_default_bridge = bridge


def call_part(part, *args, **options):
    """Call a part with those of the options that it takes, so that a function of yours needs no ``name``.

    A Keras layer, as a stem say, takes none.
    """
    return part(*args, **_taken_by(part, options))


def _taken_by(part, options):
    if isinstance(part, layers.Layer):
        return {}
    parameters = inspect.signature(part).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return options
    return {key: value for key, value in options.items() if key in parameters}


def _with_mask(part, *args, mask, name):
    """Call a part that may see a mask. A mask is never dropped: a part that takes none raises TypeError."""
    options = _taken_by(part, {"name": name})
    return part(*args, **options) if mask is None else part(*args, mask=mask, **options)


def _attended(attend, x, context, mask, name):
    return x if attend is None else _with_mask(attend, x, context, mask=mask, name=name)


def _check_read(network):
    """Raise ValueError for inputs that nothing reads: they would be asked for, and make no difference."""
    nodes = (node for operation in network.operations for node in operation._inbound_nodes)
    read = {id(tensor) for node in nodes for tensor in node.input_tensors}
    unread = [tensor.name for tensor in network.inputs if id(tensor) not in read]
    if unread:
        raise ValueError(
            f"Nothing reads the inputs {unread}: a block must take emb for a condition to matter, and an attend, a "
            "bridge or pool the context. Leave out what is not to be used, e.g. conditions=()."
        )


def _check_input_shape(input_shape):
    if not isinstance(input_shape, tuple | list):
        raise ValueError(f"input_shape must be a tuple of three, got {input_shape!r}: give (32, 32, 3), say.")
    good = len(input_shape) == 3 and all(size is None or is_int(size) for size in input_shape)
    if not good or (None, *input_shape)[channel_axis()] is None:
        order = "(height, width, channels)" if channel_axis() == -1 else "(channels, height, width)"
        raise ValueError(f"input_shape must be {order}, sizes None or positive, got {input_shape!r}.")


def _as_levels(levels, up_levels):
    levels = [_as_level(level) for level in levels]
    if not levels:
        raise ValueError("levels is empty: give the filters of at least one level, e.g. (64, 128).")
    up_levels = levels if up_levels is None else [_as_level(level) for level in up_levels]
    if len(up_levels) != len(levels):
        raise ValueError(f"up_levels must be as many as levels, {len(levels)}, got {len(up_levels)}.")
    return levels, up_levels


def _as_level(level):
    level = level if isinstance(level, Level) else Level(level)
    if not is_int(level.filters) or not is_int(level.depth):
        raise ValueError(f"levels must hold positive filter counts or Levels of depth 1 or more, got {level!r}.")
    return level


def _beside(image, inputs, maps):
    """Put further feature maps beside the image."""
    if not maps:
        return image
    shape = list(image.shape[1:])
    if not isinstance(maps, Mapping):
        raise ValueError(f"maps must be {{name: channels}}, got {maps!r}.")
    check_counts(**maps)
    for name, channels in maps.items():
        shape[channel_axis()] = channels
        _add_inputs(inputs, {name: keras.Input(shape, name=name)})
    together = [image, *(inputs[name] for name in maps)]
    return layers.Concatenate(axis=channel_axis(), name="maps")(together)


def _add_conditions(inputs, conditions, width):
    if not isinstance(conditions, tuple | list) or not all(map(callable, conditions)):
        raise ValueError(f"conditions must be a tuple of functions, such as (timestep(),), got {conditions!r:.80}.")
    vectors = []
    for condition in conditions:
        more, vector = _declared(condition(width), 2, condition, "condition(width) -> (inputs, vector)")
        _add_inputs(inputs, more)
        vectors.append(vector)
    return vectors


def _declared(found, count, function, form):
    """Check what a condition or context gave: {name: input}, and what is made of them."""
    if not isinstance(found, tuple | list) or len(found) != count or not isinstance(found[0], Mapping):
        raise ValueError(f"{function!r:.80} gave {found!r:.80}, not what is wanted, {form}: call it first, perhaps.")
    return found


def _added_up(vectors):
    emb = None
    for i, vector in enumerate(vectors):
        emb = vector if emb is None else layers.Add(name=f"emb_add{i}")([emb, vector])
    return emb


def _check_context(context):
    pair = isinstance(context, tuple | list) and len(context) == 2
    if hasattr(context, "context") or not (context is None or pair or callable(context)):
        remedy = "give its .context" if hasattr(context, "context") else "give (77, 768), say"
        raise ValueError(f"context must be (tokens, width) or a function, got {context!r:.80}: {remedy}.")


def _add_context(inputs, context):
    if context is None:
        return None, None
    made = context if callable(context) else sequence(*context)
    try:
        declared = made()
    except TypeError as error:
        raise ValueError(f"context must be a function that takes nothing, got {context!r:.80}: {error}.") from error
    more, text, mask = _declared(declared, 3, context, "context() -> (inputs, sequence, mask)")
    _add_inputs(inputs, more)
    return text, mask


def _add_inputs(inputs, more):
    twice = set(inputs) & set(more)
    if twice:
        raise ValueError(f"conditions and context declare the input {sorted(twice)} twice: give each its own name.")
    inputs.update(more)
