"""Feed what reads files and arguments with thousands of bad inputs: each must end in a clear error.

    KERAS_BACKEND=torch python benchmarks/fuzz.py            about 12,000 inputs, minutes
    python benchmarks/fuzz.py --kind safetensors --count 100 --seed 7

An input is a small valid one, damaged at random: bits, lengths, pieces; values of JSON for values of other kinds;
options of the command line for each other's. What it ends in is counted as

    clear      a ValueError or OSError of ours that names the file; on the command line one line and exit status 2
    accepted   the damage did not matter, or could not be seen
    fault      any other exception, more than 20 seconds, more memory than bound, or the end of the process

Each kind runs in a process of its own, under a limit of memory. The seeds of faults are printed.
"""

import argparse
import collections
import contextlib
import csv
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

SECONDS, MEMORY = 20, 4 * 2**30
ODD = [
    None, True, False, 0, -1, 1, 2.5, -0.0, 10**9, 10**30, -(10**18), float("nan"), float("inf"), "", "x", "\ud800",
    "../../etc/passwd", "/etc/passwd", "a\0b", "9" * 5000, [], [[]], {}, {"x": 1}, [None], ["x"], [1, 2, 3],
    "__lambda__",
]  # fmt: skip


# ---- damage ---------------------------------------------------------------------------------------------------------


def damaged(rng, content: bytes) -> bytes:
    """Flip bits, cut, insert, repeat, overwrite or exchange pieces, once to four times."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(content) + 1), rng.choice([1, 2, 4, 8, 64])
        piece = rng.choice([rng.randbytes(length), b"\0" * length, b"\xff" * length, content[at : at + length]])
        kind = rng.randrange(5)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = piece
        elif kind == 3:
            content[at : at + length] = piece
        else:
            del content[at : at + length]
    return bytes(content)


def swapped(rng, value):
    """Put an odd value, a damaged one or none in the place of one somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.1:
            changed[rng.choice(["", "x", "_class_name", "config"])] = changed.pop(key)
        else:
            changed[key] = swapped(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [
            *value[:at],
            *rng.choice([[], [swapped(rng, value[at])], [value[at]] * rng.choice([2, 500])]),
            *value[at + 1 :],
        ]
    if isinstance(value, int | float) and rng.random() < 0.3:
        return value * rng.choice([-1, 0.5, 2, 1000])
    return rng.choice(ODD)


def json_damaged(rng, value) -> bytes:
    """A JSON text with another value in it, or with damaged bytes, or nested too deep."""
    choice = rng.random()
    if choice < 0.03:
        return rng.choice([b"[", b'{"a":']) * 100_000
    if choice < 0.2:
        return damaged(rng, json.dumps(value).encode())
    for _ in range(rng.randint(1, 2)):
        value = swapped(rng, value)
    return json.dumps(value).encode()


# ---- the kinds: each gives a function of a random generator, which raises or returns --------------------------------


def pictures():
    """Small images of the formats that Pillow writes: (ending, content)."""
    from PIL import Image

    made = []
    for ending in ("png", "jpg", "gif", "bmp", "tif", "webp", "tga", "ppm", "ico", "pcx", "sgi", "dds", "jp2", "icns"):
        with contextlib.suppress(Exception), io.BytesIO() as file:
            image = Image.effect_mandelbrot((24, 20), (-2, -1.5, 1, 1.5), 50).convert("RGB")
            image.save(file, Image.registered_extensions()[f".{ending}"])
            made.append((ending, file.getvalue()))
    return made


def images(folder):
    """Damaged images, in a folder read into memory."""
    from unet_keras.data import image_folder

    made = pictures()

    def run(rng):
        ending, content = rng.choice(made)
        path = folder / f"a.{ending}"
        path.write_bytes(damaged(rng, content))
        try:
            image_folder(folder, 8, workers=1)
        finally:
            path.unlink()

    return run


def streamed(folder):
    """Damaged images, decoded by another process."""
    from unet_keras.data.decoders import Decoders

    made, decoders = pictures(), Decoders(8, 8, 1)

    def run(rng):
        ending, content = rng.choice(made)
        path = folder / f"a.{ending}"
        path.write_bytes(damaged(rng, content))
        pixels = decoders.submit(str(path)).result()
        path.unlink()
        if isinstance(pixels, str):
            raise ValueError(f"{path}: {pixels}")  # as image_stream names it

    return run


def folders(folder):
    """Odd things in the place of images and captions: links, pipes, folders, names that are no text, no rights."""
    from unet_keras.data import image_folder

    _, content = pictures()[0]
    names = [
        "a.png",
        "b/c.png",
        "b/metadata.jsonl",
        "metadata.csv",
        "b.png/d.png",
        ".png",
        "\udcff.png",
        "x" * 251 + ".png",
    ]

    def run(rng):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            for name in rng.sample(names, rng.randint(1, 4)):
                path = Path(root, name)
                with contextlib.suppress(FileExistsError, NotADirectoryError):
                    path.parent.mkdir(exist_ok=True)
                    kind = rng.randrange(8)
                    if kind == 0:
                        path.symlink_to(
                            rng.choice(["/etc", "/etc/passwd", "..", ".", name, "gone", "a.png", "/dev/zero"])
                        )
                    elif kind == 1:
                        path.mkdir()
                    elif kind == 2:
                        os.mkfifo(path)
                    elif kind == 3:
                        path.write_bytes(b"")
                    else:
                        path.write_bytes(content if kind < 6 else rng.randbytes(100))
            odd = rng.random() < 0.3
            image_folder(
                root + rng.choice(["/a.png", "/gone", "\0"]) if odd else root, rng.choice([8, 8, 0, 10**9, "8"])
            )

    return run


def captions(folder):
    """Damaged metadata files."""
    from unet_keras.data import image_folder

    ending, content = pictures()[0]
    names = [f"{i}.{ending}" for i in range(4)]
    for name in names:
        (folder / name).write_bytes(content)
    rows = [{"file_name": name, "text": f"a caption of {name}"} for name in names]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)

    def run(rng):
        path = folder / rng.choice(["metadata.jsonl", "metadata.csv"])
        lines = [json.dumps(row).encode() for row in rows]
        lines[rng.randrange(4)] = json_damaged(rng, rng.choice(rows))
        path.write_bytes(damaged(rng, table.getvalue().encode()) if path.suffix == ".csv" else b"\n".join(lines))
        try:
            image_folder(folder, 8, workers=1)
        finally:
            path.unlink()

    return run


