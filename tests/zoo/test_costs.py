"""What a network is said to cost, against torch's own counter, what torch allocates, and the weights."""

import gc
from functools import partial

import keras
import numpy as np
import pytest
from helpers import TINY_UNETS, random_inputs

from unet_keras import DiffusionModel, TokenEncoder, adm, build_unet, cost, patch_unet, text_unet
from unet_keras.zoo.outline import outline
from unet_keras.zoo.stable_diffusion import latent_unet

TORCH = keras.backend.backend() == "torch"
on_torch = pytest.mark.skipif(not TORCH, reason="held against torch's own counts, which see torch's operations alone")


def reading():
    return text_unet((16, 16, 3), context=TokenEncoder(["red", "blue"], length=5, width=32).context, width=32)


NETWORKS = {
    "slides": partial(build_unet, (32, 32, 3), (16, 32), context=(5, 8), bridge=None),
    "ddpm": partial(patch_unet, (32, 32, 3), width=32),
    "adm": partial(adm, 32, (32, 64), 1, head_dim=16, dropout=0.1, classes=3),
    "stable diffusion": partial(latent_unet, 16, 24, (32, 64), (4, 4), (1, 0), name="latent"),
    "text": reading,
}


def given(network, batch):
    rng = np.random.default_rng(0)
    shapes = {x.name: ((batch, *(77 if n is None else n for n in x.shape[1:])), x.dtype) for x in network.inputs}
    arrays = {n: rng.normal(size=s) if "float" in kind else np.ones(s) for n, (s, kind) in shapes.items()}
    return {name: keras.ops.convert_to_tensor(array.astype(shapes[name][1])) for name, array in arrays.items()}


@on_torch
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_those_that_torch_counts(name):
    from torch import no_grad
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = NETWORKS[name]()
    found = cost(network, 2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), no_grad():
        network(given(network, 2))
    assert found.forward_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found.uncounted == ()


