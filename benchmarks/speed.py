"""Time forward passes, training steps and whole sampling runs against diffusers, eager and compiled, interleaved.

    python benchmarks/speed.py --backend tensorflow                          all networks, on a CPU
    python benchmarks/speed.py --backend jax --device cuda --batch 128       on a GPU
    python benchmarks/speed.py --networks ddpm-cifar10 --tasks forward step --precisions float32

diffusers writes each network to a folder with random weights and ours loads it from there, so both compute the same:
the outputs' difference is printed. Each program lives in a process of its own and waits while the others are timed, so
that all see the same machine. A round times every program once, after a call that is not timed, but for sampling; the
table gives medians over the rounds. Ratios are diffusers' best mode / ours: above 1, ours is faster. A product of
matrices is timed in the same rounds: operations a second are told as a share of what it reaches. Without gradients
ours holds the weights as constants on TensorFlow's CPUs; "freeze" is torch.compile that does so, which is not its way
unless asked.

    forward    of the network, without gradients; bfloat16: all weights are
    step       timesteps, noise, forward, backward, AdamW, average of the weights; bfloat16: mixed precision
    sample     a batch of images (of text: with guidance) by 50 steps of DDIM; three rounds
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import checkpoints
import numpy as np

NETWORKS = {
    "ddpm-cifar10": {**checkpoints.NETWORKS["ddpm-cifar10"], "dropout": 0.1},
    "text": {  # the layout of Stable Diffusion, a third as wide
        "_class_name": "UNet2DConditionModel",
        "sample_size": 32,
        "block_out_channels": [96, 192, 384, 384],
        "cross_attention_dim": 384,
        "attention_head_dim": 6,
    },
    "256": {  # DDPM's for 256 x 256, half as wide; trained with the activations recomputed on both sides
        "_class_name": "UNet2DModel",
        "sample_size": 256,
        "block_out_channels": [64, 64, 128, 128, 256, 256],
        "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}
BATCHES = {"ddpm-cifar10": 16, "text": 4, "256": 1}
TASKS = ("forward", "step", "sample")
MODES = ("eager", "compile", "freeze")
STEPS, GUIDANCE, TOKENS = 50, 7.5, 77


def data(name, batch):
    """Give noisy images, channels first, and the text's context or None."""
    config, rng = NETWORKS[name], np.random.default_rng(0)
    width = config.get("cross_attention_dim")
    images = rng.uniform(-1, 1, (batch, 4 if width else 3, *2 * [config["sample_size"]])).astype("float32")
    return images, rng.normal(size=(batch, TOKENS, width)).astype("float32") if width else None


def ours(task, name, folder, precision, batch, device, backend):
    """Make our timed function; it returns an array, so that all has been computed."""
    os.environ["KERAS_BACKEND"] = backend
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # all share one GPU
    import keras

    from unet_keras import AdamW, cost, from_preset
    from unet_keras.diffusion import loop

    if backend == "torch":
        fast(device)
    dtype = {"float32": "float32", "bfloat16": "mixed_bfloat16" if task == "step" else "bfloat16"}[precision]
    images, context = data(name, batch)
    options = {} if context is None else {"null": {"context": np.zeros_like(context[0])}, "drop": 0.1}
    training = {"ema": 0.999, "remat": name == "256"} if task == "step" else {}
    model = from_preset(folder, dtype=dtype, **options, **training)
    images = images.transpose(0, 2, 3, 1)
    conditions = {} if context is None else {"context": context}
    told = {"forward_flops": cost(model.network, batch, tokens=TOKENS).forward_flops}
    if task == "step":
        model.compile(AdamW(2e-4))
        return lambda: model.train_on_batch(images, conditions or None), told
    if task == "sample":
        options = {"steps": STEPS, "seed": 0, "progress": False, **({"guidance": GUIDANCE} if conditions else {})}
        return lambda: model.generate(conditions or batch, **options), told
    # As ``generate`` runs it.
    run = loop.compiled(lambda inputs: model.averaged(inputs, training=False), model.averaged.variables, fixed=True)
    inputs = {"image": images, "timestep": np.arange(batch, dtype="float32"), **conditions}
    inputs = {key: keras.ops.convert_to_tensor(value) for key, value in inputs.items()}
    return lambda: keras.ops.convert_to_numpy(keras.ops.cast(run(inputs), "float32")), told


