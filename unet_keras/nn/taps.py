"""What happens inside a network, as further outputs of it: the same layers, the same weights, the same numbers."""

import keras
from keras import layers

from unet_keras.nn.attention import Attention


class Tapped(layers.Layer):
    """An Attention layer of some network, that also gives its weights: (B, N, C), and (B, N, L) float32."""

    def __init__(self, attention):
        super().__init__(name=attention.name, dtype=attention.dtype_policy)
        self.attention = attention

    def build(self, *shapes):
        self.built = True

    def call(self, x, context=None, context_mask=None):
        y, asked = self.attention.look(x, context, context_mask)
        return y, self.attention.shares(*asked)

    def compute_output_spec(self, x, context=None, context_mask=None):
        tokens = (x if context is None else context).shape[1]
        spread = keras.KerasTensor((*x.shape[:2], tokens), dtype="float32")
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype), spread


def attention_taps(network):
    """Make a network of the same layers that also gives the weights of each cross-attention: [output, maps ...].

    A map is (B, N, L) float32: how much each of the N = h * w pixels of its layer, row by row, looks at each of the L
    tokens, averaged over the heads. Raises ValueError for a network without cross-attention.
    """
    maps = []

    def share(layer):
        return Tapped(layer) if isinstance(layer, Attention) else layer

    def call(layer, *args, **kwargs):
        if not isinstance(layer, Tapped):
            return layer(*args, **kwargs)
        y, weights = layer(*args, **kwargs)
        if len(args) > 1 or "context" in kwargs:
            maps.append(weights)
        return y

    twin = keras.models.clone_model(network, clone_function=share, call_function=call)
    if not maps:
        raise ValueError(f"{network.name} has no cross-attention: build it with context=..., see build_unet.")
    return keras.Model(twin.input, [twin.output, *maps], name=network.name)
