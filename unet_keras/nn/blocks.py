"""The parts of a U-Net, as functions from Keras tensors to Keras tensors.

    block(x, filters, emb) -> x            convolutional blocks; down- and upsampling are blocks too
    attend(x, context) -> x                attention over the pixels, or from the pixels to a sequence

x is a feature map (B, H, W, C), ``emb`` a vector (B, E) that carries the timestep and other global conditions, or
None; ``context`` a sequence (B, L, D) and ``mask`` (B, L) its valid tokens. Every part takes ``name``, the prefix of
its layers' names. A part's own options are bound with ``functools.partial`` where the network is written.
"""

from functools import wraps

import keras
from keras import layers

from unet_keras.checks import check_counts, check_open_counts
from unet_keras.nn.attention import Attention
from unet_keras.nn.convolution import Conv
from unet_keras.nn.gated import GeluGate
from unet_keras.nn.group_norm import GroupNorm
from unet_keras.nn.layers import (
    CropLike,
    FiLM,
    NearestLike,
    PixelsToSequence,
    SequenceToPixels,
    channel_axis,
    near_zero,
    size_of,
)
from unet_keras.nn.linear import Linear


def role(name, part):
    """The layer name ``part`` under the prefix ``name``; None, Keras's own numbering, without a prefix."""
    return f"{name}_{part}" if name else None


def conv(x, filters, size=3, *, name=None, **options):
    """Convolve with "same" padding."""
    return Conv(filters, size, name=name, **options)(x)


def silu(x, name=None):
    """Apply x * sigmoid(x)."""
    return layers.Activation("silu", name=name)(x)


def norm_silu(groups, eps, name=None):
    """Make the layer that normalises and applies silu."""
    return GroupNorm(groups, epsilon=eps, activation="silu", name=name)


# ---- blocks ---------------------------------------------------------------------------------------------------------


def conv_block(x, filters, emb=None, *, activation="relu", name=None):
    """Convolve twice, each time followed by ``activation``: the slides' block. (B, H, W, C) -> (B, H, W, filters).

    Between the two convolutions ``emb``, where there is one, modulates the features: h' = gamma(emb) * h + beta(emb).
    gamma starts at 1 and beta at 0, so that training starts from the plain network.
    """
    x = conv(x, filters, name=role(name, "conv1"))
    x = layers.Activation(activation, name=role(name, "act1"))(x)
    if emb is not None:
        modulation = linear_of(emb, 2 * filters, kernel_initializer="zeros", name=name)
        x = FiLM(name=role(name, "film"))(x, modulation)
    x = conv(x, filters, name=role(name, "conv2"))
    return layers.Activation(activation, name=role(name, "act2"))(x)


def linear_of(emb, units, *, name=None, **options):
    """Give a linear map of silu(emb), (B, units): what a block makes of the timestep."""
    return layers.Dense(units, name=role(name, "emb"), **options)(silu(emb, role(name, "emb_act")))


def norm_add(x, emb, norm, *, name=None):
    """Add a linear map of silu(emb) to the features, then normalise: how DDPM's blocks take the timestep in."""
    return norm(x) if emb is None else norm(x, added=linear_of(emb, x.shape[channel_axis()], name=name))


def norm_film(x, emb, norm, *, name=None):
    """Normalise, then scale and shift by a linear map of silu(emb): how ADM's blocks do (Dhariwal & Nichol 2021)."""
    return norm(x) if emb is None else norm(x, linear_of(emb, 2 * x.shape[channel_axis()], name=name))


def res_block(x, filters, emb=None, *, modulate=norm_add, groups=32, eps=1e-5, dropout=0.0, resample=None, name=None):
    """Add norm-silu-conv twice to the input: DDPM's residual block. (B, H, W, C) -> (B, H, W, filters).

    ``modulate(h, emb, norm)`` says where emb enters; norm(h) normalises and activates, norm(h, modulation) scales and
    shifts between the two, norm(h, added=vector) adds before both. ``resample`` (a layer) resizes both branches before
    the first convolution (Brock et al. 2019). Raises ValueError where the channels do not divide into ``groups``.
    """
    norm1, norm2 = (norm_silu(groups, eps, role(name, f"norm{n}")) for n in (1, 2))
    h = norm1(x)
    if resample is not None:
        h, x = resample(h), resample(x)
    h = conv(h, filters, name=role(name, "conv1"))
    h = modulate(h, emb, norm2, name=name)
    if dropout:
        h = layers.Dropout(dropout, name=role(name, "dropout"))(h)
    h = conv(h, filters, kernel_initializer=near_zero(), name=role(name, "conv2"))
    if x.shape[channel_axis()] != filters:
        x = conv(x, filters, 1, name=role(name, "shortcut"))
    return layers.Add(name=role(name, "add"))([x, h])