def theirs(task, name, folder, precision, batch, device, mode):
    """Make diffusers' timed function; ``mode`` is one of MODES."""
    import diffusers
    import torch
    import torch._inductor.config
    from diffusers.training_utils import EMAModel

    half = precision == "bfloat16"
    net = getattr(diffusers, NETWORKS[name]["_class_name"]).from_pretrained(Path(folder) / "unet")
    net = net.to(device=device, memory_format=torch.channels_last)
    if half and task != "step":
        net = net.to(torch.bfloat16)
    if task == "step" and name == "256":
        net.enable_gradient_checkpointing()
    net = net.train() if task == "step" else net.eval()
    fast(device)
    torch._inductor.config.freezing = mode == "freeze"
    run = net if mode == "eager" else torch.compile(net)
    dtype = next(net.parameters()).dtype
    images, context = (None if v is None else torch.tensor(v).to(device, dtype) for v in data(name, batch))
    images = images.to(memory_format=torch.channels_last)
    given = {} if context is None else {"encoder_hidden_states": context}

    def done(tensor):
        return tensor.detach().float().cpu().numpy()

    @torch.no_grad()
    def forward():
        return done(run(images, torch.arange(batch, device=device), **given).sample.permute(0, 2, 3, 1))

    @torch.no_grad()
    def sample():
        scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS)
        x, twice = torch.randn_like(images), {k: torch.cat([torch.zeros_like(v), v]) for k, v in given.items()}
        for t in scheduler.timesteps:
            if given:
                bare, full = run(torch.cat([x, x]), t, **twice).sample.chunk(2)
                output = bare + GUIDANCE * (full - bare)
            else:
                output = run(x, t).sample
            x = scheduler.step(output, t, x).prev_sample
        return done(x)

    if task != "step":
        return {"forward": forward, "sample": sample}[task], {}
    optimizer = torch.optim.AdamW(net.parameters(), 2e-4, fused=True)
    average = EMAModel(net.parameters(), foreach=device == "cuda")
    scheduler = diffusers.DDPMScheduler()

    def step():
        t, noise = torch.randint(0, 1000, (batch,), device=device), torch.randn_like(images)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            output = run(scheduler.add_noise(images, noise, t), t, **given).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.step(net.parameters())
        return done(loss)

    return step, {}


def fast(device):
    """Let torch multiply float32 as TensorFlow and JAX do on GPUs, in TF32, and choose among cuDNN's kernels."""
    import torch

    if device != "cuda":
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def product(precision, device):
    """Make a product of matrices in torch, to measure the others by; large enough to be bound by arithmetic."""
    import torch

    fast(device)
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return lambda: (a @ b)[0, 0].item(), {"forward_flops": 2 * size**3}


def worker(pipe, make, arguments):
    """Set up and run once; then time what the parent asks for."""
    start = time.perf_counter()
    function, told = make(*arguments)
    made = time.perf_counter()
    first = function()
    told = {**told, "setup": made - start, "first_call": time.perf_counter() - made}
    if make is not product and "sample" not in arguments:
        function()  # a second call may still compile
    pipe.send((told, first if np.size(first) > 1 else None))
    while repeats := pipe.recv():
        if make is product or "sample" not in arguments:
            function()  # what it holds has left the caches while the others ran
        repeats = max(repeats, 5) if make is product else repeats
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        pipe.send((time.perf_counter() - start) / repeats)
    pipe.send(peak_memory(arguments))


def peak_memory(arguments):
    """Give the most that this process held, on the GPU where it used one, in bytes."""
    if "cuda" not in arguments:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if arguments[-1] == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if arguments[-1] == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    import torch

    return torch.cuda.max_memory_allocated()


