"""What the command line trains on: the built-in emoji or a folder of images, with the conditions asked for."""

import numpy as np

from unet_keras.data import Recoloured, Redrawn, by_label, emoji_captions, emoji_table, image_folder, image_stream
from unet_keras.text.tokens import TokenEncoder


def training_data(settings, model=None):
    """Read images to train on, images to validate on if there are any, the classes' names, and the text's encoder.

    A ``model`` that is trained further reads with its own encoder, and what it takes but is not asked for is left out:
    its null stands in that condition's place.
    """
    encoder = model and model.encoder
    if model is not None:
        asked = {"label"} if settings["classes"] else set()
        asked |= set(encoder([""])) if encoder and settings["text"] else set()
        absent = {name: null for name, null in model.dropping.null.items() if name not in asked}
    else:
        absent = {}
    read = _emoji if settings["data"] == "emoji" else _folder
    data = read(settings, encoder, absent)
    known = settings.get("class_names")  # of a model that is trained further
    if settings["classes"] and known and data["class_names"] != known:
        raise ValueError(f"--classes: the model knows {', '.join(known)}; the data has {data['class_names']}.")
    return data if settings["classes"] else {**data, "class_names": None}


def _folder(settings, encoder, absent):
    options = {"batch_size": settings["batch_size"], "seed": settings["seed"], "flip": not settings["text"]}

    def conditions(folder):
        nonlocal encoder
        named = _repeated(absent, folder.count) | (by_label(folder) if settings["classes"] else {})
        if settings["text"]:
            if folder.captions is None:
                raise ValueError(f"--text needs captions: put a metadata.jsonl or .csv into {settings['data']}.")
            encoder = encoder or TokenEncoder.from_texts(folder.captions)
            named |= encoder(folder.captions)
        return named

    asked = conditions if settings["classes"] or settings["text"] or absent else None
    read = image_stream if settings.get("stream") else image_folder  # runs from before there was a choice say nothing
    folder = read(settings["data"], settings["size"], conditions=asked, **options)
    known, held = folder.split(0.05) if folder.count >= 20 else (folder, None)
    return {
        "x": known,
        "validation": held,
        "class_names": folder.class_names,
        "encoder": encoder,
        "captions": folder.captions,
    }


def _emoji(settings, encoder, absent):
    if settings.get("stream"):
        raise ValueError("--stream is for a folder of images: give --data, or leave it out.")
    if settings["size"] != 32:
        raise ValueError(f"The built-in images are 32 x 32, not of --size {settings['size']}: give --data for others.")
    table = emoji_table()
    names, labels = np.unique(table.groups, return_inverse=True)
    train_, held = (np.flatnonzero(np.isin(table.splits, splits)) for splits in (["train"], ["val", "compose"]))
    never = table.captions[table.splits != "train"]
    train_ = np.repeat(train_, _times(labels[train_])) if settings["classes"] else train_
    known, unseen = (type(table)(*(column[chosen] for column in table)) for chosen in (train_, held))
    if settings["text"]:
        texts = [*known.captions, *known.tags, "a an the noto flat"]
        encoder = encoder or TokenEncoder.from_texts(texts, width=192)

    def conditions(chosen, captions):
        named = _repeated(absent, len(chosen))
        named |= {"label": labels[chosen].astype("int32")} if settings["classes"] else {}
        return named | (encoder(captions) if settings["text"] else {}) or None

    recoloured = Recoloured(known, never=never) if settings["text"] else None

    def drawn(rng):
        if recoloured is None:
            return conditions(train_, None) or {}
        shown = recoloured(rng)
        return shown.images, conditions(train_, emoji_captions(shown, rng, never=never))

    return {
        "x": Redrawn(known.images, drawn, batch_size=settings["batch_size"], seed=settings["seed"]),
        "validation": (unseen.images, conditions(held, unseen.captions)),
        "class_names": names.tolist(),
        "encoder": encoder,
        "captions": unseen.captions,
    }


def _times(labels):
    """How often an epoch shows each example: by how much its class is rarer than the largest, to the power of 3/4,
    rounded up: what classes but the largest look like is learned from fewer pictures."""
    counts = np.bincount(labels)[labels]
    return np.ceil((counts.max() / counts) ** (3 / 4)).astype(int)


def _repeated(absent, count):
    return {name: np.repeat(null[None], count, axis=0) for name, null in absent.items()}