# ---- attention ------------------------------------------------------------------------------------------------------


def self_attention(x, context=None, *, mask=None, head_dim=None, groups=32, eps=1e-5, name=None):
    """Let every pixel look at every other: x + Attention(GroupNorm(x)). One head, or C // head_dim of them.

    ``groups=None`` leaves the norm out, as diffusers does at the bridge of networks of ADM's kind. ``context`` and its
    ``mask`` are not looked at; they are there so that all attends are called alike. Raises ValueError for a
    ``head_dim`` that is wider than the channels.
    """
    check_open_counts(head_dim=head_dim)
    channels = x.shape[channel_axis()]
    width = head_dim or channels
    if channels < width:
        raise ValueError(f"head_dim={head_dim} is wider than the {channels} channels: use a divisor of {channels}.")
    y = x if groups is None else GroupNorm(groups, epsilon=eps, name=role(name, "norm"))(x)
    y = Attention(channels // width, width, name=role(name, "attention"))(
        PixelsToSequence(name=role(name, "sequence"))(y)
    )
    return layers.Add(name=role(name, "add"))([x, SequenceToPixels(name=role(name, "pixels"))(y, x)])


def cross_attention(x, context, *, mask=None, heads=8, name=None):
    """Let every pixel of x decide which tokens of ``context`` matter: x + Attention(Q from x, K and V from context).

    The pixels are layer-normalised before they ask. Raises ValueError without a context, or where ``heads`` does not
    divide the channels.
    """
    _needs_context(context, "cross_attention")
    check_counts(heads=heads)
    channels = x.shape[channel_axis()]
    if channels % heads:
        raise ValueError(
            f"heads={heads} does not divide the {channels} channels: bind a divisor with functools.partial."
        )
    y = layers.LayerNormalization(epsilon=1e-5, name=role(name, "norm"))(
        PixelsToSequence(name=role(name, "sequence"))(x)
    )
    y = Attention(heads, channels // heads, name=role(name, "attention"))(y, context, context_mask=mask)
    return layers.Add(name=role(name, "add"))([x, SequenceToPixels(name=role(name, "pixels"))(y, x)])


def spatial_transformer(x, context, *, mask=None, depth=1, heads=None, head_dim=None, groups=32, name=None):
    """Run ``depth`` Transformer blocks over the pixels: self-attention, cross-attention, gated feed-forward.

    The part of Stable Diffusion's U-Net that reads the prompt (Rombach et al. 2022, appendix E.2.1). Give one of
    ``heads`` and ``head_dim``. Raises ValueError without a context, or with both or neither of the two.
    """
    _needs_context(context, "spatial_transformer")
    check_counts(depth=depth)
    check_open_counts(heads=heads, head_dim=head_dim)
    channels = x.shape[channel_axis()]
    heads, head_dim = _split_heads(channels, heads, head_dim)
    y = GroupNorm(groups, epsilon=1e-6, name=role(name, "norm"))(x)
    # A 1x1 convolution is a dense layer over the channels.
    y = Linear(heads * head_dim, name=role(name, "proj_in"))(PixelsToSequence(name=role(name, "sequence"))(y))
    for i in range(depth):
        y = _transformer_block(y, context, mask, heads, head_dim, name=role(name, f"layer{i}"))
    y = Linear(channels, kernel_initializer=near_zero(), name=role(name, "proj_out"))(y)
    return layers.Add(name=role(name, "add"))([x, SequenceToPixels(name=role(name, "pixels"))(y, x)])


def _transformer_block(y, context, mask, heads, head_dim, *, name):
    def norm(part):
        return layers.LayerNormalization(epsilon=1e-5, name=role(name, part))(y)

    def attention(part):
        return Attention(heads, head_dim, qkv_bias=False, name=role(name, part))

    y = layers.Add(name=role(name, "add1"))([y, attention("self")(norm("norm1"))])
    y = layers.Add(name=role(name, "add2"))([y, attention("cross")(norm("norm2"), context, context_mask=mask)])
    return layers.Add(name=role(name, "add3"))([y, _geglu(norm("norm3"), name=role(name, "feed"))])


def _geglu(y, *, name):
    """Feed forward through value * gelu(gate), four times as wide (Shazeer 2020, equation 6)."""
    width = y.shape[-1]
    value = Linear(4 * width, name=role(name, "value"))(y)
    gate = Linear(4 * width, name=role(name, "gate"))(y)
    return Linear(width, name=role(name, "out"))(GeluGate(name=role(name, "gated"))(value, gate))


def _needs_context(context, part):
    if context is None:
        raise ValueError(f"{part} needs a context, got None: give build_unet(context=(tokens, width)), or pass one.")


def _split_heads(channels, heads, head_dim):
    if (heads is None) == (head_dim is None):
        raise ValueError(f"Give one of heads and head_dim, got heads={heads}, head_dim={head_dim}.")
    heads = channels // head_dim if heads is None else heads
    if heads < 1 or channels < heads:
        raise ValueError(f"heads={heads}, head_dim={head_dim} do not fit {channels} channels.")
    return heads, head_dim or channels // heads


# ---- downsampling ---------------------------------------------------------------------------------------------------


def max_pool(x, filters=None, emb=None, *, name=None):
    """Keep the greatest of each 2x2 window; (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C). Has no filters to choose."""
    return layers.MaxPooling2D(2, padding="same", name=name)(x)


def strided_conv(x, filters=None, emb=None, *, padding="same", name=None):
    """Convolve 3x3 with stride two, to ``filters`` channels or as many as x has.

    ``padding="same"`` pads even sizes at the bottom and the right, as DDPM does; ``"symmetric"`` by one pixel on all
    sides, as Stable Diffusion does: the two sample half a pixel apart. Both round odd sizes up; ``"end"`` pads them,
    too, at the bottom and the right, which rounds them down.
    """
    pads = {"same": None, "symmetric": 1, "end": ((0, 1), (0, 1))}
    if padding not in pads:
        raise ValueError(f"padding must be one of {', '.join(pads)}, got {padding!r}.")
    filters = filters or x.shape[channel_axis()]
    if padding == "same":
        return Conv(filters, 3, strides=2, name=name)(x)
    x = layers.ZeroPadding2D(pads[padding], name=role(name, "pad"))(x)
    return Conv(filters, 3, strides=2, padding="valid", name=name)(x)


def res_down(x, filters=None, emb=None, *, padding="same", name=None, **options):
    """Halve the size inside a residual block, by averaging (Song et al. 2021; ADM).

    ``padding="same"`` rounds odd sizes up, ``"valid"`` down.
    """
    pool = layers.AveragePooling2D(2, padding=padding, name=role(name, "pool"))
    return res_block(x, filters or x.shape[channel_axis()], emb, resample=pool, name=name, **options)


# ---- upsampling -----------------------------------------------------------------------------------------------------


def conv_transpose(x, filters=None, emb=None, *, like=None, name=None):
    """Double the size with a transposed 2x2 convolution of stride two, to ``filters`` channels or as many as x has.

    ``like``: the feature map whose height and width the result is cut to.
    """
    filters = filters or x.shape[channel_axis()]
    x = layers.Conv2DTranspose(filters, 2, strides=2, padding="same", name=name)(x)
    return crop_like(x, like, name=role(name, "crop"))


def nearest_conv(x, filters=None, emb=None, *, like=None, name=None):
    """Repeat every pixel 2x2, or so that the size of ``like`` is met, then convolve 3x3 to ``filters`` or x's own."""
    doubled = Conv(filters or x.shape[channel_axis()], doubled=True, name=name)
    if like is None or same_size(keras.KerasTensor(doubled.compute_output_shape(x.shape)), like):
        return doubled(x)
    return conv(NearestLike(name=role(name, "nearest"))(x, like), filters or x.shape[channel_axis()], name=name)


def res_up(x, filters=None, emb=None, *, like=None, name=None, **options):
    """Double the size inside a residual block, by repetition, and cut to the size of ``like``."""

    repeat, crop = layers.UpSampling2D(2, name=role(name, "repeat")), CropLike(name=role(name, "crop"))

    def resample(y):  # the same two layers for both branches, as no two may have one name
        y = repeat(y)
        return y if like is None or same_size(y, like) else crop(y, like)

    return res_block(x, filters or x.shape[channel_axis()], emb, resample=resample, name=name, **options)


def crop_like(x, like, *, name=None):
    """Cut x to the height and width of ``like``; nothing to do, and no layer, where they are known to agree."""
    if like is None or same_size(x, like):
        return x
    # In x's own dtype: a mixed policy would round a float32 output here.
    return CropLike(name=name, dtype=x.dtype)(x, like)


def same_size(x, like):
    """Tell whether the two feature maps are known to agree in height and width."""
    return None not in size_of(like.shape) and size_of(x.shape) == size_of(like.shape)


def keep_filters(part):
    """Make a part work at its input's own number of channels whatever it is asked for, as DDPM's resamplers do."""

    @wraps(part)  # so that its signature is the part's: see call_part in unet.py
    def kept(x, filters=None, emb=None, **options):
        return part(x, None, emb, **options)

    return kept
