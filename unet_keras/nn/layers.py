"""The layers that Keras lacks: timestep embedding, feature modulation, reshaping.

Everything here maps tensors to tensors and knows nothing of noise. Feature maps are (B, H, W, C), or (B, C, H, W)
where the layer was made under ``keras.config.image_data_format() == "channels_first"``; sequences are (B, N, C).
"""

import math

import keras
import numpy as np
from keras import layers, ops

serializable = keras.saving.register_keras_serializable("unet_keras")


def channel_axis():
    """The axis of the channels in a feature map under Keras's present image data format: -1 or 1."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def size_of(shape):
    """The height and width in a feature map's shape, (B, H, W, C) or as Keras's present image data format has it."""
    return tuple(shape[1:3] if channel_axis() == -1 else shape[2:4])


def image_shape(height, width, channels):
    """The shape of one image under Keras's present image data format."""
    return (height, width, channels) if channel_axis() == -1 else (channels, height, width)


@serializable
class TimestepEmbedding(layers.Layer):
    """Sinusoidal embedding of a scalar, (B,) or (B, M) -> (..., width), always computed in float32.

    angle_k = t / 10000^(k / (width/2 - shift)),  k = 0 ... width/2 - 1
    (Ho et al. 2020, after Vaswani et al. 2017, section 3.5). DDPM's own weights want ``shift=1`` and the sines first;
    Stable Diffusion's want ``shift=0`` and the cosines first. An odd width is filled up with one zero.
    """

    def __init__(self, width, *, shift=0.0, cosine_first=True, **kwargs):
        # Automatic casting would round timestep 999 to 1000 in bfloat16.
        super().__init__(autocast=False, **kwargs)
        if width < 4 or width // 2 <= shift:
            raise ValueError(
                f"width={width} is too narrow for a sinusoidal embedding with shift={shift}: use 4 or more."
            )
        self.width, self.shift, self.cosine_first = width, shift, cosine_first

    def call(self, t):
        half = self.width // 2
        frequency = np.exp(-math.log(10000.0) * np.arange(half) / (half - self.shift)).astype("float32")
        angle = ops.expand_dims(ops.cast(t, "float32"), -1) * ops.convert_to_tensor(frequency)
        parts = [ops.cos(angle), ops.sin(angle)] if self.cosine_first else [ops.sin(angle), ops.cos(angle)]
        if self.width % 2:
            parts.append(ops.zeros_like(angle[..., :1]))
        return ops.cast(ops.concatenate(parts, axis=-1), self.compute_dtype)

    def compute_output_shape(self, t_shape):
        return (*t_shape, self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "shift": self.shift, "cosine_first": self.cosine_first}


class Spatial(layers.Layer):
    """A layer that must know where the channels are; remembers it with its configuration."""

    def __init__(self, *, axis=None, **kwargs):
        super().__init__(**kwargs)
        self.axis = channel_axis() if axis is None else axis

    def per_channel(self, v):
        """(B, C) -> a shape that broadcasts over the feature map's pixels."""
        return v[:, None, None, :] if self.axis == -1 else v[:, :, None, None]

    def modulated(self, x, modulation):
        """Scale and shift a feature map's channels by a vector (B, 2C), which holds gamma - 1 and then beta."""
        scale, shift = ops.split(modulation, 2, axis=-1)
        return x * (1.0 + self.per_channel(scale)) + self.per_channel(shift)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


@serializable
class FiLM(Spatial):
    """Feature-wise linear modulation h' = gamma * h + beta (Perez et al. 2018), from a vector (B, 2C).

    The vector holds gamma - 1 and then beta, so that a zero vector leaves the features (B, H, W, C) as they are.
    """

    def call(self, x, modulation):
        return self.modulated(x, modulation)

    def compute_output_shape(self, x_shape, modulation_shape):
        check_modulation(x_shape[self.axis], modulation_shape)
        return x_shape


def check_modulation(channels, modulation_shape):
    """Raise ValueError unless a modulation has a scale and a shift for each channel."""
    if modulation_shape[-1] != 2 * channels:
        raise ValueError(f"To modulate {channels} channels takes twice as many numbers, not {modulation_shape[-1]}.")


@serializable
class MeanOfValid(keras.layers.GlobalAveragePooling1D):
    """The mean of the tokens that count, (B, L, D) -> (B, D); of none zero, where Keras's layer gives NaN."""

    def call(self, inputs, mask=None):
        if mask is None:
            return super().call(inputs)
        mask = ops.expand_dims(ops.cast(mask, inputs.dtype), axis=-1)
        return ops.sum(inputs * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)


def near_zero():
    """The initialiser of a residual branch's last layer: small, so that a deep network starts near the identity.

    DDPM and ADM start these layers at zero; a tenth of the usual spread trains alike and keeps every input visible
    in the output from the first step on, so that a condition which does nothing can be told at once.
    """
    return keras.initializers.VarianceScaling(0.01, "fan_avg", "uniform")


@serializable
class PixelsToSequence(Spatial):
    """Feature map (B, H, W, C) -> sequence (B, H * W, C), row by row."""

    def call(self, x):
        if self.axis == 1:
            x = ops.transpose(x, (0, 2, 3, 1))
        _, height, width, channels = ops.shape(x)
        return ops.reshape(x, (-1, height * width, channels))

    def compute_output_shape(self, x_shape):
        height, width = x_shape[1:3] if self.axis == -1 else x_shape[2:4]
        return (x_shape[0], height * width if height and width else None, x_shape[self.axis])


@serializable
class SequenceToPixels(Spatial):
    """Sequence (B, H * W, C) -> feature map (B, H, W, C), with the height and width of ``like``."""

    def call(self, y, like):
        height, width = ops.shape(like)[1:3] if self.axis == -1 else ops.shape(like)[2:4]
        y = ops.reshape(y, (-1, height, width, y.shape[-1]))
        return y if self.axis == -1 else ops.transpose(y, (0, 3, 1, 2))

    def compute_output_shape(self, y_shape, like_shape):
        shape = list(like_shape)
        shape[self.axis] = y_shape[-1]
        return tuple(shape)


@serializable
class CropLike(Spatial):
    """Cut a feature map to the height and width of ``like``, at the bottom and the right.

    Downsampling rounds odd sizes up, so upsampling by two gives the skip's size or one pixel more.
    """

    def call(self, x, like):
        height, width = ops.shape(like)[1:3] if self.axis == -1 else ops.shape(like)[2:4]
        return x[:, :height, :width, :] if self.axis == -1 else x[:, :, :height, :width]

    def compute_output_shape(self, x_shape, like_shape):
        shape = list(like_shape)
        shape[self.axis] = x_shape[self.axis]
        return tuple(shape)


@serializable
class NearestLike(Spatial):
    """Resize a feature map to the height and width of ``like``: pixel i of m comes from pixel floor(i n / m) of n."""

    def call(self, x, like):
        first = 1 if self.axis == -1 else 2
        for axis in (first, first + 1):
            size, wanted = ops.shape(x)[axis], ops.shape(like)[axis]
            x = ops.take(x, ops.arange(wanted) * size // wanted, axis=axis)
        return x

    def compute_output_shape(self, x_shape, like_shape):
        shape = list(like_shape)
        shape[self.axis] = x_shape[self.axis]
        return tuple(shape)
