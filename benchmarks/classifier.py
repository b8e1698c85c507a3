"""Train the classifier of emoji that judges samples of a class, or say how often such a one is right on new emoji.

    python benchmarks/classifier.py             trains on the split train, writes results/classifier.npz
    python benchmarks/classifier.py --held 0    leaves out a quarter of its captions, in both styles, to be judged by

It was chosen by the second alone, of several that were made in the same way: see benchmarks/README.md. ``small`` is the
network of the extractor that comes with the package, ``emoji_features``.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from extractor import moved
from keras import layers

from unet_keras import emoji_table
from unet_keras.metrics.extractors import emoji_network

WEIGHTS = Path("benchmarks/results/classifier.npz")
WIDTHS = (48, 96, 144, 192)


def wide(dropout=0.3):
    """Build two convolutions a level with batch norm, pixels 0 ... 255 -> logits of nine groups; 0.9 M parameters."""
    image = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(image)
    for number, filters in enumerate(WIDTHS):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.Activation("relu")(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x) if number < len(WIDTHS) - 1 else x
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(9)(x))


def small(dropout=0.3):
    """Build the network of ``emoji_features``."""
    network = emoji_network(dropout)
    return keras.Model(network.input, network.output["logits"])


NETWORKS = {"wide": wide, "small": small}


def train(network, images, labels, *, epochs, balanced=False, seed=0):
    """Train on images that are moved a little at random; ``balanced``: of each class as many."""
    image = keras.Input((32, 32, 3))
    classifier = keras.Model(image, network(moved()(image)))
    steps = epochs * -(-len(images) // 64)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=2e-3, warmup_steps=100)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss)
    rng = np.random.default_rng(seed)
    share = 1 / np.bincount(labels)[labels] if balanced else np.ones(len(labels))
    for _ in range(epochs):
        chosen = rng.choice(len(labels), len(labels), replace=balanced, p=share / share.sum())
        classifier.fit(images[chosen], labels[chosen], batch_size=64, shuffle=False, verbose=0)


def right(network, images, labels):
    """The share that it is right on, and the mean of each class's share."""
    hits = network.predict(images.astype("float32"), batch_size=256, verbose=0).argmax(axis=1) == labels
    return {"all": float(hits.mean()), "classes alike": float(np.mean([hits[labels == k].mean() for k in set(labels)]))}


def trained():
    """Give the classifier, a function images uint8 -> logits, trained when it is first asked for."""
    network = wide()
    if not WEIGHTS.is_file():
        main([])
    with np.load(WEIGHTS) as arrays:
        network.set_weights([arrays[name] for name in arrays.files])
    return lambda images: network.predict(np.asarray(images, "float32"), batch_size=256, verbose=0)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wide", choices=NETWORKS)
    parser.add_argument("--balanced", action="store_true", help="show of each class as many")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--held", type=int, choices=range(4), help="the quarter of the captions that is left out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    keras.utils.set_random_seed(options.seed)
    table = emoji_table()
    _, labels = np.unique(table.groups, return_inverse=True)
    chosen = table.splits == "train"
    images, labels, captions = table.images[chosen], labels[chosen], np.asarray(table.captions)[chosen]
    names = np.unique(captions)
    quarter = dict(zip(names, np.random.default_rng(0).integers(0, 4, len(names)), strict=True))
    held = np.array([quarter[caption] == options.held for caption in captions])
    network = NETWORKS[options.network]()
    train(network, images[~held], labels[~held], epochs=options.epochs, balanced=options.balanced, seed=options.seed)
    print("trained on", right(network, images[~held], labels[~held]))
    if options.held is not None:
        print("never seen", right(network, images[held], labels[held]))
    else:
        np.savez_compressed(WEIGHTS, **{str(i).zfill(3): v for i, v in enumerate(network.get_weights())})
    print(f"{time.perf_counter() - start:.0f} s on {keras.backend.backend()}")


if __name__ == "__main__":
    main()
