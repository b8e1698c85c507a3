"""What tests of several folders share: NumPy in and out of any backend, and networks small enough to run in no time."""

from functools import partial

import keras
import numpy as np

from unet_keras import (
    Level,
    build_unet,
    class_label,
    cross_attention,
    keep_filters,
    masked_sequence,
    nearest_conv,
    norm_film,
    norm_head,
    res_block,
    res_down,
    res_up,
    sandwich,
    self_attention,
    spatial_transformer,
    strided_conv,
    timestep,
)
from unet_keras.nn.blocks import conv

tiny_res_block = partial(res_block, groups=2)
tiny_film_block = partial(res_block, groups=2, modulate=norm_film)
tiny_self_attention = partial(self_attention, groups=2, head_dim=4)
tiny_cross_attention = partial(cross_attention, heads=2)
tiny_transformer = partial(spatial_transformer, groups=2, heads=2)


def numpy_of(tensor):
    """A float32 array of any backend's tensor, bfloat16 included."""
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def normal(*shape, seed=0):
    """Gaussian noise that is the same on every backend."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(model, seed=0):
    """Give every weight of a model or layer a random value, the same on every backend. Returns the model.

    No weight is left at the zero or the one it starts from, so that every layer shows in the output.
    """
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        noise = generator.normal(size=weight.shape)
        if len(weight.shape) == 1:
            weight.assign(numpy_of(weight) + 0.3 * noise)
        else:
            weight.assign(noise / np.sqrt(np.prod(weight.shape[:-1])))
    return model


def output_of(model, inputs, **options):
    """Run a model or layer on NumPy inputs; NumPy out. A whole network is compiled on JAX: its operations alone, one
    after the other, would each be compiled, which takes several times as long."""
    if keras.backend.backend() != "jax" or not isinstance(model, keras.Model) or options:
        return numpy_of(model(inputs, **options))
    import jax

    def run(trainable, others, inputs):
        return model.stateless_call(trainable, others, inputs)[0]

    state = ([v.value for v in variables] for variables in (model.trainable_variables, model.non_trainable_variables))
    return numpy_of(jax.jit(run)(*state, inputs))


def on_arrays(part, *arrays, seed=0):
    """Run a part of a network, with random weights, on NumPy arrays of any batch size; NumPy out."""
    return output_of(randomized(model_of(part, *arrays), seed), arrays if len(arrays) > 1 else arrays[0])


def model_of(part, *arrays):
    """A part of a network as a model that takes what the arrays are examples of."""
    inputs = tuple(keras.Input(array.shape[1:], dtype=str(array.dtype)) for array in arrays)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], part(*inputs))


def random_inputs(model, batch=2, size=(8, 8), seed=0):
    """Random values, by the inputs' names, for a network that ``build_unet`` made."""
    return {x.name: _random_input(x, batch, size, seed) for x in model.inputs}


def _random_input(x, batch, size, seed):
    generator = np.random.default_rng([seed, *x.name.encode()])
    if x.name == "timestep":
        return np.linspace(1, 999, batch).astype("float32")
    if x.name == "label":
        return (np.arange(batch) % 3).astype("int32")
    if x.name == "context_mask":
        return np.arange(x.shape[1]) < np.arange(1, batch + 1)[:, None]
    if x.name != "image":
        return generator.normal(size=(batch, *x.shape[1:])).astype("float32")
    image = generator.normal(size=(batch, *size, 3)).astype("float32")
    return image.transpose(0, 3, 1, 2) if keras.config.image_data_format() == "channels_first" else image


def image_shape(height, width, channels=3):
    """An input shape in Keras's present image data format."""
    first = keras.config.image_data_format() == "channels_first"
    return (channels, height, width) if first else (height, width, channels)


def tiny_unet(levels=(4, 8), *, size=(8, 8), **options):
    """The slides' kind of network, with few filters."""
    return build_unet(image_shape(*size), levels, **options)


def tiny_residual_unet(*, size=(8, 8), **options):
    """DDPM's kind: residual blocks, all skips, strided and nearest-neighbour convolutions, self-attention."""
    defaults = {
        "levels": [Level(4), Level(8, 1, tiny_self_attention)],
        "bridge": partial(sandwich, block=tiny_res_block, attend=tiny_self_attention),
        "block": tiny_res_block,
        "down": strided_conv,
        "up": keep_filters(nearest_conv),
        "skips": "all",
        "stem": partial(conv, filters=4),
        "head": partial(norm_head, groups=2),
    }
    return build_unet(image_shape(*size), **{**defaults, **options})


def tiny_text_unet(*, size=(8, 8), **options):
    """Stable Diffusion's kind, with a class label and a padded text of 5 tokens, 6 wide."""
    defaults = {
        "bridge": partial(sandwich, block=tiny_res_block, attend=tiny_transformer),
        "down": partial(strided_conv, padding="symmetric"),
        "conditions": (timestep(), class_label(3)),
        "context": masked_sequence(5, 6),
    }
    return tiny_residual_unet(size=size, **{**defaults, **options})


def tiny_film_unet(*, size=(8, 8), **options):
    """ADM's kind: feature modulation after the norm, residual blocks that resample."""
    defaults = {
        "block": tiny_film_block,
        "bridge": partial(sandwich, block=tiny_film_block, attend=tiny_cross_attention),
        "down": partial(res_down, groups=2, modulate=norm_film),
        "up": keep_filters(partial(res_up, groups=2, modulate=norm_film)),
        "context": (5, 6),
    }
    return tiny_residual_unet(size=size, **{**defaults, **options})


TINY_UNETS = {
    "slides": tiny_unet,
    "residual": tiny_residual_unet,
    "text": tiny_text_unet,
    "film": tiny_film_unet,
}


class Cut(keras.callbacks.Callback):
    """Save after a number of batches, and end the process's training as an interrupt does."""

    def __init__(self, after, checkpoint):
        super().__init__()
        self.left, self.checkpoint = after, checkpoint

    def on_train_batch_begin(self, batch, logs=None):
        if not self.left:
            self.checkpoint._save()
        if self.left == -1:  # a batch more, which is lost
            raise KeyboardInterrupt
        self.left -= 1


def taped_gradients(call, given, weights, upstream, *, order, count):
    """The gradients of ``call(*given)`` on TensorFlow, ``given``'s and the weights', or those of their squares' sum.

    Eagerly, or compiled for a ``count`` of examples that may be open.
    """
    import tensorflow as tf

    def gradients(*given):
        watched = [*given, *(v.value for v in weights)]
        with tf.GradientTape() as outer:
            outer.watch(watched)
            with tf.GradientTape() as inner:
                inner.watch(watched)
                y = call(*given)
            found = inner.gradient(y, watched, tf.constant(upstream))
            length = sum(tf.reduce_sum(f**2) for f in found)
        return found if order == 1 else outer.gradient(length, watched, unconnected_gradients="zero")

    if count != "eager":
        gradients = tf.function(gradients, input_signature=[tf.TensorSpec((count, *v.shape[1:])) for v in given])
    return gradients(*map(tf.constant, given))


def torch_gradients(y, leaves, upstream, *, order):
    """The same by torch, of its own tensors."""
    import torch

    found = torch.autograd.grad(y, leaves, torch.tensor(upstream).double(), create_graph=True)
    if order == 2:
        length = sum((g**2).sum() for g in found)
        found = torch.autograd.grad(length, leaves, allow_unused=True, materialize_grads=True)
    return [g.detach().numpy() for g in found]
