"""Fine-tuning by LoRA of a network, or of the networks inside a DiffusionModel: the one that trains and its average."""

import keras

from unet_keras.diffusion.model import DiffusionModel
from unet_keras.nn import lora
from unet_keras.nn.lora import ATTENTION, Factors


def enable_lora(model: keras.Model, rank: int = 4, *, alpha: float | None = None, layers: str = ATTENTION) -> list[str]:
    """Freeze a DiffusionModel or a network, and train K + (alpha / rank) A B for the kernels K of some of its layers.

    alpha       the rank unless given
    layers      a regular expression, searched for in the layers' paths: all Dense and Conv2D layers can be adapted;
                those of attention are unless given

    Returns the paths of the adapted layers. What the model computes is the same as before: A is random, B = 0. Where
    an average of the weights is kept, the frozen weights are the averaged ones, and A and B have an average of their
    own. A model that was compiled is compiled anew, with a new optimizer.

    Raises ValueError where ``layers`` finds nothing, for a rank below 1, and for a model that has LoRA already.
    """
    lora.check_plain(network_of(model))
    return adapt(model, lora.chosen(network_of(model), layers, rank, alpha))


def merge_lora(model: keras.Model) -> list[str]:
    """Fold A and B into the kernels, so that the network is a plain one, all of it trained; returns the layers' paths.

    What the model computes stays the same up to rounding. The average's own A and B are folded into the average. A
    model that was compiled is compiled anew, with a new optimizer. Raises ValueError for a model without LoRA.
    """
    if not isinstance(model, DiffusionModel):
        return lora.merge(model)
    model.attach()
    merged = [lora.merge(network) for network in _networks(model)]
    _settle(model)
    return merged[0]


def adapt(model: keras.Model, plan: dict[str, Factors], values: dict | None = None) -> list[str]:
    """Adapt layers as planned, {path: Factors}, and set A and B to ``values``, {path: (A, B)}, where they are given.

    Raises ValueError, and changes nothing, for a model that has LoRA already.
    """
    network = network_of(model)
    lora.check_plain(network)
    if isinstance(model, DiffusionModel):
        model.attach()
        if model.ema_network is not None:
            network.set_weights(model.ema_network.get_weights())
    lora.adapt(network, plan)
    for path, layer in lora.adapted(network).items():
        for factor, value in zip(layer.factors, (values or {}).get(path, ()), strict=False):
            factor.assign(value)
    if isinstance(model, DiffusionModel):
        if model.ema_network is not None:
            lora.adapt(model.ema_network, plan)
            model.ema_network.set_weights(network.get_weights())
        _settle(model)
    return list(plan)


def network_of(model: keras.Model) -> keras.Model:
    """The network that trains: a DiffusionModel's, or the model itself."""
    return model.network if isinstance(model, DiffusionModel) else model


def _networks(model):
    return [model.network] + ([] if model.ema_network is None else [model.ema_network])


def _settle(model):
    if model.ema_network is not None:
        model.ema_network.trainable = False
    lora.retrack(model)
    model.renew()
