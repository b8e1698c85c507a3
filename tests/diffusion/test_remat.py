"""Training that computes activations again: the same numbers as training that keeps them."""

from functools import partial

import keras
import numpy as np
import pytest
from helpers import numpy_of, randomized, tiny_text_unet, tiny_unet
from keras import layers

from unet_keras import DiffusionModel, build_unet, conv_block, enable_lora, from_preset, res_block, save_preset
from unet_keras.diffusion import remat
from unet_keras.diffusion.remat import rematerialised
from unet_keras.nn.blocks import conv, role

from .helpers import network, pixels


def stateful(x, filters, emb=None, *, name=None):
    """A block with two seeded Dropouts and moving statistics."""
    told = layers.Dense(filters, name=role(name, "dense"))(emb)
    told = layers.Reshape((1, 1, filters), name=role(name, "told"))(told)
    x = layers.Add(name=role(name, "add"))([conv(x, filters, name=role(name, "conv")), told])
    x = layers.Dropout(0.3, seed=4, name=role(name, "drop1"))(x)
    x = layers.BatchNormalization(momentum=0.5, name=role(name, "norm"))(x)
    return layers.Dropout(0.3, seed=5, name=role(name, "drop2"))(x)


NETWORKS = {
    "state": partial(build_unet, (8, 8, 3), (4, 8), block=stateful),
    "text and dropout": partial(tiny_text_unet, block=partial(res_block, groups=2, dropout=0.5)),
}


def data_of(network, count=4):
    rng = np.random.default_rng(0)
    shapes = {name: x for name, x in network.input.items() if name not in ("image", "timestep")}
    draw = {
        "int32": lambda shape: rng.integers(0, 2, shape).astype("int32"),
        "bool": lambda shape: np.arange(np.prod(shape)).reshape(shape) % 3 > 0,
        "float32": lambda shape: rng.standard_normal(shape).astype("float32"),
    }
    return {name: draw[x.dtype]((count, *(n or 5 for n in x.shape[1:]))) for name, x in shapes.items()}


def fitted(network, adapt=None, **options):
    """Every variable of a model after two steps."""
    model = DiffusionModel(network, ema=0.5, seed=7, **options)
    if adapt:
        adapt(model)
    model.compile(keras.optimizers.SGD(0.1))
    keras.utils.set_random_seed(3)  # of Dropout without a seed, on torch
    conditions = data_of(network)
    model.fit(pixels(4), conditions or None, batch_size=2, epochs=1, shuffle=False, verbose=0)
    variables = model.trainable_variables + model.non_trainable_variables
    assert len(variables) > len(network.weights)
    return [(v.path, numpy_of(v)) for v in variables]


def made(build):
    keras.utils.set_random_seed(0)  # its Dropouts draw their seeds when they are made
    return randomized(build())


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same(name):
    kept, forgotten = (fitted(made(NETWORKS[name]), remat=remat) for remat in (False, True))
    for (path, value), (_, expected) in zip(forgotten, kept, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6, err_msg=path)
    start = {v.path: numpy_of(v) for v in made(NETWORKS[name]).trainable_variables}
    moved = [path for path, value in kept if path in start and not np.allclose(value, start[path], atol=1e-5)]
    assert len(moved) > len(start) / 2


