"""Prompts through the model: what fit and generate make of them, what is dropped, what guidance leads away from."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from unet_keras import (
    DiffusionModel,
    TokenEncoder,
    build_unet,
    class_label,
    interval,
    linear,
    masked_sequence,
    rescaled,
    timestep,
)
from unet_keras.diffusion.schedules import Point

from .helpers import SHAPE, normal, pixels

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
WORDS = list(COLOURS)
NONE = 4


def model(drop=None, **options):
    """A model whose output tells what it was given: tokens in the first channel, the label in the second."""
    encoder = TokenEncoder(WORDS, length=3)
    shapes = {
        "image": (SHAPE, "float32"),
        "timestep": ((), "float32"),
        "tokens": ((3,), "int32"),
        "label": ((), "int32"),
    }
    inputs = {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in shapes.items()}
    told = [layers.Rescaling(0.1)(inputs["tokens"][:, 1:2]), layers.Rescaling(0.1)(inputs["label"][:, None])]
    told = layers.Concatenate()([*told, layers.Rescaling(0.0)(inputs["timestep"][:, None])])
    output = layers.Add()([layers.Rescaling(0.0)(inputs["image"]), layers.Reshape((1, 1, 3))(told)])
    options = {"null": {"label": NONE}, "drop": {"prompt": 0.3, "label": 0.6} if drop is None else drop, **options}
    return DiffusionModel(keras.Model(inputs, output), encoder=encoder, ema=None, seed=5, **options)


def outputs(asked, guidance=1.0, trained=None, **options):
    """What the network, guided, gives of each image: (tokens, label), in tenths, read from a single step."""
    trained = model() if trained is None else trained
    noise = normal(2, len(trained._request(asked).numbers), *SHAPE)
    frame = next(trained.denoising(asked, guidance=guidance, steps=1, noise=noise, threshold=lambda v: v, **options))
    schedule = linear()
    clean = ops.convert_to_numpy(frame.clean)
    eps = (noise[0] - schedule.alpha[-1] * clean) / schedule.sigma[-1]
    return np.round(10 * eps[:, 0, 0, :2], 2).tolist()


def test_prompts_labels_both_or_neither():
    """red is token 2, blue 4, no prompt 0 behind the start; 4 is no label."""
    assert outputs(["red", "blue"]) == [[2, NONE], [4, NONE]]
    assert outputs({"label": [0, 3]}) == [[0, 0], [0, 3]]
    assert outputs({"prompt": ["red", "blue"], "label": [0, 3]}) == [[2, 0], [4, 3]]
    assert outputs({"tokens": [[1, 3, 0]]}) == [[3, NONE]]
    assert outputs(2) == [[0, NONE]] * 2


def test_guidance_leads_away_from_no_prompt_and_no_label():
    assert outputs({"prompt": ["red"], "label": [0]}, 3.0) == [[6, NONE + 3 * (0 - NONE)]]
    assert outputs(["red"], 3.0) == [[6, NONE]]


def test_what_is_never_dropped_stays_in_both_halves():
    trained = model(drop={"prompt": 0.5})
    assert outputs({"prompt": ["red"], "label": [1]}, 3.0, trained) == [[6, 1]]
    with pytest.raises(ValueError, match=r"missing: \['label'\]"):
        trained.generate(["red"], steps=1)


def test_negative_prompts_take_the_place_of_none():
    assert outputs(["red", "blue"], 3.0, negative=["green"]) == [[3 + 3 * (2 - 3), NONE], [3 + 3 * (4 - 3), NONE]]
    assert outputs(["red", "blue"], 3.0, negative=["green", ""]) == [[0, NONE], [12, NONE]]
    assert outputs({"label": [2]}, 2.0, negative={"label": [1]}) == [[0, 3]]


@pytest.mark.parametrize(
    "asked, options, message",
    [
        ([], {}, "none"),
        ("red", {}, r"\['red'\]"),
        (["red", 1], {}, "entry 1"),
        ({"prompt": ["red"], "tokens": [[1, 2, 0]]}, {}, "given twice"),
        ({"prompt": ["red"], "label": [0, 1]}, {}, r"shape \(1,\)"),
        ({"prompt": ["red"], "lable": [0]}, {}, "lable"),
        (["red"], {"negative": ["blue"]}, "guidance alone"),
        (["red"], {"negative": ["blue", "red"], "guidance": 2.0}, r"'tokens of negative' must have the shape \(1, 3\)"),
        (["red"], {"negative": {"colour": [1]}, "guidance": 2.0}, "colour"),
        (2, {"guidance": 2.0}, "nothing to lead to"),
        (["red"], {"combine": rescaled(0.5)}, "combine is used by guidance alone"),
        ({"label": 1}, {}, r"'label' must have a row for each image, got 1: give \[1\]"),
        (["red"], {"negative": {"label": 1}, "guidance": 2.0}, r"give \[1\]"),
        (["red"], {"negative": {}, "guidance": 2.0}, "negative must hold a condition"),
        (["red"], {"guidance": lambda point: -1.0}, "0 or more"),
    ],
)
def test_what_cannot_be_asked_for(asked, options, message):
    with pytest.raises(ValueError, match=message):
        model().generate(asked, steps=1, **options)


def test_guidance_of_a_model_that_never_saw_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="trained with dropped conditions"):
        model(drop=0.0).generate({"prompt": ["red"], "label": [0]}, steps=1, guidance=2.0)


@pytest.mark.parametrize(
    ("dropped", "inputs", "asked"), [("label", "label", {"prompt": ["red"]}), ("prompt", "tokens", {"label": [0]})]
)
def test_guidance_by_what_training_never_dropped_is_refused(dropped, inputs, asked):
    trained = model(drop={dropped: 0.3}, null={"label": NONE} if dropped == "label" else {})
    both = {"prompt": ["red"], "label": [0]}
    assert outputs(both, 2.0, trained) == ([[4, 0]] if dropped == "prompt" else [[2, NONE + 2 * (0 - NONE)]])
    with pytest.raises(ValueError, match=rf"nothing to lead to: training dropped \['{inputs}'\]"):
        trained.generate(asked, steps=1, guidance=2.0)


def test_tokens_of_another_vocabulary_are_refused():
    small, large = (TokenEncoder(words, length=4, width=8, depth=0) for words in (["red"], ["red", "zoo"]))
    trained = DiffusionModel(build_unet((4, 4, 3), (8,), context=small.context), encoder=large)
    assert len(trained.generate(["red"], steps=1, progress=False)) == 1
    for ask in (lambda: trained.generate(["zoo"]), lambda: trained.fit(np.zeros((1, 4, 4, 3), "uint8"), ["zoo"])):
        with pytest.raises(ValueError, match="'tokens' must lie in 0 ... 2, got values from 1 to 3|from 0 to 3"):
            ask()
    with pytest.raises(ValueError, match="'tokens' must lie in 0"):
        trained.generate({"tokens": [[1, -3, 0, 0]]})


def test_prompts_without_an_encoder_are_refused():
    bare = DiffusionModel(model().network)
    for attempt in (lambda: bare.generate(["red"]), lambda: bare.fit(pixels(1), {"prompt": ["red"], "label": [1]})):
        with pytest.raises(ValueError, match="texts need an encoder"):
            attempt()


class Vectors:
    """An encoder of (3, width): the length of the prompt everywhere."""

    def __init__(self, width):
        self.width = width

    def __call__(self, prompts):
        return {"context": np.array([len(p) for p in prompts], "float32")[:, None, None] * np.ones((1, 3, self.width))}


def test_a_context_of_another_width_than_the_networks_is_refused():
    network = build_unet((4, 4, 3), (8,), context=(3, 6))
    with pytest.raises(ValueError, match=r"'context' must have the shape \(1, 3, 6\), got \(1, 3, 5\)"):
        DiffusionModel(network, encoder=Vectors(5))
    assert DiffusionModel(network, encoder=Vectors(6)).generate(["a"], steps=1, progress=False).shape == (1, 4, 4, 3)
    with pytest.raises(ValueError, match=r"'context' must have the shape \(2, 3, 6\), got \(2, 3, 5\)"):
        DiffusionModel(network).generate(Vectors(5)(["a", "b"]), steps=1)


@pytest.mark.parametrize(
    "drop, message",
    [
        ({"prompt": 0.1, "colour": 0.1}, "colour"),
        ({"label": 1.5}, "lie in"),
        (-0.1, "lie in"),
        ({"tokens": 2}, "lie in"),
    ],
)
def test_drops_that_mean_nothing_are_refused(drop, message):
    with pytest.raises(ValueError, match=message):
        model(drop=drop)


def test_one_drop_needs_a_null_for_every_condition():
    with pytest.raises(ValueError, match=r"drop=0.1 drops all .* \['label'\] have no null: give null"):
        model(drop=0.1, null=None)
    asked = {"prompt": ["red"], "label": [1]}
    assert model(drop=0.0, null=None).generate(asked, steps=1, progress=False).shape[0] == 1


def test_conditions_are_dropped_each_on_its_own_and_those_of_a_prompt_together():
    trained, count = model(), 4000
    given = {"tokens": np.tile([1, 2, 3], (count, 1)), "label": np.zeros(count, int)}
    found, _, _ = trained.corrupted((pixels(count, shape=(1, 1, 3)), given), trained.train_noise, trained.dropping)
    tokens, label = (ops.convert_to_numpy(found[name]) for name in ("tokens", "label"))
    no_prompt, no_label = (tokens == [1, 0, 0]).all(axis=1), label == NONE
    assert (no_prompt | (tokens == [1, 2, 3]).all(axis=1)).all()
    for share, found in ((0.3, no_prompt), (0.6, no_label), (0.18, no_prompt & no_label)):
        assert abs(found.mean() - share) < 5 * np.sqrt(share * (1 - share) / count)


def test_guidance_in_an_interval_is_one_outside():
    """The scale of each row as the loop gets it."""
    trained, scale = model(), interval(3.0, 0.5, 5.0)
    rows = trained._request(["red"], steps=20, guidance=scale).rows
    ratios = np.array([row.point.sigma / row.point.alpha for row in rows])
    assert [scale(row.point) for row in rows] == np.where((ratios > 0.5) & (ratios <= 5.0), 3.0, 1.0).tolist()
    assert 0 < ((ratios > 0.5) & (ratios <= 5.0)).sum() < 20
    with pytest.raises(ValueError, match="guidance is 1 at each of the 1 points.*interval"):
        outputs(["red"], scale)  # the single step begins at sigma / alpha = 157
    assert outputs(["red"], interval(3.0, 5.0, 200.0)) == outputs(["red"], 3.0)
    pure, clear = Point(999.0, 0.0, 1.0), Point(0.0, 1.0, 0.01)
    assert [interval(3.0, 0.3, np.inf)(point) for point in (pure, clear)] == [3.0, 1.0]
    assert interval(3.0, 0.3, 9.0)(pure) == 1.0


@pytest.mark.parametrize("bounds", [(-1, 2), (2, 2), (3, 1), (float("nan"), 1)])
def test_intervals_that_hold_nothing_are_refused(bounds):
    with pytest.raises(ValueError, match="0 <= low < high"):
        interval(2.0, *bounds)


def test_a_model_with_an_encoder_survives_a_file(tmp_path):
    trained = reader()
    trained.save(tmp_path / "reader.keras")
    back = keras.saving.load_model(tmp_path / "reader.keras")
    assert back.dropping.shares == trained.dropping.shares and back.encoder.vocabulary == WORDS
    asked = {"prompt": ["red", "blue"], "label": [0, 1]}
    images = [m.generate(asked, steps=2, seed=0, guidance=2.0, progress=False) for m in (trained, back)]
    assert np.abs(np.subtract(*images, dtype=int)).max() <= 1


# ---- does the prompt do anything? -----------------------------------------------------------------------------------


def reader(**options):
    keras.utils.set_random_seed(0)
    encoder = TokenEncoder(WORDS, length=3, width=16, depth=0)
    conditions = (timestep(), class_label(NONE + 1))
    network = build_unet((4, 4, 3), (8,), conditions=conditions, context=encoder.context)
    drop = {"prompt": 0.2, "label": 0.5}
    trained = DiffusionModel(network, encoder=encoder, null={"label": NONE}, drop=drop, seed=1, ema=0.9, **options)
    trained.compile(keras.optimizers.Adam(3e-3))
    return trained


def test_the_guidance_gap_tells_true_captions_from_shuffled_ones():
    """The same images and captions: paired in one training, shuffled in the other. No label is any help."""
    rng = np.random.default_rng(0)
    captions = rng.choice(WORDS, 256)
    images = np.array([COLOURS[word] for word in captions], "uint8")[:, None, None].repeat(4, 1).repeat(4, 2)
    gaps = {}
    for name, shown in (("true", captions), ("shuffled", rng.permutation(captions))):
        label = np.full(256, NONE)
        held = images[:64], {"prompt": shown[:64], "label": label[:64]}
        told = {"prompt": shown, "label": label}
        history = reader().fit(images, told, batch_size=32, epochs=15, validation_data=held, verbose=0).history
        gaps[name] = history["val_guidance_gap"][-1]
        assert "guidance_gap" not in history
    assert gaps["true"] > 3 * gaps["shuffled"] > 0, gaps


@pytest.mark.once
def test_the_gaps_of_prompt_and_label_each_tell_true_ones_from_shuffled_ones():
    """Either alone says what the images are, so that the gap of both together is large all the same."""
    rng = np.random.default_rng(0)
    captions = rng.choice(WORDS, 256)
    images = np.array([COLOURS[word] for word in captions], "uint8")[:, None, None].repeat(4, 1).repeat(4, 2)
    true = {"prompt": captions, "label": np.array([WORDS.index(word) for word in captions])}
    gaps = {}
    for shuffled in true:
        told = {**true, shuffled: rng.permutation(true[shuffled])}
        held = images[:64], {name: value[:64] for name, value in told.items()}
        history = reader().fit(images, told, batch_size=32, epochs=20, validation_data=held, verbose=0).history
        gaps[shuffled] = {name: history[f"val_guidance_gap_{name}"][-1] for name in true}
        assert history["val_guidance_gap"][-1] > 0.04
        assert not any(name.startswith("guidance_gap") for name in history)
    assert gaps["label"]["prompt"] > 2 * gaps["prompt"]["prompt"] > 0, gaps
    assert gaps["prompt"]["label"] > 2 * gaps["label"]["label"] > 0, gaps


def test_the_guidance_gap_is_the_relative_difference_of_two_calls():
    trained = model(drop={"prompt": 0.3})
    trained.compile()
    asked = {"prompt": ["red", "blue"], "label": [1, 3]}
    _, gap = trained.evaluate(pixels(2), asked, verbose=0)
    given, bare = np.array([[0.2, 0.1], [0.4, 0.3]]), np.array([[0.0, 0.1], [0.0, 0.3]])
    np.testing.assert_allclose(gap, np.sqrt(np.sum((given - bare) ** 2) / np.sum(given**2)), rtol=1e-5)


def test_there_is_no_gap_to_measure_where_nothing_is_dropped():
    trained = model(drop=0.0)
    trained.compile()
    found = trained.evaluate(pixels(2), {"prompt": ["red", "blue"], "label": [1, 3]}, verbose=0, return_dict=True)
    assert set(found) == {"loss"}


class Bare:
    """An encoder of one's own, which checks nothing."""

    def __call__(self, prompts):
        return {"context": np.array([[[len(prompt)] * 6] * 3 for prompt in prompts], "float32")}


