"""Time training steps and forward passes of DDPM's CIFAR-10 network, ours against diffusers', interleaved in one run.

    python benchmarks/speed.py --backend tensorflow --rounds 5

Each program lives in a process of its own and waits while the other is timed, so that both see the same machine. A
round times every program once; the table gives medians over the rounds and the ratio diffusers / ours (above 1: ours
is faster). A training step is: draw timesteps and noise, forward, backward, AdamW, average of the weights.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np


def ours(backend, precision, batch):
    """Make our two timed functions."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    import unet_keras

    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = unet_keras.DiffusionModel(unet_keras.ddpm_cifar10())
    model.compile(keras.optimizers.AdamW(2e-4))
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3), dtype="uint8")
    step = unet_keras.diffusion.loop.compiled(
        lambda x, t: model.network({"image": x, "timestep": t}, training=False), model.network.variables
    )
    x = keras.ops.convert_to_tensor(images / 127.5 - 1.0, "float32")
    t = keras.ops.convert_to_tensor(np.arange(batch), "float32")
    return {"step": lambda: model.train_on_batch(images), "forward": lambda: keras.ops.convert_to_numpy(step(x, t))}


def theirs(mode, precision, batch):
    """Make diffusers' two timed functions; ``mode`` is eager or compile."""
    import diffusers
    import torch
    from diffusers.training_utils import EMAModel

    blocks = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    ups = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    settings = {"attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0, "dropout": 0.1}
    settings |= {"flip_sin_to_cos": False, "freq_shift": 1, "block_out_channels": (128, 256, 256, 256)}
    net = diffusers.UNet2DModel(32, 3, 3, down_block_types=blocks, up_block_types=ups, **settings)
    net = net.to(memory_format=torch.channels_last)
    optimizer, average = torch.optim.AdamW(net.parameters(), 2e-4, fused=True), EMAModel(net.parameters())
    run = torch.compile(net) if mode == "compile" else net
    scheduler = diffusers.DDPMScheduler()
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, 32, 32)) / 127.5 - 1.0
    images = torch.tensor(images, dtype=torch.float32).to(memory_format=torch.channels_last)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def step():
        net.train()
        t, noise = torch.randint(0, 1000, (batch,)), torch.randn_like(images)
        with autocast():
            output = run(scheduler.add_noise(images, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(net.parameters())
        return loss.item()

    def forward():
        net.eval()
        with torch.no_grad(), autocast():
            return run(images, torch.arange(batch)).sample

    return {"step": step, "forward": forward}


def worker(pipe, make, arguments):
    """Warm up, then time what the parent asks for."""
    functions = make(*arguments)
    for function in functions.values():
        function(), function()
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        name, repeats = task
        start = time.perf_counter()
        for _ in range(repeats):
            functions[name]()
        pipe.send((time.perf_counter() - start) / repeats)


def compare(programs, rounds, repeats):
    """Time all programs round by round; returns {program: {task: median seconds}}."""
    context, pipes = get_context("spawn"), {}
    for name, (make, arguments) in programs.items():
        pipes[name], child = context.Pipe()
        context.Process(target=worker, args=(child, make, arguments), daemon=True).start()
        pipes[name].recv()
    seconds = {name: {"step": [], "forward": []} for name in programs}
    for _ in range(rounds):
        for task in ("step", "forward"):
            for name, pipe in pipes.items():
                pipe.send((task, repeats))
                seconds[name][task].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    return {name: {task: statistics.median(s) for task, s in tasks.items()} for name, tasks in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="tensorflow", choices=("tensorflow", "jax", "torch"))
    parser.add_argument(
        "--mode", default="eager", choices=("eager", "compile"), help="diffusers: eager or torch.compile"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="calls in each timing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    a = parser.parse_args()
    packages = ("keras", a.backend, "torch", "diffusers", "numpy")
    report = {
        "command": f"python benchmarks/speed.py --backend {a.backend} --mode {a.mode} --batch {a.batch} "
        f"--rounds {a.rounds} --repeats {a.repeats} --precisions {' '.join(a.precisions)}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in packages},
    }
    for precision in a.precisions:
        programs = {
            "ours": (ours, (a.backend, precision, a.batch)),
            "diffusers": (theirs, (a.mode, precision, a.batch)),
        }
        report[precision] = compare(programs, a.rounds, a.repeats)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'':10}{'task':10}{'ours, s':>10}{'diffusers, s':>14}{'ratio':>8}")
    for precision in a.precisions:
        for task in ("step", "forward"):
            mine, other = report[precision]["ours"][task], report[precision]["diffusers"][task]
            print(f"{precision:10}{task:10}{mine:10.3f}{other:14.3f}{other / mine:8.2f}")


if __name__ == "__main__":
    main()
