"""The command line, on a folder of small pictures."""

import json
import os
import signal
from functools import partial

import keras
import numpy as np
import pytest
from PIL import Image

import unet_keras
from unet_keras import AdamW, Muon, build_unet, cli, emoji_table, from_preset, logit_normal
from unet_keras.cli import material, sample
from unet_keras.cli import train as train_command
from unet_keras.nn.abstract import shapes_only


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setitem(train_command.NETWORKS, "patch", partial(build_unet, levels=(4,)))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            picture = rng.integers(0, 256, (8, 8, 3), dtype="uint8")
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{i}.png")
    return "photos"


def train(*more):
    return cli.main(["train", "--data", "photos", "--size", "8", "--batch-size", "4", "--out", "run", *more])


class Killed(BaseException):
    """What no one catches."""


def killed_after(batches, *more):
    """Train, and end as a killed process does: after so many batches, the last of which is in no checkpoint."""
    begun, begin = [], train_command.LossGuard.on_train_batch_begin

    def kill(*args, **options):
        if len(begun) == batches:
            raise Killed
        begun.append(begin(*args, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command.LossGuard, "on_train_batch_begin", kill)
        with pytest.raises(Killed):
            train(*more)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_train_leaves_a_run_that_can_be_sampled_and_resumed(photos, tmp_path, capsys):
    run = tmp_path / "run"
    assert train("--epochs", "2", "--classes", "--samples-every", "1") == 0
    made = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "checkpoints" not in p.parts}
    pictures = {"samples/epoch_0001.png", "samples/epoch_0002.png", "samples.png", "denoising.gif", "loss.png"}
    board = {name for name in made if name.startswith("board/events.")}
    assert board and made - board == pictures | {"model.keras", "settings.json", "log.csv"}
    settings = json.loads((run / "settings.json").read_text())
    assert settings["epochs_done"] == 2 and settings["class_names"] == ["cats", "dogs"]
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["000000004-00002"]
    before = keras.saving.load_model(run / "model.keras")
    assert before.optimizer.global_clipnorm == 1.0  # and a warm-up: the second epoch's last batch has 4/100 of the rate
    assert float(before.optimizer.learning_rate) == pytest.approx(1.5e-3 * 0.04 * 0.5 * (1 + np.cos(0.75 * np.pi)))

    (run / "model.keras").unlink()
    go_on = ["train", "--out", "run", "--resume", "--epochs", "3", "--keep", "1", "--classes", "--size", "8"]
    assert cli.main([*go_on, "--batch-size", "7", "--seed", "1"]) == 2
    assert "run has --batch-size 4, --seed 0: leave it out" in capsys.readouterr().err
    assert cli.main(go_on) == 0
    assert json.loads((run / "settings.json").read_text())["keep"] == 1
    after = keras.saving.load_model(run / "model.keras")
    assert int(before.optimizer.iterations) == 4 and int(after.optimizer.iterations) == 6
    assert len(json.loads((run / "settings.json").read_text())["losses"]["loss"]) == 3
    assert len((run / "log.csv").read_text().splitlines()) == 4

    options = ["--count", "3", "--steps", "2", "--class", "dogs", "--guidance", "2", "--each", "single"]
    assert cli.main(["sample", "run", *options, "--out", "grid.png", "--gif", "noise.gif"]) == 0
    assert sorted(p.name for p in (tmp_path / "single").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    with Image.open("single/0000.png") as one, Image.open("grid.png") as grid, Image.open("noise.gif") as gif:
        assert one.size == (8, 8) and grid.width > 3 * 64 and gif.n_frames == 2


@pytest.mark.once
def test_the_same_seed_samples_the_same_pictures(photos, tmp_path):
    train("--epochs", "1")
    for out in ("a", "b"):
        cli.main(["sample", "run", "--count", "2", "--steps", "3", "--each", out, "--out", "g.png"])
    cli.main(["sample", "run", "--count", "2", "--steps", "3", "--each", "c", "--out", "g.png", "--seed", "1"])
    a, b, c = (pixels(f"{name}/0000.png") for name in "abc")
    assert (a == b).all() and (a != c).any()


@pytest.mark.once
def test_ctrl_c_ends_training_and_leaves_a_usable_run(photos, tmp_path, capsys):
    class Press(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    made, before = train_command.SampleGrid, signal.getsignal(signal.SIGINT)

    def press_too(*args, **options):
        return keras.callbacks.CallbackList([made(*args, **options), Press()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "SampleGrid", press_too)
        assert train("--epochs", "50") == 0
    assert signal.getsignal(signal.SIGINT) is before
    done = json.loads((tmp_path / "run" / "settings.json").read_text())["epochs_done"]
    assert 2 <= done < 50
    assert cli.main(["sample", "run", "--count", "1", "--steps", "2"]) == 0


def test_minutes_end_training_and_must_be_given_again(photos, tmp_path, capsys):
    assert train("--minutes", "0.02") == 0
    assert (tmp_path / "run" / "model.keras").exists()
    assert cli.main(["train", "--out", "run", "--resume"]) == 2
    assert "--minutes" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_one_that_explodes_says_so(photos, tmp_path, capsys):
    killed_after(0, "--epochs", "1")
    run = tmp_path / "run"
    assert sorted(p.name for p in run.iterdir()) == ["settings.json"]
    assert cli.main(["train", "--out", "run", "--resume", "--learning-rate", "1e36", "--epochs", "9"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("unet-keras: The loss is") and "There is no checkpoint yet" in error
    assert json.loads((run / "settings.json").read_text())["learning_rate"] == 1e36


@pytest.mark.once
def test_a_streamed_run_killed_in_an_epoch_and_resumed_ends_as_one_on_the_folder_in_memory(photos, tmp_path):
    rng = np.random.default_rng(1)
    for i in range(4, 20):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype="uint8")).save(tmp_path / f"photos/cats/{i}.png")
    options = ["--classes", "--epochs", "2", "--save-every", "1e-9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "image_folder", None)
        killed_after(9, *options, "--stream")  # of 2 x 6 batches
        kept = max((tmp_path / "run" / "checkpoints").iterdir())
        assert json.loads((kept / "settings.json").read_text())["position"]["batch"] == 2
        assert cli.main(["train", "--out", "run", "--resume"]) == 0
    assert train(*options, "--out", "whole") == 0
    (ours, told), (theirs, expected) = (
        (keras.saving.load_model(path / "model.keras"), json.loads((path / "settings.json").read_text()))
        for path in (tmp_path / "run", tmp_path / "whole")
    )
    assert int(ours.optimizer.iterations) == 12
    assert told["losses"]["val_loss"] == expected["losses"]["val_loss"] and len(told["losses"]["val_loss"]) == 2
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "--stream", "--out", "run"], "--data"),
        (["train", "--data", "nowhere", "--out", "run"], "nowhere"),
        (["train", "--size", "48", "--out", "run"], "32 x 32"),
        (["train", "--epochs", "0", "--out", "run"], "--epochs"),
        (["train", "--learning-rate", "-1", "--out", "run"], "--learning-rate"),
        (["train", "--resume", "--out", "run"], "holds no run"),
        (["sample", "nowhere"], "nowhere"),
        (["sample", "nowhere", "--count", "0"], "--count"),
        (["presets", "--batch", "64"], "--batch is of one network"),
        (["export", "nowhere", "photos"], "photos is there already and not empty"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, said, photos, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_run_is_not_overwritten_and_unknown_classes_are_named(photos, capsys):
    train("--epochs", "1")
    assert train("--epochs", "1") == 2 and "--resume" in capsys.readouterr().err
    assert cli.main(["sample", "run", "--class", "cats"]) == 2 and "without classes" in capsys.readouterr().err
    assert cli.main(["sample", "run", "--steps", "1001"]) == 2 and "steps" in capsys.readouterr().err
    assert cli.main(["sample", "run", "--guidance", "2"]) == 2 and "guidance" in capsys.readouterr().err


def test_help_teaches(capsys):
    for command in (["--help"], ["train", "--help"], ["sample", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(command)
    text = capsys.readouterr().out
    assert "examples:" in text and "--guidance" in text and "Ctrl-C" in text


def test_samplers_are_named_as_in_python():
    assert {name.replace("-", "_"): name for name in sample.SAMPLERS} == {
        sampler.__name__: name for name, sampler in sample.SAMPLERS.items()
    }
    assert all(getattr(unet_keras, sampler.__name__) is sampler for sampler in sample.SAMPLERS.values())


@pytest.fixture
def captioned(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(train_command.NETWORKS, "text", partial(build_unet, levels=(8,)))
    pairs = [(name, i) for name in ("cats", "dogs") for i in range(4)]
    rows = [{"file_name": f"{n}/{i}.png", "text": f"{('blue', 'red')[i % 2]} {n}"} for n, i in pairs]
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "photos"


@pytest.mark.once
def test_a_run_that_reads_captions_is_sampled_by_prompts_exported_and_resumed(captioned, tmp_path, capsys):
    assert train("--epochs", "1", "--text", "--classes") == 0
    assert cli.main(["sample", "run", "red cats", "blue dogs", "--count", "2", "--steps", "2", "--negative", "red",
                     "--attention", "words.png", "--each", "single"]) == 0  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "single").iterdir()) == [f"000{i}.png" for i in range(4)]
    assert all((tmp_path / name).exists() for name in ("run/samples.png", "words_0.png", "words_1.png"))
    assert cli.main(["train", "--out", "run", "--resume", "--epochs", "2"]) == 0
    assert cli.main(["export", "run", "preset"]) == 0
    asked = ["sample", "--preset", "preset", "red cats", "--count", "1", "--steps", "2", "--class", "dogs"]
    assert cli.main([*asked, "--out", "p.png"]) == 0 and (tmp_path / "p.png").exists()
    assert cli.main(["sample", "run", "--count", "2", "--steps", "2"]) == 0
    capsys.readouterr()
    assert cli.main(["sample", "run", "--attention", "w.png", "--count", "1", "--steps", "1", "--out", "w2.png"]) == 2
    assert "--attention needs prompts" in capsys.readouterr().err
    for option in ("--out", "--gif", "--attention"):
        for name in ("folder/picture", "picture.psd"):  # which Pillow reads alone
            assert cli.main(["sample", "run", option, name]) == 2
            assert f"{option} must end as a picture's name does" in capsys.readouterr().err
    assert (
        cli.main(["sample", "run", "--each", "run/settings.json"]) == 2 and "--each must be" in capsys.readouterr().err
    )
    assert not (tmp_path / "w2.png").exists()  # refused before anything was sampled


@pytest.mark.once
def test_what_prompts_are_sampled_with(captioned, monkeypatch):
    assert train("--epochs", "1", "--text") == 0
    asked = []
    monkeypatch.setattr(unet_keras.DiffusionModel, "generate", lambda self, conditions, **options: asked.append(
        (conditions["prompt"], options["guidance"], options.get("negative"), options["steps"], options["seed"])
    ) or np.zeros((2, 8, 8, 3), "uint8"))  # fmt: skip
    for more in ([], ["--guidance", "2", "--negative", "blue", "--steps", "7", "--seed", "3"]):
        assert cli.main(["sample", "run", "red cats", "--count", "2", *more]) == 0
    assert asked == [(["red cats"] * 2, 3.0, None, 50, 0), (["red cats"] * 2, 2.0, ["blue"], 7, 3)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "--text", "--network", "patch"], "reads no text"),
        (["train", "--network", "text"], "needs captions"),
        (["train", "--data", "photos", "--text", "--out", "run"], "metadata"),
        (["sample"], "There is no model"),
        (["sample", "--preset", "emoji-64", "a"], "emoji-32"),
        (["export", "nowhere", "preset"], "nowhere"),
    ],
)
def test_bad_input_about_text_is_told_in_one_line(arguments, said, photos, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


@pytest.mark.once
def test_a_run_is_trained_further_from_its_averaged_weights(captioned, tmp_path):
    assert train("--epochs", "1", "--text", "--classes") == 0
    further = ["train", "--data", "photos", "--size", "8", "--start", "run", "--learning-rate", "1e-9", "--epochs", "1"]
    assert cli.main([*further, "--text", "--seed", "3", "--remat", "--optimizer", "muon", "--out", "further"]) == 0
    first, then = (keras.saving.load_model(tmp_path / name / "model.keras") for name in ("run", "further"))
    for a, b, c in zip(first.averaged.weights, then.averaged.weights, then.network.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)
        np.testing.assert_allclose(a, c, atol=1e-6, err_msg=a.path)
    assert then.seed == 3 and then.remat and int(then.optimizer.iterations) == 1
    assert type(first.optimizer) is AdamW and type(then.optimizer) is Muon
    assert first.drop == then.drop == from_preset("emoji-32").drop  # which was trained so
    settings = json.loads((tmp_path / "further" / "settings.json").read_text())
    batch = material.training_data(settings, then)["x"][0][1]  # classes were not asked for: all are of any
    assert set(batch) == {"tokens", "label"} and (np.asarray(batch["label"]) == 2).all()
    assert cli.main(["train", "--out", "further", "--resume", "--epochs", "2"]) == 0
    assert cli.main([*further, "--text", "--classes", "--out", "both"]) == 0
    assert cli.main(["sample", "both", "red cats", "--class", "dogs", "--count", "1", "--steps", "1"]) == 0


@pytest.mark.once
def test_a_model_is_trained_further_at_its_own_size_with_its_classes_kept(photos, tmp_path, capsys):
    (tmp_path / "photos" / "cats" / "0.png").unlink()
    train("--epochs", "1", "--classes")
    further = ["train", "--data", "photos", "--start", "run", "--epochs", "1"]
    assert cli.main([*further, "--out", "further"]) == 0
    settings = json.loads((tmp_path / "further" / "settings.json").read_text())
    assert settings["size"] == 8 and settings["class_names"] == ["cats", "dogs"] and not settings["classes"]
    assert cli.main(["sample", "further", "--class", "dogs", "--count", "1", "--steps", "1"]) == 0
    assert cli.main(["train", "--out", "further", "--resume", "--epochs", "2"]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--out", "further", "--resume", "--epochs", "2"]) == 2
    assert "--epochs 2: further has 2 already" in capsys.readouterr().err
    assert cli.main([*further, "--size", "16", "--out", "other"]) == 2
    assert "--size 16: run is of 8 x 8 pixels" in capsys.readouterr().err
    model = unet_keras.DiffusionModel(build_unet((8, 12, 3), (4,)), unet_keras.cosine(10), ema=None)
    model.save(tmp_path / "short.keras")  # a schedule shorter than the pictures' usual steps
    assert cli.main([*further[:3], "--start", "short.keras", "--epochs", "1", "--out", "short"]) == 0
    assert pixels(tmp_path / "short" / "samples.png").shape[1] > pixels(tmp_path / "short" / "samples.png").shape[0]


@pytest.mark.once
@pytest.mark.parametrize("name", list(train_command.NETWORKS))
def test_every_network_of_the_command_line_can_be_built(name, monkeypatch):
    built = []
    monkeypatch.setattr(
        train_command, "DiffusionModel", lambda network, *_, **options: built.append((network, options))
    )
    monkeypatch.setattr(train_command, "_compile", lambda model, settings: None)
    settings = {"network": name, "size": 32, "seed": 0, "dtype": "float32", "schedule": "cosine", "remat": False}
    settings |= {"prediction": "velocity"}
    encoder = unet_keras.TokenEncoder(["red"]) if name == "text" else None
    for classes in (["a", "b"], None):
        with shapes_only():
            train_command._new_model(settings, classes, encoder)
        network, options = built.pop()
        assert ("label" in network.input) == bool(classes) == bool(options["null"])
    if name == "ddpm-cifar10":  # its own embedding of the timestep, as diffusers has it
        assert network.count_params() == 35_746_307
        assert not network.get_layer("timestep_embedding").get_config()["cosine_first"]


@pytest.mark.once
def test_timesteps_are_drawn_as_asked(photos, tmp_path):
    asked = ["--epochs", "1", "--logit-normal", "1", "0.5"]
    assert train(*asked) == 0
    made = keras.saving.load_model(tmp_path / "run" / "model.keras")
    np.testing.assert_array_equal(made.density, logit_normal(made.schedule, 1.0, 0.5))
    further = ["train", "--data", "photos", "--size", "8", "--start", "run", "--epochs", "1", "--out"]
    assert cli.main([*further, "same"]) == 0
    assert cli.main([*further, "other", "--logit-normal", "-1", "2"]) == 0
    same, other = (keras.saving.load_model(tmp_path / name / "model.keras").density for name in ("same", "other"))
    np.testing.assert_array_equal(same, made.density)
    np.testing.assert_array_equal(other, logit_normal(made.schedule, -1.0, 2.0))


def test_a_run_from_a_model_that_was_killed_before_its_first_checkpoint_begins_there_again(photos, tmp_path):
    train("--epochs", "1")
    killed_after(0, "--start", "run", "--out", "further", "--learning-rate", "1e-9", "--epochs", "1")
    assert not (tmp_path / "further" / "checkpoints").exists()
    assert cli.main(["train", "--out", "further", "--resume"]) == 0
    first, then = (keras.saving.load_model(tmp_path / name / "model.keras") for name in ("run", "further"))
    for a, b in zip(first.averaged.weights, then.averaged.weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=a.path)


@pytest.mark.once
def test_a_model_is_trained_further_in_another_precision(photos, tmp_path):
    train("--epochs", "1")
    further = ["train", "--data", "photos", "--size", "8", "--start", "run", "--out", "half"]
    assert cli.main([*further, "--dtype", "mixed_bfloat16", "--learning-rate", "1e-9", "--epochs", "1"]) == 0
    assert cli.main(["train", "--out", "half", "--resume", "--epochs", "2"]) == 0
    assert cli.main(["export", "half", "preset", "--dtype", "float32", "--policy", "float32"]) == 0
    run, half, preset = (unet_keras.from_preset(tmp_path / name) for name in ("run", "half", "preset"))
    computed = [model.averaged.get_layer("down0_block0_conv1").compute_dtype for model in (run, half, preset)]
    assert computed == ["float32", "bfloat16", "float32"] and half.network.get_layer("head").compute_dtype == "float32"
    for model in (half, preset):
        for found, expected in zip(model.averaged.get_weights(), run.averaged.get_weights(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.once
def test_classes_keep_their_names_wherever_a_model_lies(photos, tmp_path, capsys):
    train("--epochs", "1", "--classes")
    for words in (["convert", "run", "preset", "--to", "preset"], ["export", "run/model.keras", "exported"]):
        assert cli.main(words) == 0
    one = ["--count", "1", "--steps", "1", "--class"]
    for model in (["run/model.keras"], ["--preset", "run"], ["preset"], ["--preset", "preset"], ["exported"]):
        assert cli.main(["sample", *model, *one, "dogs"]) == 0
        assert cli.main(["sample", *model, *one, "hats"]) == 2 and "cats, dogs" in capsys.readouterr().err
    (tmp_path / "alone").mkdir()
    (tmp_path / "run" / "model.keras").rename(tmp_path / "alone" / "model.keras")
    assert cli.main(["sample", "alone/model.keras", *one, "1"]) == 0
    assert cli.main(["sample", "alone/model.keras", *one, "dogs"]) == 2 and "give a number" in capsys.readouterr().err
    assert cli.main(["sample", "photos", "--count", "1"]) == 2 and "photos holds no model" in capsys.readouterr().err


def test_a_network_of_open_size_is_told_the_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    unet_keras.DiffusionModel(build_unet((None, None, 3), (4,)), ema=None).save("open.keras")
    words = ["sample", "open.keras", "--count", "2", "--steps", "1"]
    assert cli.main(words) == 2 and "size=(height, width)" in capsys.readouterr().err
    assert cli.main([*words, "--size", "8", "12", "--each", "each"]) == 0
    assert pixels(tmp_path / "each" / "0001.png").shape == (8, 12, 3)


def test_an_epoch_of_emoji_with_classes_shows_rare_ones_more_often():
    settings = {"data": "emoji", "size": 32, "classes": True, "text": False, "batch_size": 64, "seed": 0}
    data, table = material.training_data(settings), emoji_table()
    batches = [data["x"][i] for i in range(len(data["x"]))]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([conditions["label"] for _, conditions in batches])
    for name, times in (("flags", 22), ("activities", 3), ("objects", 2), ("people & body", 1)):
        shown = images[labels == data["class_names"].index(name)]
        own = table.images[(table.splits == "train") & (table.groups == name)]
        assert sorted(image.tobytes() for image in shown) == sorted(
            image.tobytes() for image in own for _ in range(times)
        )


@pytest.mark.once
def test_what_a_model_to_train_further_does_not_take_is_refused(captioned, tmp_path, capsys):
    train("--epochs", "1")
    cli.main(["train", "--data", "photos", "--size", "8", "--classes", "--epochs", "1", "--out", "classes"])
    (tmp_path / "photos" / "cats").rename(tmp_path / "photos" / "hats")
    (tmp_path / "photos" / "metadata.jsonl").unlink()
    capsys.readouterr()
    for start, more, said in (
        ("run", ["--network", "slides", "--schedule", "linear"], "--network, --schedule"),
        ("run", ["--text"], "reads no captions"),
        ("run", ["--classes"], "knows no classes"),
        ("classes", ["--classes"], "the model knows cats, dogs; the data has ['dogs', 'hats']"),
        ("nowhere", [], "nowhere"),
    ):
        words = ["train", "--data", "photos", "--size", "8", "--epochs", "1", "--start", start, "--out", "new", *more]
        assert cli.main(words) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
        assert not (tmp_path / "new").exists()


def test_prompts_for_a_model_that_reads_none_are_refused(photos, capsys):
    train("--epochs", "1")
    assert cli.main(["sample", "run", "a red apple"]) == 2 and "reads none" in capsys.readouterr().err
