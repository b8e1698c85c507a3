"""What a text-to-image preset trained on the built-in emoji can do, in figures and pictures for its model card.

    python benchmarks/preset.py                         emoji-32, as it is shipped
    python benchmarks/preset.py --preset presets/words --out somewhere

Every figure is of images sampled here. Captions, pairs and classes are sampled with each of the --seeds, for a seed
alone moves them by some hundredths; pictures are of the first. Distances are between images blurred by a Gaussian of a
pixel, where nothing else is said.
"""

import argparse
import json
import statistics
import time
from itertools import combinations
from pathlib import Path

import classifier
import keras
import numpy as np
from PIL import Image, ImageFilter

from unet_keras import Recoloured, attention, emoji_table, from_preset, plots
from unet_keras.metrics.extractors import emoji_features, emoji_logits
from unet_keras.text.tokens import split_words

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
SHAPES = ("heart", "circle", "square")
PROMPTS = (
    "a red apple", "blue heart", "green book", "a yellow star", "purple circle", "cat face with tears of joy",
    "smiling face with sunglasses", "woman judge", "man farmer", "a cup of hot coffee", "snowman", "pizza",
    "orange square", "black cat", "brown bear", "red car", "sailboat", "a house with garden", "clock face ten",
    "crying face", "flower", "airplane", "musical note", "fish",
)  # fmt: skip
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 24.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="emoji-32")
    parser.add_argument("--out", type=Path, default=Path("docs/images/emoji-32"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/emoji-32.json"))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    model, table = from_preset(options.preset), emoji_table()
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    found["parameters"] = model.network.count_params()
    how = {name: getattr(options, name) for name in ("guidance", "steps", "seeds")}
    how["backend"] = keras.backend.backend()
    for part in options.parts:
        start = time.perf_counter()
        found[part] = how | PARTS[part](model, table, options)
        print(part, json.dumps(found[part]), f"({time.perf_counter() - start:.0f} s)", flush=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def usual(options):
    return {"guidance": options.guidance, "steps": options.steps, "seed": options.seeds[0]}


def drawn(model, asked, options, **more):
    return model.generate(asked, progress=False, batch_size=50, **usual(options) | more)


def drawn_by_each_seed(model, asked, options, **more):
    """Images (seeds, N, H, W, 3)."""
    return np.stack([drawn(model, asked, options, seed=seed, **more) for seed in options.seeds])


def counted(right):
    """Of a table of truths (seeds, ...): how many are right, of how many, and how many with each seed."""
    of_each = right.reshape(len(right), -1).sum(axis=1)
    return {"right": int(right.sum()), "of": right.size, "with each seed": of_each.tolist()}


def speed(model, table, options):
    """Seconds for 16 images in 50 steps with guidance, and what the first such call takes more."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        drawn(model, list(PROMPTS[:16]), options, steps=50)
        seconds.append(time.perf_counter() - start)
    return {"16 images, 50 steps": round(min(seconds[1:]), 1), "compilation": round(seconds[0] - min(seconds[1:]), 1)}


def prompts(model, table, options):
    """A grid of prompts that a person can judge, and where one image looked at its words."""
    images = drawn(model, list(PROMPTS), options)
    plots.grid(images, captions=PROMPTS, columns=6, path=options.out / "prompts.png")
    found = attention(model, ["red heart", "blue circle"], **usual(options) | {"seed": 1 + options.seeds[0]})
    plots.attention(found.images[0], found.words[0], found.maps[0], path=options.out / "attention.png")
    seen = trained_on(table)
    return {"never seen": sorted(prompt for prompt in PROMPTS if words_of(prompt) not in seen), "of": len(PROMPTS)}


def words_of(text):
    """A prompt's words in the order of the alphabet, without the articles that training puts before captions."""
    return tuple(sorted(set(text.split()) - {"a", "an", "the"}))


def trained_on(table):
    """What training can have shown with some image, as ``words_of``: names, up to three keywords, recoloured emoji."""
    train = table.splits == "train"
    known = type(table)(*(column[train] for column in table))
    other, rng = Recoloured(known, never=table.captions[~train], share=1.0), np.random.default_rng(0)
    seen = set(known.captions)
    for tags in known.tags:
        seen |= {" ".join(chosen) for n in (1, 2, 3) for chosen in combinations(tags.split("|"), n)}
    for _ in range(40):  # each of eight colours with one chance in eight
        seen |= set(other(rng).captions)
    return {words_of(text) for text in seen}


def held(model, table, options):
    """A grid of captions that were never trained on, of words that were: the sample, and the emoji itself beside it."""
    seen = trained_on(table)
    unseen = [i for i in np.flatnonzero(table.splits == "val") if words_of(table.captions[i]) not in seen]
    unseen = np.array(unseen)
    captions, first = np.unique(table.captions[unseen], return_index=True)
    chosen = np.linspace(0, len(captions) - 1, 24).round().astype(int)
    images = drawn(model, list(captions[chosen]), options)
    pairs = np.stack([images, table.images[unseen[first[chosen]]]], axis=1).reshape(-1, 32, 32, 3)
    names = [name for caption in captions[chosen] for name in (caption, "")]
    plots.grid(pairs, captions=names, columns=8, path=options.out / "held.png")
    return {"of": len(chosen), "captions never seen": len(captions)}


def colours(model, table, options):
    """How often the mean colour of what was drawn is nearest to the colour's mean over real emoji of that colour."""
    train = table.splits == "train"
    asked = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    asked = (asked * 5)[:100]
    real = {c: [i for i in np.flatnonzero(train) if table.captions[i] in {f"{c} {s}" for s in SHAPES}] for c in COLOURS}
    centres = np.array([np.mean([ink(table.images[i]) for i in real[c]], axis=0) for c in COLOURS])
    images = drawn(model, asked, options)
    plots.grid(images[:24], captions=asked[:24], columns=6, path=options.out / "colours.png")
    means = np.array([ink(image) for image in images])
    nearest = [COLOURS[i] for i in np.linalg.norm(means[:, None] - centres, axis=-1).argmin(axis=1)]
    right = [asked[i].split()[0] == colour for i, colour in enumerate(nearest)]
    wrong = [f"{asked[i]}: {nearest[i]}" for i in range(100) if not right[i]]
    return {"right": sum(right), "of": 100, "wrong": wrong}


def ink(image):
    """The mean colour of the pixels that are not white."""
    pixels = image.reshape(-1, 3).astype("float64")
    inked = np.abs(255 - pixels).max(axis=1) > 40
    return pixels[inked].mean(axis=0) if inked.any() else np.full(3, 255.0)


def blurred(images):
    blur = ImageFilter.GaussianBlur(1)
    return np.stack([np.asarray(Image.fromarray(i).filter(blur), "float32").ravel() for i in images])


def distances(a, b):
    return np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0))


def known(model, table, options):
    """For 50 training captions: is the sample nearer to its own emoji than to 95% of all others? After blurring, and by
    the shipped classifier's features.
    """
    train = np.flatnonzero(table.splits == "train")
    asked = np.random.default_rng(0).choice(np.unique(table.captions[train]), 50, replace=False)
    images = drawn_by_each_seed(model, list(asked), options)
    plots.grid(images[0, :24], captions=asked[:24], columns=6, path=options.out / "known.png")
    own, found = table.captions[train] == asked[:, None], {}
    for name, seen in {"blurred": blurred, "features": emoji_features()}.items():
        of_train = seen(table.images[train])
        gaps = [distances(seen(of_seed), of_train) for of_seed in images]
        share = np.array([[(r[~o] > r[o].min()).mean() for r, o in zip(rows, own, strict=True)] for rows in gaps])
        worst = dict(sorted(zip(asked.tolist(), share.mean(axis=0).round(3).tolist(), strict=True), key=lambda x: x[1]))
        found[name] = counted(share >= 0.95) | {"median share": round(float(np.median(share)), 4)}
        found[name] |= {"mean share": round(float(share.mean()), 4), "least": dict(list(worst.items())[:5])}
    return found


def compose(model, table, options):
    """Pairs of words never seen together: nearer to the true emoji than to every training emoji of one of the words?"""
    held, train = table.splits == "compose", table.splits == "train"
    asked = np.unique(table.captions[held])
    images = drawn_by_each_seed(model, list(np.repeat(asked, 4)), options)
    images = images.reshape(-1, len(asked), 4, 32, 32, 3)
    plots.grid(images[0, :, 0], captions=asked, columns=5, path=options.out / "compose.png")
    right, chance = np.zeros(images.shape[:3], bool), []
    for index, caption in enumerate(asked):
        words = set(split_words(caption)) - {"with", "and", "of"}
        rivals = train & np.array([bool(words & set(split_words(other))) for other in table.captions])
        true = held & (table.captions == caption)
        samples = blurred(images[:, index].reshape(-1, 32, 32, 3))
        to_true, to_rivals = (distances(samples, blurred(table.images[which])) for which in (true, rivals))
        right[:, index] = (to_true.min(axis=1) < to_rivals.min(axis=1)).reshape(-1, 4)
        chance.append(true.sum() / (true.sum() + rivals.sum()))
    each = dict(zip(asked.tolist(), right.sum(axis=(0, 2)).tolist(), strict=True))
    told = {"by chance": round(float(np.mean(chance)), 4), f"of {right[:, 0].size} of each": each}
    return counted(right) | told


def classes(model, table, options):
    """How often classifiers of real emoji agree with the class asked for, over guidance scales.

    ``wide`` was chosen among classifiers by how often it is right on emoji that it never saw; ``small`` comes with the
    package, see benchmarks/classifier.py.
    """
    names, labels = np.unique(table.groups, return_inverse=True)
    judges = {"wide": classifier.trained(), "small": emoji_logits()}
    real = {name: on_real(judge, table, names, labels) for name, judge in judges.items()}
    asked, found = np.repeat(np.arange(len(names)), 16), {name: {} for name in judges}
    for scale in SCALES:
        images = drawn_by_each_seed(model, {"label": asked}, options, guidance=scale)
        for name, judge in judges.items():
            agrees = np.array([judge(of_seed).argmax(axis=1) == asked for of_seed in images])
            each = agrees.reshape(-1, len(names), 16).sum(axis=(0, 2)).tolist()
            of_each = {f"of {16 * len(images)} of each": dict(zip(names.tolist(), each, strict=True))}
            found[name][scale] = counted(agrees) | {"share": round(float(agrees.mean()), 3)} | of_each
        if scale == 3.0:
            shown = images[0].reshape(len(names), 16, 32, 32, 3)[:, :6].reshape(-1, 32, 32, 3)
            captions = [name if i == 0 else "" for name in names for i in range(6)]
            plots.grid(shown, captions=captions, columns=6, path=options.out / "classes.png")
    shares = {name: {scale: told["share"] for scale, told in scales.items()} for name, scales in found.items()}
    curve(shares, real, options.out / "guidance.png")
    best = {name: max(of_scale, key=of_scale.get) for name, of_scale in shares.items()}
    there = {name: found[name][scale] for name, scale in best.items()}
    return {"real emoji": real, "agreement": shares, "best": best, "there": there}


def on_real(judge, table, names, labels):
    """The shares of real emoji, held-out ones and those of training, that a classifier is right on."""
    found = {}
    for name, splits in {"held-out": ["val", "compose"], "training": ["train"]}.items():
        real = np.isin(table.splits, splits)
        right = judge(table.images[real]).argmax(axis=1) == labels[real]
        found[name] = round(float(right.mean()), 3)
    of_each = {str(name): round(float(right[labels[real] == i].mean()), 3) for i, name in enumerate(names)}
    return found | {"training, of each class as many": round(statistics.mean(of_each.values()), 3), "of each": of_each}


def curve(shares, real, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(shares, ("C0", "0.6"), strict=True):
        axes.plot(list(shares[name]), list(shares[name].values()), marker="o", color=colour, label=f"samples, {name}")
        held = real[name]["training, of each class as many"]
        axes.axhline(held, color=colour, linestyle=":", label=f"real emoji of training, {name}")
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("share the classifier agrees with")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


PARTS = {part.__name__: part for part in (speed, prompts, held, colours, known, compose, classes)}

if __name__ == "__main__":
    main()
