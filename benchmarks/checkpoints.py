"""Load full-size networks from folders that diffusers wrote, with random weights: time, peak memory, agreement.

    KERAS_BACKEND=torch python benchmarks/checkpoints.py            DDPM for CIFAR-10, and Stable Diffusion 1.5
    python benchmarks/checkpoints.py --only ddpm-cifar10

Each side runs in a process of its own, so that the one's memory is not counted as the other's. Peak memory is what the
process held at most above what it held before it loaded, as a multiple of the weights in the file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

NETWORKS = {
    "ddpm-cifar10": {
        "_class_name": "UNet2DModel",
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "stable-diffusion-1.5": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
}


def inputs_of(config):
    """The same inputs on both sides, channels first."""
    rng = np.random.default_rng(0)
    size, channels = config["sample_size"], config.get("in_channels", 4 if "cross_attention_dim" in config else 3)
    inputs = {"sample": rng.normal(size=(1, channels, size, size)).astype("float32"), "timestep": np.array([500])}
    if "cross_attention_dim" in config:
        inputs["encoder_hidden_states"] = rng.normal(size=(1, 77, config["cross_attention_dim"])).astype("float32")
    return inputs


def write(name, folder):
    """Write a network's random weights, and its output, with diffusers."""
    import diffusers
    import torch

    config = NETWORKS[name]
    torch.manual_seed(0)
    kind = getattr(diffusers, config["_class_name"])
    theirs = kind(**{key: value for key, value in config.items() if key != "_class_name"}).eval()
    theirs.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    with torch.no_grad():
        y = theirs(**{key: torch.tensor(value) for key, value in inputs_of(config).items()}).sample
    np.save(folder / "output.npy", y.permute(0, 2, 3, 1).numpy())


def memory(field):
    """A figure of this process's memory in bytes: VmRSS, now; VmHWM, at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def read(name, folder):
    """Load the folder with ours; print time, memory, agreement."""
    import keras

    from unet_keras import from_preset

    keras.ops.convert_to_numpy(keras.ops.ones((2, 2)) @ keras.ops.ones((2, 2)))  # start the backend
    before, start = memory("VmRSS"), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = from_preset(folder)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    inputs = inputs_of(NETWORKS[name])
    named = {"image": inputs["sample"].transpose(0, 2, 3, 1), "timestep": inputs["timestep"].astype("float32")}
    if "encoder_hidden_states" in inputs:
        named["context"] = inputs["encoder_hidden_states"]
    start = time.perf_counter()
    y = keras.ops.convert_to_numpy(model.averaged(named))
    expected = np.load(folder / "output.npy")
    size = sum(file.stat().st_size for file in (folder / "unet").glob("*.safetensors"))
    found = {
        "network": name,
        "backend": keras.backend.backend(),
        "parameters": model.network.count_params(),
        "seconds to load": round(seconds, 1),
        "peak memory over the weights": round(peak / size, 3),
        "seconds of the first call": round(time.perf_counter() - start, 1),
        "greatest difference": float(np.abs(y - expected).max()),
        "spread of the output": float(expected.std()),
    }
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--do", choices=("write", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the weights go, and stay; a temporary place unless given")
    options = parser.parse_args()
    if options.do:
        return {"write": write, "read": read}[options.do](options.only, options.folder)
    for name in [options.only] if options.only else NETWORKS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.folder or Path(temporary)) / name
            for do in ("write", "read"):
                if do == "write" and (folder / "output.npy").exists():
                    continue
                command = [sys.executable, __file__, "--do", do, "--only", name, "--folder", str(folder)]
                subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    main()