def compare(programs, rounds, repeats):
    """Time all programs round by round; returns what each told of itself, with its seconds, and their first results."""
    context, pipes, told, first = get_context("spawn"), {}, {}, {}
    for name, (make, arguments) in programs.items():
        pipes[name], child = context.Pipe()
        context.Process(target=worker, args=(child, make, arguments), daemon=True).start()
        child.close()
        told[name], first[name] = pipes[name].recv()
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(repeats)
            seconds[name].append(pipe.recv())
    for name, pipe in pipes.items():
        pipe.send(0)
        told[name]["peak_memory"] = pipe.recv()
        told[name]["seconds"] = statistics.median(seconds[name])
        told[name]["all_seconds"] = seconds[name]
    return told, first


def write(name, folder):
    """Write a network's random weights and a schedule with diffusers."""
    import diffusers
    import torch

    torch.manual_seed(0)
    config = {key: value for key, value in NETWORKS[name].items() if key != "_class_name"}
    getattr(diffusers, NETWORKS[name]["_class_name"])(**config).save_pretrained(Path(folder) / "unet")
    diffusers.DDIMScheduler().save_pretrained(Path(folder) / "scheduler")


def line(name, precision, task, told, first):
    """Say a comparison in one line."""
    mine, product_ = told["ours"], told["product"]
    best = min((m for m in MODES if m in told), key=lambda m: told[m]["seconds"], default=None)
    calls = {"forward": 1, "step": 3, "sample": STEPS * (2 if name == "text" else 1)}[task]
    rate = calls * mine["forward_flops"] / mine["seconds"]
    most = product_["forward_flops"] / product_["seconds"]
    off = ""
    if task == "forward":
        theirs = next((first[mode] for mode in MODES if mode in first), first["ours"])
        off = f"  off {np.abs(first['ours'] - theirs).max() / theirs.std():.0e}"
    ratios = "".join(f"{told[mode]['seconds'] / mine['seconds']:9.2f}" if mode in told else f"{'':9}" for mode in MODES)
    gib = "".join(f"{told[p]['peak_memory'] / 2**30:7.1f}" if p else f"{'':7}" for p in ("ours", best))
    return (
        f"{name:13}{precision:9}{task:8}{mine['seconds']:9.3f}{ratios}{rate / 1e9:9.0f}{rate / most:7.0%}"
        f"{mine['first_call']:9.1f}{told[best]['first_call'] if best else 0:9.1f}{gib}{off}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="tensorflow", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    parser.add_argument("--batch", type=int, help="images; that of the network on a CPU unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    a = parser.parse_args()
    told = {key: value for key, value in vars(a).items() if key != "out"}
    packages = ("keras", a.backend, "torch", "diffusers", "numpy")
    report = {"options": told, "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "results": {}}
    report |= {"machine": platform.machine(), "versions": {p: version(p) for p in packages}}
    heads = ("ours, s", *MODES, "GFLOP/s", "share", "1st, s", "theirs", "GiB", "theirs")
    print(f"{'':30}" + "".join(f"{h:>{w}}" for h, w in zip(heads, (9, 9, 9, 9, 9, 7, 9, 9, 7, 7), strict=True)))
    for name in a.networks:
        batch = a.batch or BATCHES[name]
        with tempfile.TemporaryDirectory() as folder:
            process = get_context("spawn").Process(target=write, args=(name, folder))
            process.start()
            process.join()
            for precision in a.precisions:
                for task in a.tasks:
                    common = (task, name, folder, precision, batch, a.device)
                    programs = {"ours": (ours, (*common, a.backend))}
                    modes = (mode for mode in a.modes if (mode, task) != ("freeze", "step"))
                    programs |= {mode: (theirs, (*common, mode)) for mode in modes}
                    programs["product"] = (product, (precision, a.device))
                    long = task == "sample"
                    found, first = compare(programs, min(a.rounds, 3) if long else a.rounds, 1 if long else 2)
                    print(line(name, precision, task, found, first), flush=True)
                    report["results"].setdefault(name, {}).setdefault(precision, {})[task] = found
                    a.out.parent.mkdir(parents=True, exist_ok=True)
                    a.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