CONFIG = {
    "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "dropout": 0.0,
    "norm_num_groups": 4, "norm_eps": 1e-5, "attention_head_dim": 4, "add_attention": False, "act_fn": "silu",
    "class_embed_type": None, "num_class_embeds": None, "time_embedding_type": "positional", "freq_shift": 0,
    "flip_sin_to_cos": True, "downsample_padding": 1, "resnet_time_scale_shift": "default",
    "mid_block_scale_factor": 1, "center_input_sample": False, "downsample_type": "conv", "upsample_type": "conv",
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_start": 0.0001, "beta_end": 0.02,
    "beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": True, "clip_sample_range": 1.0,
    "trained_betas": None, "variance_type": "fixed_small", "thresholding": False, "rescale_betas_zero_snr": False,
}  # fmt: skip


def diffusers_config(folder):
    """diffusers' config.json, outlined without weights."""
    from unet_keras.zoo.outline import outline

    def run(rng):
        (folder / "config.json").write_bytes(json_damaged(rng, CONFIG))
        outline(folder)

    return run


def scheduler_config(folder):
    """diffusers' scheduler_config.json and model_index.json, with a network of random weights."""
    from unet_keras import from_preset

    (folder / "config.json").write_text(json.dumps(CONFIG))

    def run(rng):
        with contextlib.suppress(FileNotFoundError):
            (folder / "model_index.json").unlink()
        (folder / "scheduler_config.json").write_bytes(json_damaged(rng, SCHEDULER))
        if rng.random() < 0.2:
            (folder / "model_index.json").write_bytes(json_damaged(rng, {"_class_name": "DDPMPipeline", "vae": [None]}))
        from_preset(folder, weights=False)

    return run


def safetensors(folder):
    """Damaged weights: bytes, and headers that lie about names, kinds, shapes and offsets."""
    import numpy as np
    from safetensors.numpy import save

    from unet_keras.files import Tensors

    arrays = {name: np.ones((3, 4), dtype) for name, dtype in (("a", "float32"), ("b.c", "float16"), ("d", "int64"))}
    content = save(arrays, {"format": "pt"})
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]

    def run(rng):
        if rng.random() < 0.5:
            text = json_damaged(rng, header)
            changed = len(text).to_bytes(8, "little") + text + body
        else:
            changed = damaged(rng, content)
        (folder / "model.safetensors").write_bytes(changed)
        tensors = Tensors(folder)
        for name in tensors:
            tensors[name]

    return run


