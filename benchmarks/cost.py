"""Hold what ``cost`` says against what is measured: operations, memory of a training step, memory of a forward pass.

    python benchmarks/cost.py                              every network on every backend, a process each
    python benchmarks/cost.py --backend jax --network ddpm-cifar10 --batch 4
    python benchmarks/cost.py --whole --batch 16           what training takes of the process's memory in all

How each is measured:

torch         operations by FlopCounterMode, attention unfused, as the fused kernel of CPUs is not counted; memory by
              the profiler's allocations, in training up to the end of the forward pass
jax           the compiler's temporary memory: of the loss and its gradients, and of a forward pass

TensorFlow is left out: it tells no such figure on CPUs. JAX's gradients are results, beside these figures.

With ``--whole``, on all three: the greatest memory of a process that trains four steps with AdamW and an average, over
what it held before, when a tiny network had been trained to load all libraries.
"""

import argparse
import gc
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
    from torch.utils.flop_counter import FlopCounterMode

    network(inputs)
    training = allocated_by_torch(network, inputs, training=True)
    with torch.no_grad():
        sampling = allocated_by_torch(network, inputs)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(inputs)
    return {"flops": counter.get_total_flops(), "training": training, "sampling": sampling}


def allocated_by_torch(network, inputs, **options):
    """The greatest number of bytes that torch holds at a time for a forward pass, whose result is kept."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # or what is freed meanwhile would be taken off
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = network(inputs, **options)
    held = most = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del kept
    return most


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


def measure_whole(backend, name, batch):
    """Print one line of JSON: what was said of a whole training, and what the process took."""
    import keras
    import numpy as np

    from unet_keras import DiffusionModel, build_unet, cost

    def train(network, count):
        model = DiffusionModel(network)
        model.compile(keras.optimizers.AdamW())
        model.fit(np.zeros((count, 32, 32, 3), "uint8"), batch_size=batch, epochs=1, verbose=0)
        return model

    train(build_unet((32, 32, 3), (4, 8)), batch)
    before = status("VmRSS")
    network = network_of(name)
    said = cost(network, batch).training
    kept = train(network, 4 * batch)  # its state is part of what is measured
    taken = status("VmHWM") - before
    print(json.dumps({"backend": backend, "network": name, "batch": batch, "said": said, "process": taken,
                      "said / process": round(said / taken, 3), "steps": int(kept.optimizer.iterations)}))  # fmt: skip


def status(entry):
    """A figure of this process's memory, in bytes, on Linux."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(entry))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=(*BACKENDS, "tensorflow"))
    parser.add_argument("--whole", action="store_true", help="the process's memory, of ddpm-cifar10")
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.backend == "tensorflow" and not options.whole:
        parser.error("TensorFlow tells its process's memory alone: give --whole.")
    if options.here:
        return (measure_whole if options.whole else measure)(options.backend, options.network, options.batch)
    every, names = ((*BACKENDS, "tensorflow"), NETWORKS[:1]) if options.whole else (BACKENDS, NETWORKS)
    for backend in [options.backend] if options.backend else every:
        for name in [options.network] if options.network else names:
            more = ["--backend", backend, "--network", name, "--batch", str(options.batch), "--here"]
            more += ["--whole"] * options.whole
            environment = {**os.environ, "KERAS_BACKEND": backend}
            subprocess.run([sys.executable, __file__, *more], check=True, env=environment)


if __name__ == "__main__":
    main()
