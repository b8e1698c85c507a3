"""Train the small feature extractor that comes with the package, and say how often it is right on held-out emoji.

    python benchmarks/extractor.py              writes unet_keras/metrics/emoji_features.npz, in half precision

Some minutes on two CPU cores. A classifier of the nine groups of the built-in emoji: the split ``train`` in two artwork
styles, mirrored, shifted, turned and zoomed at random; judged on the splits ``val`` and ``compose``.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

from unet_keras import emoji_table
from unet_keras.metrics.extractors import WEIGHTS, emoji_network


def moved():
    """Make the layers that mirror, turn, shift and zoom pictures on white, a little, at random."""
    white = {"fill_mode": "constant", "fill_value": 255.0}
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal"),
            keras.layers.RandomRotation(0.04, **white),
            keras.layers.RandomTranslation(0.1, 0.1, **white),
            keras.layers.RandomZoom(0.15, **white),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    start = time.perf_counter()
    keras.utils.set_random_seed(options.seed)
    table = emoji_table()
    _, labels = np.unique(table.groups, return_inverse=True)
    train, held = table.splits == "train", np.isin(table.splits, ["val", "compose"])
    network = emoji_network(dropout=0.3)
    image = keras.Input((32, 32, 3))
    classifier = keras.Model(image, network(moved()(image))["logits"])
    steps = options.epochs * -(-int(train.sum()) // 64)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=2e-3, warmup_steps=100)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss, metrics=["accuracy"])
    classifier.fit(table.images[train], labels[train], epochs=options.epochs, batch_size=64, verbose=2)
    halves = {v.path: keras.ops.convert_to_numpy(v).astype("float16") for v in network.weights}
    for variable in network.weights:  # judged as it is shipped
        variable.assign(halves[variable.path].astype("float32"))
    np.savez_compressed(options.out, **halves)
    right = {
        name: float(classifier.evaluate(table.images[chosen], labels[chosen], verbose=0)[1])
        for name, chosen in {"train": train, "held out": held}.items()
    }
    print({name: round(share, 3) for name, share in right.items()}, f"of {train.sum()} and {held.sum()} images")
    print(f"{options.out.stat().st_size:,} bytes, {time.perf_counter() - start:.0f} s on {keras.backend.backend()}")


if __name__ == "__main__":
    main()
