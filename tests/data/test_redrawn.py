"""Images with conditions drawn anew each epoch, and the captions drawn for the emoji."""

import numpy as np
import pytest

from unet_keras import (
    Checkpoint,
    DiffusionModel,
    Redrawn,
    build_unet,
    class_label,
    emoji_captions,
    emoji_table,
    timestep,
)

IMAGES = np.arange(10, dtype="uint8")[:, None, None, None] * np.ones((1, 2, 2, 3), "uint8")


def draw(rng):
    return {"number": np.arange(10), "drawn": rng.random(10)}


def epoch(data):
    batches = [data[i] for i in range(len(data))]
    data.on_epoch_begin()
    data.on_epoch_end()
    return [np.concatenate(part) for part in ([b[0][:, 0, 0, 0] for b in batches], *_columns(batches))]


def _columns(batches):
    return [[b[1][name] for b in batches] for name in ("number", "drawn")]


def test_every_image_comes_once_an_epoch_with_its_own_conditions_in_another_order():
    data = Redrawn(IMAGES, draw, batch_size=4)
    assert len(data) == 3 and len(data[2][0]) == 2
    (first, numbers, drawn), (second, _, redrawn) = epoch(data), epoch(data)
    assert sorted(first) == sorted(second) == list(range(10)) and list(first) != list(second)
    assert (first == numbers).all() and sorted(drawn) != sorted(redrawn)


def test_an_epoch_is_a_function_of_the_seed():
    one, other = (Redrawn(IMAGES, draw, batch_size=4, seed=3) for _ in range(2))
    for _ in range(2):
        np.testing.assert_array_equal(epoch(one)[2], epoch(other)[2])
    assert (epoch(Redrawn(IMAGES, draw, seed=4))[2] != epoch(Redrawn(IMAGES, draw, seed=3))[2]).any()


def test_any_epoch_can_be_begun_at_once():
    counted, told = (Redrawn(IMAGES, draw, batch_size=4) for _ in range(2))
    for _ in range(3):
        epoch(counted)
    told.set_epoch(3)
    np.testing.assert_array_equal(epoch(counted)[2], epoch(told)[2])


def test_images_may_be_drawn_too():
    data = Redrawn(IMAGES, lambda rng: (IMAGES + rng.integers(1, 9, dtype="uint8") * 10, draw(rng)), batch_size=4)
    (first, numbers, _), (second, other, _) = epoch(data), epoch(data)
    assert len(set(first - numbers)) == 1 and (first - numbers)[0] >= 10
    np.testing.assert_array_equal(second % 10, other)
    assert (first - numbers)[0] != (second - other)[0]


def test_conditions_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"draw gave 'number' of shape \(9,\)"):
        Redrawn(IMAGES, lambda rng: {"number": np.arange(9)})
    with pytest.raises(ValueError, match=r"draw gave 'images' of shape \(9, 2, 2, 3\)"):
        Redrawn(IMAGES, lambda rng: (IMAGES[:9], {}))
    with pytest.raises(ValueError, match=r"draw gave 'number' of shape \(\): it needs a row for each of the 10 images"):
        Redrawn(IMAGES, lambda rng: {"number": 3})


def test_an_epoch_is_drawn_once_and_fit_begins_with_the_first(tmp_path):
    told = []

    class Told(Redrawn):
        def __getitem__(self, index):
            told.append((self._epoch, index))
            return super().__getitem__(index)

    def counted(rng):
        draws.append(rng.random())
        return {"label": [0] * 10}  # a list will do

    model = DiffusionModel(build_unet((8, 8, 3), (4,), conditions=(timestep(), class_label(2))), seed=0)
    model.compile("sgd")
    images = np.zeros((10, 8, 8, 3), "uint8")
    for options in ({}, {"checkpoint": True}):
        draws = []
        told.clear()
        data = Told(images, counted, batch_size=4)
        if options:
            checkpoint = Checkpoint(tmp_path, data, every=1e9)
            options = {"callbacks": [checkpoint], **checkpoint.resume(model)}
        model.fit(data, epochs=3, verbose=0, **options)
        assert [pair for pair in dict.fromkeys(told) if pair[0] < 3] == [(e, i) for e in range(3) for i in range(3)]
        assert list(dict.fromkeys(draws)) == [_first_number(epoch) for epoch in range(3)] and len(draws) <= 4


def _first_number(epoch):
    rng = np.random.default_rng([0, epoch])
    rng.permutation(10)
    return rng.random()


def test_captions_are_names_or_keywords_with_an_article_or_a_style_at_times():
    table = emoji_table()
    rng = np.random.default_rng(0)
    texts = emoji_captions(table, rng)
    assert len(texts) == len(table.captions)
    names = articles = styles = 0
    for text, name, tags, style in zip(texts, table.captions, table.tags, table.styles, strict=True):
        plain = text
        if text.split()[0] in ("a", "an", "the") and not name.startswith(text.split()[0] + " "):
            plain, articles = text.split(" ", 1)[1], articles + 1
        if plain.split()[-1] == style:
            plain, styles = plain.rsplit(" ", 1)[0], styles + 1
        names += plain == name
        keywords = set(" ".join([name, *tags.split("|")]).split())
        assert plain == name or set(plain.split()) <= keywords | {"a", "an", "the"}, (text, name, tags)
    count = len(texts)
    for found, share in ((names, 0.7), (articles, 0.25), (styles, 0.3)):
        assert abs(found / count - share) < 0.06
    assert emoji_captions(table, np.random.default_rng(0)) == texts != emoji_captions(table, rng)


@pytest.mark.parametrize("size", [0, 2.5, True, None])
def test_batches_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match="batch_size must be"):
        Redrawn(IMAGES, draw, batch_size=size)


@pytest.mark.parametrize("given", [["a"] * 10, np.arange(10), (IMAGES, np.arange(10))])
def test_a_draw_that_names_no_conditions_is_refused(given):
    with pytest.raises(ValueError, match="draw must give {name: array}.* got a (list|ndarray)"):
        Redrawn(IMAGES, lambda rng: given)


def test_one_caption_is_no_list_of_them():
    with pytest.raises(ValueError, match="never must be captions, got the one 'red heart'"):
        emoji_captions(emoji_table(), np.random.default_rng(0), never="red heart")


def test_no_caption_is_one_that_is_never_to_be_drawn():
    table = emoji_table()
    train = type(table)(*(column[table.splits == "train"] for column in table))
    held = set(table.captions[table.splits != "train"]) - set(train.captions)
    ends = ("a ", "an ", "the "), (" noto", " flat")

    def drawn(**options):
        texts = {text for seed in range(20) for text in emoji_captions(train, np.random.default_rng(seed), **options)}
        for end in ends[0]:
            texts |= {text.removeprefix(end) for text in texts}
        for end in ends[1]:
            texts |= {text.removesuffix(end) for text in texts}
        return {" ".join(sorted(text.split())) for text in texts}

    sorted_ = {" ".join(sorted(text.split())) for text in held}
    assert drawn() & sorted_ and not drawn(never=held) & sorted_