@pytest.mark.parametrize(
    "prompts, message",
    [("red", r"got the one 'red': write \['red'\]"), (["a", 3], "entry 1 is int: 3"), (7, "entry 0 is int: 7")],
)
def test_prompts_are_checked_before_an_encoder_of_ones_own_sees_them(prompts, message):
    reads = DiffusionModel(build_unet((4, 4, 3), (8,), context=(3, 6)), encoder=Bare(), drop=0.1)
    for asked in (
        lambda: reads.generate({"prompt": prompts}, steps=1),
        lambda: reads.fit(pixels(3, shape=(4, 4, 3)), {"prompt": prompts}),
    ):
        with pytest.raises(ValueError, match=message):
            asked()
    with pytest.raises(ValueError, match="prompts must be"):
        reads.generate(["a", "b"], guidance=2.0, negative={"prompt": prompts}, steps=1)


def test_a_tables_column_of_texts_is_a_list_of_prompts():
    class Column(list):
        def to_numpy(self):
            return np.array(list(self), object)

    reads = DiffusionModel(build_unet((4, 4, 3), (8,), context=(3, 6)), encoder=Bare())
    options = {"steps": 1, "seed": 0, "progress": False}
    made = [reads.generate(kind(["a", "bcd"]), **options) for kind in (Column, list)]
    np.testing.assert_array_equal(*made)


