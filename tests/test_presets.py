"""Presets: written, read back, refused; and the one that is shipped."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from unet_keras import (
    DiffusionModel,
    TokenEncoder,
    build_unet,
    class_label,
    cosine,
    from_preset,
    preset_names,
    save_preset,
    text_unet,
    timestep,
    velocity,
)
from unet_keras.zoo.diffusers.weights import arrays_of
from unet_keras.zoo.presets import preset_facts


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    encoder = TokenEncoder(["red", "blue"], length=3, width=8, depth=1, heads=2)
    network = build_unet((8, 8, 3), (8,), context=encoder.context)
    trained = DiffusionModel(network, cosine(), velocity, encoder=encoder, drop=0.1, seed=0)
    trained.compile("adam")
    trained.averaged.set_weights([w + 0.1 for w in trained.averaged.get_weights()])
    return trained


@pytest.fixture
def folder(model, tmp_path):
    return save_preset(model, tmp_path / "mine", about={"class_names": ["a"]})


def test_a_preset_holds_the_averaged_weights_in_half_precision(model, folder):
    back = from_preset(folder)
    assert back.encoder.vocabulary == ["red", "blue"] and not back.compiled and back.prediction == velocity
    for network in (back.network, back.averaged):
        for found, expected in zip(network.get_weights(), model.averaged.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected.astype("float16").astype("float32"))
    assert {a.dtype for a in np.load(folder / "weights.npz").values()} == {np.dtype("float16")}
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.npz"]
    assert preset_facts(folder) == {"class_names": ["a"]}


def test_a_preset_of_what_cannot_be_read_is_not_written(model, folder, tmp_path):
    with pytest.raises(ValueError, match="dtype must be 'float16' or 'float32', got 'int8'"):
        save_preset(model, tmp_path / "other", dtype="int8")
    with pytest.raises(ValueError, match="got 'int8'"):
        arrays_of(model.network, dtype="int8")
    half = from_preset(folder, dtype="bfloat16")
    for found, expected in zip(
        from_preset(save_preset(half, tmp_path / "half"), dtype="float32").averaged.get_weights(),
        half.averaged.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(found, np.asarray(expected, "float32"), rtol=1e-3, atol=1e-6)
    model.save(tmp_path / "half" / "model.keras")
    with pytest.raises(ValueError, match="holds a model.keras, which is read in a preset's place"):
        save_preset(model, tmp_path / "half")


def test_a_preset_samples_and_trains_on(model, folder):
    back = from_preset(folder)
    images = [m.generate(["red", "blue"], steps=2, seed=0, guidance=2.0, progress=False) for m in (model, back)]
    assert np.abs(np.subtract(*images, dtype=int)).max() <= 3
    before = back.network.get_weights()
    back.compile("adam")
    back.fit(np.zeros((4, 8, 8, 3), "uint8"), ["red"] * 4, verbose=0)
    assert any((a != b).any() for a, b in zip(before, back.network.get_weights(), strict=True))


def test_a_keras_file_and_a_run_folder_are_read_too(model, tmp_path):
    model.save(tmp_path / "model.keras")
    for path in (tmp_path, tmp_path / "model.keras"):
        np.testing.assert_array_equal(from_preset(path).averaged.get_weights()[0], model.averaged.get_weights()[0])
    assert preset_facts(tmp_path) == {}
    assert preset_facts("ddpm-cifar10") == preset_facts("hf://google/ddpm-cifar10-32") == {}


def test_a_preset_or_a_run_computes_in_another_precision(model, folder, tmp_path):
    model.save(tmp_path / "model.keras")
    for path in (folder, tmp_path):
        back = from_preset(path, dtype="mixed_bfloat16")
        assert back.dtype_policy.name == "mixed_bfloat16"
        for network, kept in ((back.network, from_preset(path).network), (back.averaged, from_preset(path).averaged)):
            assert network.get_layer("down0_block0_conv1").compute_dtype == "bfloat16"
            for found, expected in zip(network.get_weights(), kept.get_weights(), strict=True):
                np.testing.assert_array_equal(found, expected)
        again = from_preset(save_preset(back, tmp_path / "half"), dtype="float32")
        assert {layer.compute_dtype for layer in again.network.layers} <= {"float32", "int32", "bool"}
        assert again.dtype_policy.name == "float32"


def rewrite(folder, change):
    with np.load(folder / "weights.npz") as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(folder / "weights.npz", **arrays)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("head/kernel"), "only in the network: head/kernel"),
        (lambda a: a.update(more=np.zeros(2)), "only in the file: more"),
        (lambda a: a.update({"head/bias": np.zeros(4)}), "of another shape: head/bias"),
        (lambda a: a.update({"head/bias": a.pop("head/kernel")}), "only in the network: head/kernel"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_both_sides_named(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        from_preset(folder)


def test_what_is_no_preset_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="no preset 'emoji-64'.*emoji-32"):
        from_preset("emoji-64")
    with pytest.raises(ValueError, match="neither a run.s model.keras nor a preset.s config.json"):
        from_preset(tmp_path)
    (folder / "weights.npz").unlink()
    with pytest.raises(ValueError, match="no weights"):
        from_preset(folder)


def test_pickles_are_not_opened(folder):
    rewrite(folder, lambda a: a.update({"head/bias": np.array([None, None, None])}))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        from_preset(folder)


def test_weights_that_half_precision_cannot_hold_are_refused(model, tmp_path):
    kept = model.averaged.get_weights()
    model.averaged.set_weights([w * 1e6 for w in kept])
    with pytest.raises(ValueError, match="use float32"):
        save_preset(model, tmp_path / "large")
    back = from_preset(save_preset(model, tmp_path / "large", dtype="float32"))
    np.testing.assert_array_equal(back.averaged.get_weights()[0], kept[0] * 1e6)
    model.averaged.set_weights(kept)


# ---- emoji-32 -------------------------------------------------------------------------------------------------------


def test_the_shipped_preset_is_small():
    folder = Path(__file__).parents[1] / "unet_keras" / "zoo" / "shipped" / "emoji-32"
    assert preset_names() == ["emoji-32"]
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 20e6
    assert json.loads((folder / "config.json").read_text())["about"]["class_names"][0] == "activities"


def test_the_shipped_preset_reads_colours():
    """Ten steps are enough to tell red from blue."""
    model = from_preset("emoji-32")
    assert 5e6 <= model.network.count_params() <= 10e6
    images = model.generate(["red circle", "blue circle"], steps=10, guidance=3.0, seed=0, progress=False)
    red, blue = images[:, 10:22, 10:22].mean(axis=(1, 2))
    assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60


@pytest.mark.once
def test_the_shipped_preset_has_the_network_that_the_command_line_trains():
    model, about = from_preset("emoji-32"), preset_facts("emoji-32")
    conditions = (timestep(), class_label(len(about["class_names"]) + 1))
    made = text_unet((32, 32, 3), context=model.encoder.context, conditions=conditions)
    shipped = {v.path: tuple(v.shape) for v in model.network.weights}
    assert {v.path: tuple(v.shape) for v in made.weights} == shipped
