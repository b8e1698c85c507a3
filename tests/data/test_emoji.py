import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import unet_keras.data
from unet_keras.data import emoji, emoji_table, load_emoji

PACKAGE = Path(unet_keras.data.__file__).parent
REPOSITORY = PACKAGE.parent.parent


@pytest.fixture(scope="module")
def table():
    return emoji_table()


def test_load_emoji_has_the_shapes_of_keras_datasets():
    (x_train, captions_train), (x_test, captions_test) = load_emoji()
    assert (x_train.shape, x_test.shape) == ((2818, 32, 32, 3), (150, 32, 32, 3))
    assert (captions_train.shape, captions_test.shape) == ((2818,), (150,))
    assert x_train.dtype == x_test.dtype == np.uint8
    assert captions_train.dtype.kind == captions_test.dtype.kind == "U"


def test_load_emoji_takes_the_train_and_val_rows(table):
    for (images, captions), split in zip(load_emoji(), ("train", "val"), strict=True):
        rows = np.flatnonzero(table.splits == split)
        np.testing.assert_array_equal(images, table.images[rows])
        assert captions.tolist() == table.captions[rows].tolist()


def test_columns_are_text_of_one_length(table):
    assert table.images.shape == (3145, 32, 32, 3)
    for column in table[1:]:
        assert column.shape == (3145,)
        assert column.dtype.kind == "U"


def test_split_counts(table):
    assert Counter(table.splits.tolist()) == {"train": 2818, "val": 150, "compose": 40, "val_style": 137}


def test_styles_and_groups(table):
    assert Counter(table.styles.tolist()) == {"noto": 1583, "flat": 1562}
    assert len(set(table.groups.tolist())) == 9
    assert "animals & nature" in table.groups


def test_captions_are_lower_case_ascii_and_tags_are_joined(table):
    assert len(set(table.captions.tolist())) == 1583
    assert all(caption.isascii() and caption == caption.lower() and caption for caption in table.captions.tolist())
    row = table.captions.tolist().index("grinning face")
    assert table.tags[row].split("|")[:3] == ["cheerful", "cheery", "face"]


def test_val_captions_are_new_but_their_words_are_not(table):
    train = set(table.captions[table.splits == "train"].tolist())
    words = set(re.findall(r"[a-z0-9']+", " ".join(train)))
    for split in ("val", "compose"):
        captions = set(table.captions[table.splits == split].tolist())
        assert not captions & train
        assert set(re.findall(r"[a-z0-9']+", " ".join(captions))) <= words


def test_the_pictures_are_those_of_their_captions(table):
    colours = {}
    for caption in ("red circle", "green circle"):
        middle = table.images[table.captions == caption][:, 12:20, 12:20]
        colours[caption] = middle.reshape(-1, 3).mean(0).argmax()
    assert colours == {"red circle": 0, "green circle": 1}


def test_backgrounds_are_white(table):
    corners = table.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.mean(np.all(corners == 255, axis=(1, 2))) > 0.9


def test_each_call_gives_arrays_of_its_own():
    one, two = emoji_table(), emoji_table()
    one.images[:] = 0
    assert two.images.any()


def test_the_file_holds_no_pickled_objects():
    with zipfile.ZipFile(emoji._FILE) as file:
        for name in file.namelist():
            with file.open(name) as column:
                np.lib.format.read_magic(column)
                assert not np.lib.format.read_array_header_1_0(column)[2].hasobject


@pytest.mark.parametrize("path", [PACKAGE / "EMOJI_NOTICES", REPOSITORY / "THIRD_PARTY_NOTICES"], ids=lambda p: p.name)
def test_notices_name_every_licence(path):
    text = path.read_text(encoding="utf-8")
    for line in (
        "Copyright 2013 Google, Inc.",
        "Apache License, Version 2.0",
        "Changed: downsampled to 32x32, composited on white",
        "Copyright (c) Microsoft Corporation",
        "Changed: rendered at 32x32 on white",
        "Copyright (c) 2017-2019 Miles Johnson",
        "emojibase-data 17.0.0",
        "UNICODE LICENSE V3",
        "Unicode, Inc.",
    ):
        assert line in text
    assert text.count("Permission is hereby granted, free of charge") == 3
    assert text.count("The above copyright notice and this permission notice shall be included in all") == 2


def test_the_two_notices_are_one_text():
    assert (PACKAGE / "EMOJI_NOTICES").read_bytes() == (REPOSITORY / "THIRD_PARTY_NOTICES").read_bytes()
