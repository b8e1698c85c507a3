"""What a network is told beside the image, as functions that declare named inputs.

condition(width) -> inputs, vector           a named input or more, and one vector (B, width) made from them
context() -> inputs, sequence, mask          named inputs, a sequence (B, L, D), its valid tokens (B, L) or None
pool(sequence, width) -> vector              one vector (B, width) of a whole context
"""

import keras
from keras import layers

from unet_keras.checks import check_counts, check_open_counts
from unet_keras.nn.blocks import role, silu
from unet_keras.nn.layers import MeanOfValid, TimestepEmbedding


def two_dense(x, width, *, name=None):
    """Apply dense-silu-dense: how every vector of numbers becomes a part of ``emb``."""
    x = silu(layers.Dense(width, name=role(name, "dense1"))(x), role(name, "act"))
    return layers.Dense(width, name=role(name, "dense2"))(x)


# ---- vectors --------------------------------------------------------------------------------------------------------


def timestep(dim=None, *, shift=0.0, cosine_first=True):
    """Condition on the timestep: input ``timestep`` (B,), embedded in ``dim`` sines and cosines, then dense-silu-dense.

    ``dim`` is a quarter of the embedding's width unless given. ``shift`` and ``cosine_first`` are the variants in
    which public checkpoints differ: see ``TimestepEmbedding``. Raises ValueError for a ``dim`` below 1.
    """
    check_open_counts(dim=dim)

    def condition(width):
        # float32, so that a sampler may ask between two training timesteps; see TimestepEmbedding for the rounding.
        t = keras.Input((), dtype="float32", name="timestep")
        embed = TimestepEmbedding(
            dim or max(width // 4, 4), shift=shift, cosine_first=cosine_first, name="timestep_embedding"
        )
        return {"timestep": t}, two_dense(embed(t), width, name="timestep")

    return condition


def class_label(classes):
    """Condition on a class: input ``label`` (B,), an integer in [0, classes), with one learned vector a class.

    For classifier-free guidance ask for one class more than the data has, and give its index as the null label. Raises
    ValueError for fewer than one.
    """
    check_counts(classes=classes)

    def condition(width):
        label = keras.Input((), dtype="int32", name="label")
        return {"label": label}, layers.Embedding(int(classes), width, name="label_embedding")(label)

    return condition


def vector(numbers, *, name="vector", project=two_dense):
    """Condition on given numbers: input ``name`` (B, numbers), brought to the embedding's width by ``project``.

    ``project`` is called (x, width, name=); ``project=None`` adds them as they are, and they must be as many, or it is
    a ValueError.
    """
    check_counts(numbers=numbers)

    def condition(width):
        given = keras.Input((numbers,), name=name)
        if project is None and numbers != width:
            raise ValueError(f"{name} has {numbers} numbers, and the embedding is {width} wide: give a project.")
        return {name: given}, given if project is None else project(given, width, name=name)

    return condition


def position(dim, *, name="position", shift=0.0, cosine_first=True):
    """Condition on a number that is embedded as the timestep is: input ``name`` (B,), in ``dim`` sines and cosines."""

    def condition(width):
        given = keras.Input((), dtype="float32", name=name)
        embed = TimestepEmbedding(dim, shift=shift, cosine_first=cosine_first, name=f"{name}_embedding")
        return {name: given}, two_dense(embed(given), width, name=name)

    return condition


def pooled_and_sizes(pooled, sizes, dim, *, shift=0.0, cosine_first=True):
    """Condition on a text's pooled vector and on sizes in pixels, as Stable Diffusion XL (Podell et al. 2023, 2.2).

    Inputs ``pooled`` (B, pooled) and ``sizes`` (B, sizes): of the original image, the crop's corner, the target, each
    (height, width); each number is embedded in ``dim`` sines and cosines, and all go through dense-silu-dense at once.
    """

    def condition(width):
        text, numbers = keras.Input((pooled,), name="pooled"), keras.Input((sizes,), dtype="float32", name="sizes")
        embed = TimestepEmbedding(dim, shift=shift, cosine_first=cosine_first, name="sizes_embedding")
        y = layers.Flatten(data_format="channels_last", name="sizes_flat")(embed(numbers))
        y = layers.Concatenate(name="pooled_and_sizes")([text, y])
        return {"pooled": text, "sizes": numbers}, two_dense(y, width, name="pooled")

    return condition


def side_by_side(*conditions):
    """Put conditions' vectors side by side, each of the width asked for, where others are added up."""

    def condition(width):
        inputs, vectors = zip(*(each(width) for each in conditions), strict=True)
        merged = {name: x for more in inputs for name, x in more.items()}
        return merged, layers.Concatenate(name="side_by_side")(list(vectors))

    return condition


# ---- sequences ------------------------------------------------------------------------------------------------------


def sequence(tokens, width):
    """Context given from outside: input ``context`` (B, tokens, width), every token counting; tokens may be None."""

    def context():
        given = keras.Input((tokens, width), name="context")
        return {"context": given}, given, None

    return context


def masked_sequence(tokens, width):
    """Context with padding: inputs ``context`` (B, tokens, width), ``context_mask`` (B, tokens): true where real."""

    def context():
        given = keras.Input((tokens, width), name="context")
        mask = keras.Input((tokens,), dtype="bool", name="context_mask")
        return {"context": given, "context_mask": mask}, given, mask

    return context


def projected(context, width):
    """Bring another context's tokens to ``width`` by a linear map."""

    def narrowed():
        inputs, tokens, mask = context()
        return inputs, layers.Dense(width, name="context_dense")(tokens), mask

    return narrowed


def mean_pool(context, width, *, mask=None, name="pool"):
    """Sum a context up in one vector: the mean of its valid tokens (B, D), then dense-silu-dense: (B, width).

    The mean of no valid token is zero.
    """
    x = MeanOfValid(data_format="channels_last", name=role(name, "mean"))(context, mask=mask)
    return two_dense(x, width, name=name)