def most_allocated(network, inputs, **options):
    """The greatest number of bytes that torch holds at a time for a forward pass."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # or what is freed meanwhile would be taken off
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = network(inputs, **options)
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    del kept  # and with it what the backward pass would need
    return held.max()


@on_torch
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_activations_of_training_are_what_torch_allocates(name, policy):
    keras.config.set_dtype_policy(policy)
    network = NETWORKS[name]()
    found = cost(network, 2)
    measured = most_allocated(network, given(network, 2), training=True)
    assert found.training_activations + found.weight_copies == pytest.approx(measured, rel=0.15)


@on_torch
@pytest.mark.parametrize("name", NETWORKS)
def test_activations_of_sampling_are_what_torch_allocates(name):
    from torch import no_grad

    network = NETWORKS[name]()
    with no_grad():
        measured = most_allocated(network, given(network, 2))
    assert cost(network, 2).sampling_activations == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("name", TINY_UNETS)
def test_weights_are_counted_exactly_and_nothing_runs(name):
    network = TINY_UNETS[name]()
    found = cost(network, 3)
    model = DiffusionModel(network)
    model.compile(keras.optimizers.AdamW())
    arrays = [keras.ops.convert_to_numpy(v) for v in network.weights]
    moments = [v for v in model.optimizer.variables if len(v.shape)]
    assert found.parameters == network.count_params() and found.weights == sum(a.nbytes for a in arrays)
    assert found.average == sum(keras.ops.convert_to_numpy(v).nbytes for v in model.ema_network.weights)
    assert found.optimizer == sum(keras.ops.convert_to_numpy(v).nbytes for v in moments)
    assert found.training_flops == 3 * found.forward_flops > 0
    parts = (found.weights, found.average, found.optimizer, found.gradients, found.weight_copies)
    assert found.training == sum(parts) + found.training_activations
    network(random_inputs(network, 3))  # and its calls are as they were
    assert all(len(layer._inbound_nodes) <= 2 for layer in network.layers)


def test_a_convolution_by_hand():
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2D(5, 3, strides=2, padding="same")(x)
    y = keras.layers.Dense(7)(keras.layers.Activation("relu")(y))
    found = cost(keras.Model(x, keras.layers.Add()([y, y])), 2, backend="jax")
    assert found.forward_flops == 2 * 2 * 16 * (9 * 3 * 5 + 5 * 7)
    assert found.training_activations == 4 * 2 * (64 * 3 + 16 * 5)  # the image; relu's output, which dense reads too
    assert found.sampling_activations == 4 * 2 * max(64 * 3 + 16 * 5, 16 * 7 * 2)
    assert found.weight_copies == 0


def test_what_grows_with_the_batch_and_what_does_not(monkeypatch):
    monkeypatch.setattr("unet_keras.nn.one_pass.NUMBERS", 0)  # it keeps less, and more maps pass it in a larger batch
    network = NETWORKS["ddpm"]()
    one, four = cost(network, 1), cost(network, 4)
    assert four.forward_flops == 4 * one.forward_flops and four.weights == one.weights
    assert four.training_activations == 4 * one.training_activations
    assert 3.9 * one.sampling_activations <= four.sampling_activations <= 4 * one.sampling_activations


def test_backends_differ_where_they_are_known_to():
    network = NETWORKS["stable diffusion"]()
    torch, jax = (cost(network, 2, backend=backend) for backend in ("torch", "jax"))
    assert torch.forward_flops < jax.forward_flops and jax.weight_copies == 0 < torch.weight_copies
    assert jax.sampling_activations < torch.sampling_activations


def test_open_sizes_are_filled_in():
    network, fixed = (build_unet((n, n, 3), (4, 8), conditions=()) for n in (None, 32))
    assert cost(network, 2, size=32).forward_flops == cost(network, 2, size=(32, 32)).forward_flops
    assert cost(network, 2, size=32).forward_flops == cost(fixed, 2).forward_flops
    fixed = patch_unet((32, 32, 3), width=16)
    expected = cost(fixed, 2)
    assert cost(fixed, 2, size=64).forward_flops > 4 * expected.forward_flops  # attention grows faster
    with pytest.raises(ValueError, match="leaves the size of 'image' open: give size="):
        cost(network)


def test_a_network_within_a_network_is_opened():
    inner = build_unet((8, 8, 3), (4,), conditions=())
    x = keras.Input((8, 8, 3))
    assert cost(keras.Model(x, inner(x)), 2).forward_flops == cost(inner, 2).forward_flops


def test_layers_that_are_not_known_are_named():
    x = keras.Input((8, 8, 3))
    found = cost(keras.Model(x, keras.layers.SeparableConv2D(4, 3)(x)))
    assert found.uncounted == ("SeparableConv2D",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of 1 or more, got 0"),
        ({"batch": 1.5}, "batch must be"),
        ({"tokens": 0}, "tokens must be"),
        ({"size": 0}, "size must be"),
        ({"size": (8, 8, 8)}, "size must be"),
        ({"size": 9}, "cannot be followed on size=9"),
        ({"backend": "numpy"}, "backend must be"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        cost(TINY_UNETS["residual"](), **options)


def test_a_model_that_is_not_functional_is_refused():
    with pytest.raises(ValueError, match="not a functional keras.Model"):
        cost(DiffusionModel(TINY_UNETS["residual"](), ema=None))


# ---- by name --------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "ddpm-cifar10": 35_746_307,
    "adm-imagenet64": 295_904_454,
    "stable-diffusion-1.5": 859_520_964,
    "stable-diffusion-xl": 2_567_463_684,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_by_name_have_the_parameters_of_the_originals_and_no_values(name):
    network = outline(name)
    assert cost(network).parameters == PARAMETERS[name]
    assert all(v._value is None for v in network.trainable_variables)


def test_dtypes_of_networks_by_name():
    before = keras.config.dtype_policy()
    plain, half, mixed = (cost(outline("ddpm-cifar10", dtype=d), 2) for d in (None, "bfloat16", "mixed_bfloat16"))
    head = 9 * 128 * 3 + 3  # its output is float32
    assert mixed.weights == plain.weights == 2 * half.weights - 4 * head and keras.config.dtype_policy() == before
    assert half.training_activations < 0.75 * plain.training_activations
    assert mixed.weight_copies > 0.49 * plain.weights
    with pytest.raises(ValueError, match="takes no dtype='bfloat16'"):
        outline("emoji-32", dtype="bfloat16")


def test_cross_attention_counts_its_tokens():
    network = build_unet((8, 8, 3), (8,), context=(None, 4), bridge=None)
    few, many = (cost(network, tokens=n).forward_flops for n in (10, 110))
    keys, products = 2 * 100 * 4 * 16, 2 * 16 * 100 * 16  # keys and values; two products of 4 x 4 pixels
    assert many - few == 2 * (keys + products)