def test_networks_in_half_precision_and_with_lora():
    adapt = partial(enable_lora, layers="", rank=2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    small = partial(tiny_text_unet, levels=[4])
    kept, forgotten = (fitted(made(small), adapt, remat=remat) for remat in (False, True))
    assert any("lora" in path for path, _ in kept)
    for (path, value), (_, expected) in zip(forgotten, kept, strict=True):
        # bfloat16's rounding differs where a compiler joins operations otherwise.
        np.testing.assert_allclose(value, expected, rtol=0.02, atol=1e-3, err_msg=path)


class Counted(layers.Layer):
    """Counts how often it is run, or traced, in training."""

    runs = 0

    def call(self, x, training=False):
        Counted.runs += bool(training)
        return x


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_run_again_in_the_backward_pass_and_know_that_it_is_training(remat):
    def counted(x, filters, emb=None, *, name=None):
        return conv_block(Counted(name=role(name, "count"))(x), filters, emb, name=name)

    model = DiffusionModel(build_unet((8, 8, 3), (4,), block=counted), remat=remat, ema=None)
    model.compile("sgd", run_eagerly=keras.backend.backend() != "jax")  # JAX counts what it traces
    Counted.runs = 0
    model.fit(pixels(2), batch_size=2, epochs=1, verbose=0)
    once, blocks = Counted.runs, 3
    if keras.backend.backend() == "jax":
        # JAX runs the trace of the first run again: what it keeps for the backward pass tells.
        once = 2 * blocks if kept_by_jax(model) < 0.6 * kept_by_jax(DiffusionModel(model.network, ema=None)) else blocks
    assert once == (2 if remat else 1) * blocks


def kept_by_jax(model):
    """The memory that a training pass leaves for the backward pass, the weights left out."""
    import jax

    network = model.network
    inputs = {"image": np.zeros((8, 8, 8, 3), "float32"), "timestep": np.zeros(8, "float32")}

    def run(trainable):
        with keras.StatelessScope(list(zip(network.trainable_variables, trainable, strict=True))):
            return model(inputs, training=True)

    values = [v.value for v in network.trainable_variables]
    left = jax.tree.leaves(jax.vjp(run, values)[1])
    return sum(x.nbytes for x in left) - sum(v.nbytes for v in values)


def test_frozen_weights_are_not_copied(monkeypatch):
    """What a block changes is kept for its second run, moving statistics and states of generators; kernels are not."""
    model = DiffusionModel(made(NETWORKS["state"]), ema=None, remat=True)
    for layer in model.network.layers:
        layer.trainable = "conv" not in layer.name
    frozen, copied = [v for v in model.network.non_trainable_variables if len(v.shape) == 4], []
    monkeypatch.setattr(remat.ops, "copy", lambda x: copied.append(len(x.shape)) or keras.ops.add(x, 0))
    model.compile("sgd")
    model.fit(pixels(2), batch_size=2, epochs=1, verbose=0)
    assert frozen and copied and max(copied) == 1


def test_a_saved_model_goes_on_rematerialising(tmp_path):
    model = DiffusionModel(tiny_unet(), remat=True)
    save_preset(model, tmp_path / "preset")
    assert from_preset(tmp_path / "preset").remat is True
    assert DiffusionModel.from_config(model.get_config()).remat is True


def test_networks_without_blocks_are_refused():
    with pytest.raises(ValueError, match="No layer of .* has a name like"):
        DiffusionModel(network(), remat=True)
    with pytest.raises(ValueError, match="Data leave one of .* and come back to it"):
        rematerialised(tiny_unet(), "(?=down|up)")  # the bridge lies between the two
    with pytest.raises(ValueError, match="not a functional keras.Model"):
        rematerialised(keras.Sequential([layers.Dense(1)]))
    with pytest.raises(ValueError, match="remat must be True or False, got 'full'"):
        DiffusionModel(tiny_unet(), remat="full")


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="a pass of XLA's on CPUs")
@pytest.mark.parametrize("without, saves", [("", False), ("cse_barrier_expander", True)])
def test_on_cpus_xla_undoes_it_unless_a_pass_is_left_out(without, saves):
    import jax

    def temporary(remat):
        model = DiffusionModel(made(partial(build_unet, (16, 16, 3), (16, 32))), remat=remat, ema=None)
        trainable, rest = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
        inputs = {"image": np.zeros((16, 16, 16, 3), "float32"), "timestep": np.zeros(16, "float32")}

        def loss(trainable):
            return keras.ops.sum(keras.ops.square(model.stateless_call(trainable, rest, inputs, training=True)[0]))

        options = {"xla_disable_hlo_passes": without} if without else {}
        compiled = jax.jit(jax.grad(loss)).lower(trainable).compile(compiler_options=options)
        return compiled.memory_analysis().temp_size_in_bytes

    assert (temporary(True) < 0.8 * temporary(False)) == saves
