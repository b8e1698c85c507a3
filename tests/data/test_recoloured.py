"""Emoji in other colours than their own, compared with the real emoji of those colours."""

import numpy as np
import pytest

from unet_keras import Recoloured, emoji_table
from unet_keras.data.recoloured import COLOURS

TABLE = emoji_table()
TRAIN = TABLE.splits == "train"
KNOWN = type(TABLE)(*(column[TRAIN] for column in TABLE))
HELD = TABLE.captions[~TRAIN]


def changed(drawn):
    return np.flatnonzero(drawn.captions != KNOWN.captions)


def test_a_share_of_the_plain_emoji_is_recoloured_and_all_else_left():
    drawn = Recoloured(KNOWN)(np.random.default_rng(0))
    rows = changed(drawn)
    assert 200 < len(rows) < 300
    same = np.delete(np.arange(len(KNOWN.images)), rows)
    same = same[(drawn.tags[same] == KNOWN.tags[same])]  # a red apple may become a red apple
    np.testing.assert_array_equal(drawn.images[same], KNOWN.images[same])
    assert len(same) > 2500 and not set(KNOWN.groups[rows]) & {"people & body", "flags"}
    assert all(set(drawn.captions[i].split()) & set(COLOURS) and not drawn.tags[i] for i in rows)
    assert np.mean([(drawn.images[i] != KNOWN.images[i]).any() for i in rows]) > 0.9  # some a red that they had
    assert not any(set(KNOWN.captions[i].split()) & {"light", "white"} for i in rows)
    unnamed = [i for i in rows if not set(KNOWN.captions[i].split()) & set(COLOURS)]
    assert all(drawn.captions[i].split(" ", 1)[1] == KNOWN.captions[i] for i in unnamed)


def test_the_draw_is_a_function_of_the_generator():
    draw = Recoloured(KNOWN)
    one, same, other = (draw(np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, same.images)
    np.testing.assert_array_equal(one.captions, same.captions)
    assert (one.captions != other.captions).any()
    assert Recoloured(KNOWN, share=0.0)(np.random.default_rng(0)).captions.tolist() == KNOWN.captions.tolist()


def test_captions_to_be_tested_on_are_not_made_nor_longer_ones():
    never, free = Recoloured(KNOWN, never=HELD, share=1.0), Recoloured(KNOWN, share=1.0)
    made, unchecked = set(), set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drawn, unheld = never(rng), free(rng)
        made |= set(drawn.captions[changed(drawn)])
        unchecked |= set(unheld.captions[changed(unheld)])
    assert {"blue heart", "purple square", "purple large square"} <= unchecked
    assert not made & set(HELD) and "purple large square" not in made and "purple heart" in made


@pytest.mark.parametrize("style", ["noto", "flat"])
@pytest.mark.parametrize("shape", ["heart", "circle", "square"])
def test_a_recoloured_shape_looks_like_the_real_one_of_that_colour(style, shape):
    real = {
        colour: TABLE.images[found[0]].astype(float)
        for colour in COLOURS
        if len(found := np.flatnonzero((TABLE.captions == f"{colour} {shape}") & (TABLE.styles == style)))
        and f"{style} {colour} {shape}" not in ("flat yellow square", "flat purple square")  # nearly orange, lilac
    }
    rows = np.array([bool(set(caption.split()) & set(COLOURS)) for caption in KNOWN.captions])
    table = type(KNOWN)(*(column[rows & (KNOWN.styles == style)] for column in KNOWN))
    source = np.flatnonzero(table.captions == f"red {shape}")[0]
    draw, seen = Recoloured(table, share=1.0), set()
    for seed in range(100):
        drawn = draw(np.random.default_rng(seed))
        colour = drawn.captions[source].split()[0]
        if colour in real:
            gaps = {c: np.abs(image - drawn.images[source]).mean() for c, image in real.items()}
            assert min(gaps, key=gaps.get) == colour
            seen.add(colour)
    assert seen == set(real) and len(seen) > 4


def test_soft_edges_follow_and_parts_of_another_colour_stay():
    image, blue = np.full((2, 32, 32, 3), 255, "uint8")
    for kite, colour in ((image, (201, 41, 41)), (blue, (41, 81, 181))):
        kite[4:28, 4:28] = colour
        kite[3, 4:28] = (255 + np.array(colour)) // 2  # half of it white
    image[14:18, 14:18] = (30, 60, 220)
    rows = [np.array([name] * 2) for name in ("", "objects", "noto", "train")]
    table = type(TABLE)(np.stack([image, blue]), np.array(["kite", "blue kite"]), *rows)
    drawn = Recoloured(table, share=1.0)
    for seed in range(100):
        found = drawn(np.random.default_rng(seed))
        if found.captions[0] == "blue kite":
            break
    shown = found.images[0].astype(int)
    np.testing.assert_allclose(shown[10, 10], (41, 81, 181), atol=2)
    np.testing.assert_allclose(shown[3, 10], (148, 168, 218), atol=2)
    np.testing.assert_array_equal(shown[0, 0], 255)
    np.testing.assert_allclose(shown[15, 15], (30, 60, 220), atol=8)


def test_what_is_no_share_and_no_captions_is_refused():
    with pytest.raises(ValueError, match=r"share must be from 0 to 1, got 1\.5"):
        Recoloured(KNOWN, share=1.5)
    with pytest.raises(ValueError, match=r"write \['blue heart'\]"):
        Recoloured(KNOWN, never="blue heart")