def test_a_part_of_what_the_encoder_gives_is_not_dropped_alone():
    with pytest.raises(ValueError, match=r"drop names \['tokens'\], part of what the encoder gives: name .prompt"):
        model(drop={"tokens": 0.1})


def test_contexts_and_nulls_of_two_lengths_are_refused():
    network = build_unet((4, 4, 3), (8,), context=(None, 6))
    reads = DiffusionModel(network, null={"context": np.zeros((3, 6))}, drop=0.5)
    given = np.ones((2, 5, 6), "float32")
    with pytest.raises(ValueError, match=r"'context' is \(5, 6\) for an image, and what .* is \(3, 6\): bring both"):
        reads.generate(given, guidance=2.0, steps=1)
    assert reads.generate(given[:, :3], guidance=2.0, steps=1, progress=False).shape == (2, 4, 4, 3)
    reads.compile()
    if keras.backend.backend() != "tensorflow":  # whose graph knows no length ahead
        with pytest.raises(ValueError, match=r"'context' is \(5, 6\) for an image and its null \(3, 6\)"):
            reads.fit(pixels(2, shape=(4, 4, 3)), given, verbose=0)


@pytest.mark.parametrize("mask", [[[0.0, 0.0, -1e4]], [[0.3, 0.2, 0.1]], [[1, 2, 0]]])
def test_a_mask_must_be_true_and_false(mask):
    reads = DiffusionModel(build_unet((4, 4, 3), (8,), context=masked_sequence(3, 6)))
    asked = {"context": np.ones((1, 3, 6), "float32")}
    with pytest.raises(ValueError, match="'context_mask' must hold True and False"):
        reads.generate({**asked, "context_mask": mask}, steps=1)
    same = [
        reads.generate({**asked, "context_mask": kept}, steps=1, seed=0, progress=False)
        for kept in ([[True, True, False]], [[1.0, 1.0, 0.0]])
    ]
    np.testing.assert_array_equal(*same)
