"""FID, KID, precision, recall, Inception score and bits per dimension of a preset on the built-in emoji, for its card.

    python benchmarks/evaluate.py                     emoji-32, as it is shipped
    python benchmarks/evaluate.py --preset presets/words --n 2000 --json somewhere.json

The samples are drawn for the captions of training images, chosen at random from the seed on; the reference is all
training images. The extractor is the small one that comes with the package: its figures compare with its own alone. For
scale, the same figures of the held-out images, of which there are few, and of n training images against the others.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np

from unet_keras import emoji_table, from_preset, metrics
from unet_keras.diffusion.likelihood import nll_bound, nll_ode

RESULTS = Path("benchmarks/results")
FUNCTIONS = (metrics.fid, metrics.kid, metrics.precision_recall)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="emoji-32")
    parser.add_argument("--json", type=Path, help="default: NAME-evaluation.json in benchmarks/results")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.0, 3.0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ode-images", type=int, default=64)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    options.json = options.json or RESULTS / f"{Path(options.preset).name}-evaluation.json"
    model, table = from_preset(options.preset), emoji_table()
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    found["backend"] = keras.backend.backend()
    for part in options.parts:
        start = time.perf_counter()
        found[part] = PARTS[part](model, table, options)
        print(part, json.dumps(found[part]), f"({time.perf_counter() - start:.0f} s)", flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def real(model, table, options):
    """The figures of real images: held-out ones against training's, and training's against one another."""
    train, held = table.images[table.splits == "train"], table.images[table.splits != "train"]
    order = np.random.default_rng(options.seed).permutation(len(train))
    half = measures(train[order[options.n :]])(train[order[: options.n]])
    return {"training against training": told(half), "held out": told(measures(train)(held))}


def samples(model, table, options):
    """The figures of samples for captions of training images."""
    train = table.splits == "train"
    chosen = np.random.default_rng(options.seed).choice(np.flatnonzero(train), options.n, replace=False)
    measure = measures(table.images[train])
    found = {}
    for scale in options.guidance:
        request = {"steps": options.steps, "batch_size": 50, "seed": options.seed, "guidance": scale}
        report = metrics.sampled(list(table.captions[chosen]), measure, **request)(model)
        found[f"guidance {scale:g}"] = told(report)
        print(report, flush=True)
    return found


def bound(model, table, options):
    """Bits per dimension of the held-out images with their captions, by the bound."""
    images, captions = held_out(table)
    found = {"images": len(images), "terms": 50}
    for name, variance in (("beta", 1.0), ("half", 0.5), ("beta-tilde", 0.0)):
        parts = nll_bound(model, images, captions, variance=variance, terms=50, seed=options.seed)
        found[name] = {part: mean_and_error(value) for part, value in parts._asdict().items()}
        found[name]["total"] = mean_and_error(parts.total)
        print(name, found[name], flush=True)
    return found


def ode(model, table, options):
    """Bits per dimension of some of the held-out images with their captions, by the probability-flow ODE."""
    images, captions = held_out(table)
    chosen = np.random.default_rng(options.seed).choice(len(images), options.ode_images, replace=False)
    bits = nll_ode(model, images[chosen], [captions[i] for i in chosen], steps=25, seed=options.seed)
    return {"total": mean_and_error(bits), "images": len(bits), "steps": 25}


def held_out(table):
    held = np.isin(table.splits, ["val", "compose"])
    return table.images[held], list(table.captions[held])


def measures(reference):
    compared = metrics.compared(reference, metrics.emoji_features(), FUNCTIONS)
    classified = metrics.classified(metrics.emoji_logits())
    return lambda images: compared(images) | classified(images)


def told(report):
    return {name: round(value, 5) for name, value in report.values.items()} | report.about


def mean_and_error(values):
    return [round(float(values.mean()), 3), round(float(values.std() / np.sqrt(len(values))), 3)]


PARTS = {part.__name__: part for part in (real, samples, bound, ode)}

if __name__ == "__main__":
    main()
