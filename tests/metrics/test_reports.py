"""From a model to figures that say how they came about, and ``val_fid`` in the logs of a training."""

import csv
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from unet_keras import (
    CsvLog,
    DiffusionModel,
    Evaluate,
    SampleGrid,
    TensorBoardLog,
    build_unet,
    ddpm,
    karras,
    linear,
    metrics,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype="uint8")


def colours(images):
    """Mean and spread of each colour."""
    flat = images.reshape(len(images), -1, 3).astype("float64")
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1)


def test_a_report_has_the_figures_and_how_they_came_about():
    asked = {}

    def generate(conditions, **options):
        asked.update(options, conditions=conditions)
        return IMAGES[:10]

    functions = (metrics.fid, metrics.kid, metrics.precision_recall)
    measures = metrics.compared(IMAGES[4:], colours, functions), metrics.classified(colours)
    evaluate = metrics.sampled(10, *measures, seed=3, steps=5)
    report = evaluate(SimpleNamespace(generate=generate))
    assert asked == {"conditions": 10, "seed": 3, "steps": 5, "progress": False}
    real, fake = colours(IMAGES[4:]), colours(IMAGES[:10])
    precision, recall = metrics.precision_recall(real, fake)
    for name, value in {"fid": metrics.fid(real, fake), "precision": precision, "recall": recall}.items():
        np.testing.assert_allclose(report.values[name], value, rtol=1e-4)  # features are kept in float32
    assert set(report.values) == {
        "fid", "kid", "kid_std", "precision", "recall", "inception_score", "inception_score_std",
    }  # fmt: skip
    assert report.about == {"extractor": "colours", "n": 10, "reference": 8, "seed": 3, "steps": 5}
    assert "(extractor colours, n 10, reference 8, seed 3, steps 5)" in str(report)


def test_measures_of_two_extractors_are_told_apart():
    first, other = (
        metrics.Report({"a": 1.0}, {"extractor": "x", "n": 1}),
        metrics.Report({"b": 2.0}, {"extractor": "y"}),
    )
    assert (first | other).about == {"extractor": "x and y", "n": 1}
    with pytest.raises(ValueError, match="Two functions give a"):
        first | first


def test_no_figure_is_lost_to_another_of_its_name():
    twice = [partial(metrics.kid, subset_size=3), partial(metrics.kid, subset_size=5)]
    with pytest.raises(ValueError, match="give kid, kid_std"):
        metrics.compared(IMAGES, colours, twice)(IMAGES)


def test_a_report_tells_the_sampler_and_the_spacing():
    options = {"sampler": partial(ddpm, variance=0.5), "spacing": partial(karras, schedule=linear()), "guidance": 2.0}
    made = SimpleNamespace(generate=lambda *args, **options: IMAGES)
    about = metrics.sampled(12, metrics.classified(colours), **options, size=(8, 8))(made).about
    shown = {"sampler": "ddpm(variance=0.5)", "spacing": "karras", "guidance": 2.0}
    assert about == {"extractor": "colours", "n": 12, "seed": 0} | shown


def test_prompts_and_images_are_aligned():
    clip = metrics.Clip(metrics.Extractor("mine", colours), lambda prompts: np.ones((len(prompts), 6)))
    report = metrics.aligned(clip, ["one", "two"])(IMAGES[:2])
    assert report.about == {"extractor": "mine", "n": 2}
    np.testing.assert_allclose(report.values["clip_score"], metrics.clip_score(colours(IMAGES[:2]), np.ones((2, 6))))


def test_without_a_measure_there_is_nothing_to_do():
    with pytest.raises(ValueError, match="measures"):
        metrics.sampled(8)


# ---- while a model trains -------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    made = DiffusionModel(build_unet((8, 8, 3), (4,)), seed=0)
    made.compile("adam")
    return made


def test_val_fid_is_there_for_callbacks_that_come_after(model, tmp_path):
    quality = metrics.sampled(6, metrics.compared(IMAGES, colours, cache=tmp_path / "cache"), steps=2)
    evaluate = Evaluate(quality, every=2)
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_fid", mode="min", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(monitor="val_fid", mode="min", patience=10)
    grid = SampleGrid(2, tmp_path / "grids", every=3, steps=2, board=tmp_path / "board")
    size = Evaluate(lambda model: {"weights": model.network.count_params()}, prefix="")
    callbacks = [evaluate, size, best, stop, CsvLog(tmp_path / "log.csv"), TensorBoardLog(tmp_path / "board"), grid]
    history = model.fit(IMAGES, epochs=4, verbose=0, callbacks=callbacks).history
    assert [epoch for epoch, _ in evaluate.history] == [1, 2, 4]
    measured = [report.values["fid"] for _, report in evaluate.history]
    assert history["val_fid"] == [measured[0], measured[1], measured[1], measured[2]]
    assert history["weights"] == [model.network.count_params()] * 4
    assert best.best == stop.best == min(measured) and (tmp_path / "best.keras").is_file()
    assert evaluate.history[-1][1].values == quality(model).values
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == values
    tf = pytest.importorskip("tensorflow")
    events = [e for f in (tmp_path / "board").iterdir() for e in tf.compat.v1.train.summary_iterator(str(f))]
    points = {(v.tag, e.step): v for e in events for v in e.summary.value}
    np.testing.assert_allclose([points["val_fid", i].simple_value for i in (1, 2, 3, 4)], history["val_fid"], rtol=1e-6)
    assert points["samples", 3].HasField("image") and points["samples", 4].HasField("image")
    assert set(points) == {(name, i) for name in history for i in (1, 2, 3, 4)} | {("samples", 3), ("samples", 4)}


@pytest.mark.parametrize(("figures", "told"), [(1.5, "got 1.5"), ({"loss": 1.0}, "gives val_loss")])
def test_figures_have_names_that_are_free(model, figures, told):
    with pytest.raises(ValueError, match=told):
        validation = (IMAGES[:2], None)
        model.fit(IMAGES[:2], verbose=0, validation_data=validation, callbacks=[Evaluate(lambda model: figures)])


def test_every_must_be_an_epoch_or_more():
    with pytest.raises(ValueError, match="every"):
        Evaluate(len, every=0)


def test_a_csv_gains_columns_and_goes_on_from_an_epoch(tmp_path):
    log = CsvLog(tmp_path / "deep" / "log.csv")
    log.on_epoch_end(0, {"loss": 3.0})
    log.on_epoch_end(1, {"loss": 2.0, "val_loss": 2.5})
    log.on_epoch_end(2, {"loss": 1.0})
    again = CsvLog(log.path)
    again.on_epoch_end(1, {"loss": np.float32(1.5), "val_loss": 2.25})
    assert log.path.read_text().splitlines() == ["epoch,loss,val_loss", "1,3.0,", "2,1.5,2.25"]


@pytest.mark.parametrize("functions", ["fid", metrics.fid, (), ("fid",)])
def test_functions_to_compare_with_are_functions(functions):
    with pytest.raises(ValueError, match="functions must be a tuple of functions"):
        metrics.compared(IMAGES, colours, functions)
