"""LoRA: a layer's kernel K stays, and the product of two thin matrices is trained beside it (Hu et al. 2021).

    K' = K + (alpha / rank) A B,      A (..., in, rank),  B (rank, out)

A convolution's A has the kernel's own size, and its B is a 1x1 convolution, as in PEFT. Keras's layers compute this
(``enable_lora``). But they save K' in the place of K, A and B, rounded to the compute dtype, and load A = B = 0, from
where no gradient leads away; and a Dense made from its configuration forgets alpha. So a layer that has LoRA turns
into one of the classes here, which save, load and copy it whole.
"""

import re
from typing import NamedTuple

import keras
from keras import layers, ops

from unet_keras.checks import check_counts
from unet_keras.nn.convolution import Conv
from unet_keras.nn.linear import Linear

serializable = keras.saving.register_keras_serializable("unet_keras")

ATTENTION = r"/(query|key|value|out)$"
"""The paths of the four linear maps of every Attention."""


class Factors(NamedTuple):
    """How a layer is to be adapted: the rank of A and B, and alpha, by which their product is scaled, over the rank."""

    rank: int
    alpha: float


class _Lora:
    """What Keras's layers with LoRA lack: files and copies that keep K, A, B and alpha; and a bias that stays too."""

    def enable_lora(self, rank, lora_alpha=None):
        # As PEFT does, uniform in +-1/sqrt(fan in), so that learning rates carry over.
        start = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        # Dense.build gives no alpha: that of the configuration stands.
        super().enable_lora(rank, self.lora_alpha if lora_alpha is None else lora_alpha, a_initializer=start)
        if self.bias is not None:
            self.bias.trainable = False

    def save_own_variables(self, store):
        layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        layers.Layer.load_own_variables(self, store)

    def merge_lora(self):
        """Fold A and B into the kernel, in float32, and turn back into Keras's layer."""
        delta = ops.matmul(*(ops.cast(ops.convert_to_tensor(v), "float32") for v in self.factors))
        delta = delta * (self.lora_alpha / self.lora_rank)
        self._kernel.assign(ops.cast(ops.cast(self._kernel, "float32") + delta, self._kernel.dtype))
        self.lora_enabled, self.lora_rank, self.lora_alpha = False, None, None
        for name, variable in zip(("lora_kernel_a", "lora_kernel_b"), self.factors, strict=True):
            self._untrack_variable(variable)
            del self.__dict__[name]  # Keras's own way collects garbage each time: a second a layer
        self.__class__ = next(plain for plain, lora in ADAPTED.items() if lora is type(self))

    @property
    def factors(self):
        """The variables A and B."""
        return self.lora_kernel_a, self.lora_kernel_b


@serializable
class LoraDense(_Lora, layers.Dense):
    """A Dense layer with LoRA."""


@serializable
class LoraLinear(_Lora, Linear):
    """A Linear layer with LoRA."""


@serializable
class LoraConv2D(_Lora, layers.Conv2D):
    """A Conv2D layer with LoRA."""


@serializable
class LoraConv(_Lora, Conv):
    """A Conv layer with LoRA."""


ADAPTED = {layers.Dense: LoraDense, Linear: LoraLinear, layers.Conv2D: LoraConv2D, Conv: LoraConv}


def adaptable(network: keras.Model) -> dict:
    """Give the layers that can have LoRA by their paths: each Dense, and each Conv2D without groups."""
    found = (layer for layer in _all_layers(network) if type(layer) in ADAPTED and layer.built)
    return {layer.path: layer for layer in found if getattr(layer, "groups", 1) == 1}


def adapted(network: keras.Model) -> dict:
    """Give the layers that have LoRA by their paths."""
    return {layer.path: layer for layer in _all_layers(network) if isinstance(layer, _Lora)}


def chosen(network: keras.Model, pattern: str, rank: int, alpha: float | None) -> dict[str, Factors]:
    """Say which layers a regular expression, searched for in their paths, is about, and how they are to be adapted.

    Raises ValueError for a rank below 1, an alpha that is not above 0, and a pattern that finds nothing.
    """
    check_counts(rank=rank)
    alpha = float(rank if alpha is None else alpha)
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha:g}.")
    known = adaptable(network)
    wanted = expression("layers", pattern)
    found = [path for path in known if wanted.search(path)]
    if not found:
        some = ", ".join(list(known)[:: max(1, len(known) // 8)][:8])
        raise ValueError(f"layers={pattern!r} finds none of the {len(known)} layers that LoRA can adapt: e.g. {some}.")
    return {path: Factors(int(rank), alpha) for path in found}


def expression(name: str, pattern: str) -> re.Pattern:
    """Compile a regular expression; ValueError, which names the argument, for what is none."""
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name}={pattern!r} is no regular expression: {error}.") from error


def adapt(network: keras.Model, plan: dict[str, Factors]) -> None:
    """Adapt the layers of a plan, by their paths, and freeze everything else; the output stays, as B = 0.

    Raises ValueError, and changes nothing, for a network that has LoRA already.
    """
    check_plain(network)
    known = adaptable(network)
    _unfreeze(network)
    for path, (rank, alpha) in plan.items():
        layer = known[path]
        # In place, as torch's parametrizations do it: the network's graph and its copies' hold on to the object.
        layer.__class__ = ADAPTED[type(layer)]
        layer.enable_lora(rank, alpha)
    for layer in _all_layers(network):
        _freeze(layer)
    retrack(network)


def check_plain(network: keras.Model) -> None:
    """Raise ValueError for a network that has LoRA."""
    there = adapted(network)
    if there:
        raise ValueError(f"{network.name} has LoRA already, on {len(there)} layers: fold it in with merge_lora first.")


def _freeze(layer):
    """Freeze a layer, unless it has LoRA, or a part that has; then only the weights that it has beside."""
    if not adapted(layer) and not isinstance(layer, _Lora):
        layer.trainable = False
    elif not isinstance(layer, _Lora):
        for variable in layer._trainable_variables:
            variable.trainable = False


def merge(network: keras.Model) -> list[str]:
    """Fold LoRA into the kernels and unfreeze every layer; returns the paths of the layers that had it.

    Raises ValueError where none has.
    """
    found = adapted(network)
    if not found:
        raise ValueError(f"{network.name} has no LoRA to merge: enable_lora or load_lora gives it some.")
    for layer in found.values():
        layer.merge_lora()
    _unfreeze(network)
    retrack(network)
    return list(found)


def _unfreeze(network):
    for layer in [network, *_all_layers(network)]:
        layer.trainable = True
        # On TensorFlow, setting what is set already does nothing, whatever became of the variables.
        for variable in layer._trainable_variables:
            variable.trainable = True


def retrack(model: keras.Model) -> None:
    """Tell torch which variables a model and its parts have now, or it would never set the new ones' gradients to 0."""
    if keras.backend.backend() == "torch":
        for layer in [model, *_all_layers(model)]:
            layer._track_variables()


def _all_layers(network):
    return network._flatten_layers(include_self=False)