def shards(folder):
    """A damaged index of shards."""
    import numpy as np
    from safetensors.numpy import save_file

    from unet_keras.files import Tensors

    index = {"metadata": {"total_size": 8}, "weight_map": {}}
    for i in "ab":
        save_file({i: np.ones(2, "float32")}, folder / f"model-{i}.safetensors")
        index["weight_map"][i] = f"model-{i}.safetensors"

    def run(rng):
        (folder / "model.safetensors.index.json").write_bytes(json_damaged(rng, index))
        Tensors(folder)

    return run


def tiny(folder):
    """A small model, saved as Keras does and as a preset, in folders of their own."""
    import keras

    from unet_keras import DiffusionModel, TokenEncoder, build_unet, linear, save_preset

    keras.utils.set_random_seed(0)
    encoder = TokenEncoder(["red"], length=3, width=4, depth=0, heads=1)
    network = build_unet((8, 8, 3), (4,), context=encoder.context)
    model = DiffusionModel(network, linear(10), encoder=encoder, drop=0.1, ema=None)
    model.compile("sgd")
    model.save(folder / "good.keras")
    save_preset(model, folder / "preset")
    return model


def keras_files(folder):
    """``.keras`` archives with damaged bytes, configurations and weights."""
    from unet_keras import from_preset

    tiny(folder)
    content = (folder / "good.keras").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    def run(rng):
        changed = damaged(rng, content)
        if rng.random() < 0.7:
            name = rng.choice(["config.json", "config.json", *parts])
            odd = json_damaged(rng, json.loads(parts[name])) if name.endswith(".json") else damaged(rng, parts[name])
            where = rng.choice([name] * 9 + ["../escaped"])
            with io.BytesIO() as file:
                with zipfile.ZipFile(file, "w") as archive:
                    for each, kept in (parts | {where: odd}).items():
                        archive.writestr(each, kept)
                changed = file.getvalue()
        (folder / "a.keras").write_bytes(changed)
        from_preset(folder / "a.keras")

    return run


def preset_config(folder):
    """The configuration of a preset of ours."""
    from unet_keras import from_preset

    tiny(folder)
    config = json.loads((folder / "preset/config.json").read_text())

    def run(rng):
        (folder / "preset/config.json").write_bytes(json_damaged(rng, config))
        from_preset(folder / "preset")

    return run


def preset_weights(folder):
    """The arrays of a preset of ours."""
    from unet_keras.zoo.presets import _assign

    model = tiny(folder)
    content = (folder / "preset/weights.npz").read_bytes()

    def run(rng):
        (folder / "a.npz").write_bytes(damaged(rng, content))
        _assign(model.averaged, folder / "a.npz")

    return run


def command_line(folder):
    """Options and values of the commands, in each other's places; training and sampling themselves are left out."""
    from unet_keras import DiffusionModel, build_unet, cli
    from unet_keras.cli import train

    model = tiny(folder)
    model.save(folder / "model.keras")
    (folder / "settings.json").write_text(json.dumps({"class_names": ["a"], "losses": {}, "epochs_done": 1}))
    (folder / "x.png").write_bytes(pictures()[0][1])
    os.chdir(folder)
    train.NETWORKS = dict.fromkeys(train.NETWORKS, lambda shape, **options: build_unet(shape, (4,), **options))
    train._fit = train._pictures = lambda *_: None
    generate = DiffusionModel.generate

    def checked(self, conditions, *, steps=50, batch_size=None, progress=True, **options):
        generate(self, conditions, steps=min(steps, 2) if isinstance(steps, int) else steps, progress=False, **options)

    DiffusionModel.generate = checked
    parsers = cli.parser()._subparsers._group_actions[0].choices
    options = {name: [action for action in parser._actions if action.option_strings and action.dest != "help"]
               for name, parser in parsers.items()}  # fmt: skip
    numbers = ["0", "-1", "1", "2", "7", "1001", "9" * 30, "0.5", "nan", "inf", "-1e400", "2"]
    values = [
        "0", "-1", "1", "2", "8", "1e400", "nan", "x", "", "é\0", "9" * 30, ".", "..", "x.png", "/", "gone",
        "preset", "good.keras", "hf://x", "linear", "ddim", "--", "float16", "patch", "\udcff", "-",
    ]  # fmt: skip

    def run(rng):
        command, places = rng.choice([*options]), ["good.keras", "preset", ".", "gone", "x.png", "."]
        words = [command] + [rng.choice(places) for _ in range({"train": 0, "sample": 1, "presets": 1}.get(command, 2))]
        for action in rng.sample(options[command], rng.randint(1, min(4, len(options[command])))):
            plausible = [*action.choices] if action.choices else numbers if action.type in (int, float) else values
            taken = [] if action.nargs == 0 else [rng.choice(plausible if rng.random() < 0.85 else values)]
            words += [action.option_strings[-1], *taken]
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = cli.main(words)
            except SystemExit as end:
                status = end.code
            except Exception as error:
                raise RuntimeError(f"{words}: {type(error).__name__}: {error}") from error
        said = told.getvalue().strip().split("\n")[-1]
        if status and (status != 2 or not said.startswith("unet-keras")):
            raise RuntimeError(f"{words}: status {status}, {said}")
        if status:
            raise ValueError(f"{folder} {said}")

    return run


