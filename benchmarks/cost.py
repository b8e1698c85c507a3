"""Hold what ``cost`` says against what is measured: operations, memory of a training step, memory of a forward pass.

    python benchmarks/cost.py                              every network on every backend, a process each
    python benchmarks/cost.py --backend jax --network ddpm-cifar10 --batch 4

How each is measured:

torch         operations by FlopCounterMode, attention unfused, as the fused kernel of CPUs is not counted; training by
              the tensors saved for the backward pass (each storage once, weights aside), sampling by the profiler's
              allocations
jax           the compiler's temporary memory: of the loss and its gradients, and of a forward pass

TensorFlow is left out: it tells no such figure on CPUs, and the process's own peak is hidden by the allocator's pools.
JAX's gradients are results, beside these figures.
"""

import argparse
import json
import os
import subprocess
import sys

BACKENDS = ("torch", "jax")
NETWORKS = ("ddpm-cifar10", "text")


def network_of(name):
    from unet_keras import TokenEncoder, ddpm_cifar10, text_unet

    if name == "text":
        return text_unet(context=TokenEncoder(["red", "blue"], width=192).context)
    return ddpm_cifar10()


def inputs_of(network, batch):
    import keras
    import numpy as np

    shapes = {x.name: ((batch, *x.shape[1:]), x.dtype) for x in network.inputs}
    return {name: keras.ops.convert_to_tensor(np.ones(*about)) for name, about in shapes.items()}


def on_torch(network, inputs):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad():
        network(inputs)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            network(inputs)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(inputs)
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    weights, saved = {v.value.untyped_storage().data_ptr() for v in network.weights}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(inputs, training=True).mean()  # holds on to what was saved until it has been counted
    total = sum(storage.nbytes() for storage in saved.values())
    del loss
    return {"flops": counter.get_total_flops(), "training": total, "sampling": most}


def on_jax(network, inputs):
    import jax

    trained, rest = ([v.value for v in vs] for vs in (network.trainable_variables, network.non_trainable_variables))

    def loss(trained, rest, inputs):
        y, rest = network.stateless_call(trained, rest, inputs, training=True)
        return (y**2).mean(), rest

    def forward(trained, rest, inputs):
        return network.stateless_call(trained, rest, inputs, training=False)[0]

    step = jax.value_and_grad(loss, has_aux=True)
    pair = [jax.jit(f).lower(trained, rest, inputs).compile() for f in (step, forward)]
    training, sampling = (compiled.memory_analysis().temp_size_in_bytes for compiled in pair)
    return {"flops": pair[1].cost_analysis()["flops"], "training": training, "sampling": sampling}


def measure(backend, name, batch):
    """Print one line of JSON: what was said, what was measured, and the first over the second."""
    from unet_keras import cost

    network = network_of(name)
    said = cost(network, batch)
    run = {"torch": on_torch, "jax": on_jax}[backend]
    measured = run(network, inputs_of(network, batch))
    estimate = {
        "flops": said.forward_flops,
        "training": said.training_activations + said.weight_copies,
        "sampling": said.sampling_activations,
    }
    ratio = {key: round(estimate[key] / value, 3) if value else None for key, value in measured.items()}
    print(json.dumps({"backend": backend, "network": name, "batch": batch, "said": estimate, "measured": measured,
                      "said / measured": ratio}), flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return measure(options.backend, options.network, options.batch)
    for backend in [options.backend] if options.backend else BACKENDS:
        for name in [options.network] if options.network else NETWORKS:
            more = ["--backend", backend, "--network", name, "--batch", str(options.batch), "--here"]
            environment = {**os.environ, "KERAS_BACKEND": backend}
            subprocess.run([sys.executable, __file__, *more], check=True, env=environment)


if __name__ == "__main__":
    main()
