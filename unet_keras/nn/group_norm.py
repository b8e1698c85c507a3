"""Group norm in few passes over the data, or in torch's own kernel."""

import math

import keras
from keras import ops

from unet_keras.checks import check_counts
from unet_keras.nn import fused_norm, one_pass
from unet_keras.nn.layers import Spatial, check_modulation

serializable = keras.saving.register_keras_serializable("unet_keras")


@serializable
class GroupNorm(Spatial):
    """Group normalisation (Wu & He 2018) of a feature map, and the ``activation`` after it, such as ``"silu"``.

    Statistics are in float32 whatever the compute dtype. Two arguments where the layer is called: ``modulation`` (B,
    2C) holds gamma' - 1 and then beta', by which the result is scaled and shifted before the activation (Dhariwal &
    Nichol 2021, "AdaGN"); ``added`` (B, C) is added to every pixel before it is normalised. Each channel's mean and
    mean square are combined to groups and folded with all these into one scale and one shift a channel. On torch's CPUs
    its own kernel does the same at once; on TensorFlow's, see ``fused_norm``.
    """

    def __init__(self, groups=32, *, epsilon=1e-5, activation=None, **kwargs):
        super().__init__(**kwargs)
        check_counts(groups=groups)
        self.groups, self.epsilon, self.activation = groups, epsilon, keras.activations.get(activation)

    def build(self, x_shape, modulation_shape=None, added_shape=None):
        channels = x_shape[self.axis]
        if channels % self.groups:
            raise ValueError(
                f"{channels} channels do not divide into groups={self.groups}: choose a divisor, e.g. "
                f"functools.partial(block, groups={math.gcd(channels, self.groups)})."
            )
        if modulation_shape is not None:
            check_modulation(channels, modulation_shape)
        if added_shape is not None and added_shape[-1] != channels:
            raise ValueError(f"To add to {channels} channels takes as many numbers, not {added_shape[-1]}.")
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta", autocast=False)

    def call(self, x, modulation=None, added=None):
        if has_kernel() and not _crashes_kernel(x, self.gamma):
            return self.by_kernel(x if added is None else x + self.per_channel(added), modulation)
        gamma, beta = (ops.cast(v, "float32")[None] for v in (self.gamma, self.beta))  # (1, C)
        if modulation is not None:
            more, shift = ops.split(ops.cast(modulation, "float32"), 2, axis=-1)
            gamma, beta = gamma * (1.0 + more), beta * (1.0 + more) + shift  # (B, C)
        name = keras.activations.serialize(self.activation)
        if self.axis == -1 and one_pass.pays(x) and name in fused_norm.ACTIVATIONS:
            added = ops.zeros_like(beta[:1]) if added is None else ops.cast(added, "float32")
            options = {"groups": self.groups, "epsilon": self.epsilon, "activation": name}
            return fused_norm.normalize(x, gamma, beta, added, **options)
        x = ops.cast(x, "float32")
        x = x if added is None else x + self.per_channel(ops.cast(added, "float32"))
        pixels = (1, 2) if self.axis == -1 else (2, 3)
        mean, square = (self.of_groups(ops.mean(v, axis=pixels)) for v in (x, ops.square(x)))
        r = ops.rsqrt(ops.maximum(square - ops.square(mean), 0.0) + self.epsilon)
        gamma, beta = (ops.reshape(v, (-1, self.groups, v.shape[-1] // self.groups)) for v in (gamma, beta))
        scale = r * gamma  # (B, groups, channels of a group)
        shift = beta - mean * scale
        scale, shift = (self.per_channel(ops.reshape(v, (-1, x.shape[self.axis]))) for v in (scale, shift))
        return self.activation(ops.cast(x * scale + shift, self.compute_dtype))

    def by_kernel(self, x, modulation=None):
        """The same in torch's kernel, which sums in float32 as well."""
        from torch.nn.functional import group_norm

        x = x.permute(0, 3, 1, 2) if self.axis == -1 else x
        y = group_norm(x, self.groups, *map(ops.convert_to_tensor, (self.gamma, self.beta)), self.epsilon)
        y = y.permute(0, 2, 3, 1) if self.axis == -1 else y
        return self.activation(y if modulation is None else self.modulated(y, modulation))

    def of_groups(self, v):
        """Average numbers of channels, (B, C), within each group: (B, groups, 1)."""
        return ops.mean(ops.reshape(v, (-1, self.groups, v.shape[-1] // self.groups)), axis=-1, keepdims=True)

    def compute_output_shape(self, x_shape, modulation_shape=None, added_shape=None):
        return x_shape

    def get_config(self):
        own = {
            "groups": self.groups,
            "epsilon": self.epsilon,
            "activation": keras.activations.serialize(self.activation),
        }
        return {**super().get_config(), **own}


def has_kernel() -> bool:
    """Tell whether group norm is torch's own: on CPUs, where that was measured (benchmarks/README.md)."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def _crashes_kernel(x, gamma) -> bool:
    """Tell whether torch's kernel would end the process in the backward pass (2.13, channels last).

    It does where gamma needs a gradient and x needs none: a norm of the image itself, or behind frozen layers.
    """
    import torch

    return torch.is_grad_enabled() and ops.convert_to_tensor(gamma).requires_grad and not x.requires_grad
