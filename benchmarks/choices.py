"""Time a forward pass and a training step of DDPM's network with each choice that makes it fast left out in turn.

    KERAS_BACKEND=tensorflow python benchmarks/choices.py --dtype float32 --rounds 7
    KERAS_BACKEND=torch python benchmarks/choices.py --tasks forward

Each choice is one function of the package; in its place stands what Keras would do. All variants are timed round by
round; medians, and for each choice the ratio of the time without it and with all, above 1 where it pays. ``off`` is how
far the variant's output is from that with all, in standard deviations.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from unittest.mock import patch

import keras
import numpy as np
from keras import ops

from unet_keras import AdamW, DiffusionModel, optimizers
from unet_keras.diffusion import loop
from unet_keras.nn import attention, convolution, group_norm, linear, one_pass, winograd
from unet_keras.zoo import ddpm_cifar10


def plain_attention(q, k, v, mask):
    return ops.dot_product_attention(q, k, v, mask=mask, scale=1.0)  # q is scaled already


def only_linear(x, numbers=None, extra=0, _pays=one_pass.pays):
    return numbers is not None and _pays(x, numbers, extra)


DOUBLED = ("doubled maps as transposed convolutions", convolution, "REPEATED", not convolution.REPEATED)
CHOICES = {
    "tensorflow": [
        ("wide convolutions in half the products", winograd, "pays", lambda x, kernel: False),
        DOUBLED,
        ("group norm, silu and gates compiled", one_pass, "pays", only_linear),
        ("linear maps as convolutions", linear, "pays", lambda x, units: False),
        ("decay and average in a kernel each", optimizers, "_has_strategy", lambda: True),
        ("attention in pieces", attention, "_in_pieces", plain_attention),
    ],
    "torch": [
        ("group norm by torch's kernel", group_norm, "has_kernel", lambda: False),
        ("convolutions of views", convolution, "takes_views", lambda: False),
        DOUBLED,
    ],
    "jax": [("doubled maps repeated", *DOUBLED[1:])],
}


def forward(batch):
    """Make a function that gives the network's output, as the seed makes its weights."""
    keras.utils.set_random_seed(0)
    network, rng = ddpm_cifar10(), np.random.default_rng(0)
    inputs = {"image": rng.normal(size=(batch, 32, 32, 3)), "timestep": np.arange(batch)}
    inputs = {name: ops.convert_to_tensor(value, "float32") for name, value in inputs.items()}
    run = loop.compiled(lambda inputs: network(inputs, training=False), network.variables)
    return lambda: ops.convert_to_numpy(ops.cast(run(inputs), "float32"))


def step(batch):
    """Make a function that takes a training step and gives the loss."""
    keras.utils.set_random_seed(0)
    model = DiffusionModel(ddpm_cifar10(), seed=0)
    model.compile(AdamW(2e-4))
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype("float32")
    return lambda: np.asarray(model.train_on_batch(images))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="a policy of Keras's, such as bfloat16 or mixed_bfloat16")
    parser.add_argument("--tasks", nargs="+", default=["forward", "step"], choices=("forward", "step"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    keras.config.set_dtype_policy(a.dtype)
    backend = keras.backend.backend()
    for task in a.tasks:
        variants = {"with all": nullcontext}
        variants |= {name: lambda at=at: patch.object(*at) for name, *at in CHOICES[backend]}
        programs, found, seconds = {}, {}, {name: [] for name in variants}
        for name, left_out in variants.items():
            with left_out():
                programs[name] = {"forward": forward, "step": step}[task](a.batch)
                found[name] = programs[name]()
        for _ in range(a.rounds):
            for name, left_out in variants.items():
                with left_out():
                    start = time.perf_counter()
                    programs[name]()
                    seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(all_) for name, all_ in seconds.items()}
        print(f"{task}, {backend}, {a.dtype}, {a.batch} images: {median.pop('with all'):.3f} s with all; without")
        for name, without in median.items():
            off = np.abs(found[name] - found["with all"]).max() / (found["with all"].std() or 1)
            ratio = without / statistics.median(seconds["with all"])
            print(f"    {name:42}{without:8.3f} s{ratio:7.3f}   off {off:.0e}", flush=True)


if __name__ == "__main__":
    main()