KINDS = {
    images: 2000, streamed: 2000, folders: 600, captions: 2000, diffusers_config: 1500, scheduler_config: 300,
    safetensors: 2500, shards: 1000, keras_files: 300, preset_config: 300, preset_weights: 1000, command_line: 600,
}  # fmt: skip


# ---- running --------------------------------------------------------------------------------------------------------


def ending(run, rng, folder):
    """Run one input: "clear", "accepted", or what it did instead."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(rng)
        return "clear" if any("left out" in str(warning.message) for warning in caught) else "accepted"
    except (ValueError, OSError) as error:
        ours = type(error) in (ValueError, FileNotFoundError, PermissionError)
        named = str(folder) in str(error) or any(str(error).startswith(name) for name in ("size:", "path:"))
        return "clear" if ours and named else f"{type(error).__name__}: {str(error)[:150]}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def child(name, count, seed):
    """Run the inputs of one kind; print what came of each as it comes."""

    class Hang(BaseException):
        pass

    def hang(*_):
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as folder:
        run = next(kind for kind in KINDS if kind.__name__ == name)(Path(folder))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(seed, seed + count):
            result = ending(run, random.Random(i), Path(folder))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(json.dumps([i, result, grown]), flush=True)
        os.chdir("/")


def run_kind(name, count, seed):
    """Run a kind in processes of its own, anew after each that ends early -> {ending: [seeds]}, MB of growth."""
    results, grown, first = collections.defaultdict(list), 0.0, seed
    while first < seed + count:
        command = [sys.executable, __file__, "--child", name, str(seed + count - first), str(first)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        for number, result, size in lines:
            results[result].append(number)
            grown = max(grown, size)
        first += len(lines)
        if done.returncode:
            results[f"the process ended with {done.returncode}: {done.stderr[-300:]}"].append(first)
            first += 1
    return results, grown


def main():
    if "--child" in sys.argv:
        return child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=[kind.__name__ for kind in KINDS])
    parser.add_argument("--count", type=int, help="of each kind (default: as many as make 14,000 in all)")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    print(f"{'kind':20}{'tried':>8}{'clear':>8}{'accepted':>10}{'faults':>8}{'seconds':>9}{'MB more':>9}")
    total, faults = collections.Counter(), []
    for kind, usual in KINDS.items():
        if a.kind not in (None, kind.__name__):
            continue
        start = time.perf_counter()
        results, grown = run_kind(kind.__name__, a.count or usual, a.seed)
        counts = {name: len(results.pop(name, [])) for name in ("clear", "accepted")}
        faults += [(kind.__name__, what, seeds) for what, seeds in results.items()]
        counts["faults"] = sum(map(len, results.values()))
        counts = {"tried": sum(counts.values()), **counts}
        total.update(counts)
        row = "".join(f"{counts[c]:>{w}}" for c, w in (("tried", 8), ("clear", 8), ("accepted", 10), ("faults", 8)))
        print(f"{kind.__name__:20}{row}{time.perf_counter() - start:9.0f}{grown:9.0f}", flush=True)
    print("all", dict(total))
    for kind, what, seeds in faults:
        print(f"{kind}, {len(seeds)} times, first --seed {seeds[0]} --count 1: {what}")


if __name__ == "__main__":
    main()
