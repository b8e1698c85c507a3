"""``unet-keras convert`` and ``unet-keras presets``."""

import json

import numpy as np
import pytest
from helpers import tiny_text_unet
from safetensors.numpy import load_file

from unet_keras import DiffusionModel, cli, cosine, from_preset, preset_names
from unet_keras.cli import presets as command
from unet_keras.zoo.diffusers.folder import to_diffusers
from unet_keras.zoo.diffusers.network import unet_of

pytestmark = pytest.mark.once
CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 2,
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_diffusers(DiffusionModel(unet_of(CONFIG), cosine(), ema=None), tmp_path / "theirs")
    return "theirs"


def test_there_and_back_is_the_same_to_the_bit(folder, tmp_path, capsys):
    assert cli.main(["convert", folder, "mine", "--to", "preset"]) == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["config.json", "weights.npz"]
    assert cli.main(["convert", "mine", "back"]) == 0
    assert capsys.readouterr().out.split() == ["mine", "back"]
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in (folder, "back"))
    assert before.keys() == after.keys()
    assert all(a.dtype == np.float32 and np.array_equal(a, before[name]) for name, a in after.items())
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((tmp_path / folder / name).read_text())


def test_the_average_is_what_is_written(folder, tmp_path):
    model = from_preset(folder, ema=0.9)
    model.averaged.set_weights([w + 1 for w in model.averaged.get_weights()])
    model.save(tmp_path / "run.keras")
    assert cli.main(["convert", "run.keras", "averaged"]) == 0
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in (folder, "averaged"))
    assert all(np.array_equal(after[name], before[name] + np.float32(1)) for name in before)


def test_half_precision_and_variants(folder, tmp_path):
    assert cli.main(["convert", folder, "half", "--dtype", "float16"]) == 0
    assert {a.dtype for a in load_file(tmp_path / "half" / WEIGHTS).values()} == {np.dtype("float16")}
    (tmp_path / "half" / WEIGHTS).rename(tmp_path / folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert cli.main(["convert", folder, "plain"]) == cli.main(["convert", folder, "of16", "--variant", "fp16"]) == 0
    before, plain, half = (load_file(tmp_path / name / WEIGHTS) for name in (folder, "plain", "of16"))
    assert all(np.array_equal(plain[name], before[name]) for name in before)
    assert all(np.array_equal(half[name], before[name].astype("float16").astype("float32")) for name in before)


def test_weights_that_half_precision_cannot_hold_are_refused(folder, tmp_path, capsys):
    model = from_preset(folder)
    model.network.get_layer("stem").bias.assign([1e6] * 4)
    to_diffusers(model, tmp_path / "large")
    assert cli.main(["convert", "large", "half", "--dtype", "float16"]) == 2
    assert "cannot hold the weights stem/bias: use float32" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "new"], "no preset 'nowhere'"),
        (["theirs", "theirs"], "theirs is there already and not empty"),
        (["theirs", "file"], "file is there already"),
        (["theirs", "new", "--variant", "fp16"], "diffusion_pytorch_model.fp16.safetensors"),
        (["emoji-32", "new"], "cannot be said as a network of diffusers"),
        (["emoji-32", "new", "--to", "preset", "--variant", "fp16"], "takes no ['variant']"),
        (["empty", "new"], "holds no model: neither"),
    ],
)
def test_bad_input_to_convert_is_told_in_one_line(arguments, said, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert cli.main(["convert", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not (tmp_path / "new").exists()


# ---- presets --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_network(capsys, monkeypatch):
    few = {name: command.PUBLISHED[name] for name in ("ddpm-cifar10", "stable-diffusion-inpainting", "adm-imagenet64")}
    monkeypatch.setattr(command, "PUBLISHED", few)
    assert cli.main(["presets"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:-3]}
    assert list(rows) == [*preset_names(), *few]
    assert "35,746,307" in rows["ddpm-cifar10"] and "136 MiB" in rows["ddpm-cifar10"]
    assert "32 x 32 x 3" in rows["ddpm-cifar10"] and "timestep" in rows["ddpm-cifar10"]
    assert "64 x 64 x 4 " in rows["stable-diffusion-inpainting"]
    assert rows["stable-diffusion-inpainting"].endswith("beside (64 x 64 x 5), context (any x 768), timestep")
    assert "none *" in rows["adm-imagenet64"] and "label" in rows["adm-imagenet64"]


def test_what_a_network_costs(capsys):
    assert cli.main(["presets", "ddpm-cifar10", "--batch", "16", "--dtype", "mixed_bfloat16"]) == 0
    told = capsys.readouterr().out
    for said in ("batch 16, mixed_bfloat16", "35,746,307", "GFLOP", "AdamW's state", "136 MiB", "memory of sampling"):
        assert said in told
    assert cli.main(["presets", "ddpm-cifar10", "--batch", "16", "--size", "64"]) == 0
    assert "64 x 64 x 3" in capsys.readouterr().out


def test_folders_runs_and_files_are_read_without_their_weights(folder, tmp_path, capsys):
    (tmp_path / folder / WEIGHTS).unlink()
    model = DiffusionModel(tiny_text_unet(), ema=None)
    model.save(tmp_path / "model.keras")
    for name, network in ((folder, unet_of(CONFIG)), ("model.keras", model.network), (".", model.network)):
        assert cli.main(["presets", name]) == 0
        assert f"{network.count_params():,}" in capsys.readouterr().out
    assert cli.main(["presets", "emoji-32"]) == 0 and "tokens (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no preset 'nothing'"),
        (["ddpm-cifar10", "--batch", "0"], "batch must be"),
        (["ddpm-cifar10", "--size", "33"], "size=33"),
        (["emoji-32", "--dtype", "bfloat16"], "takes no dtype"),
        (["empty"], "empty holds no model"),
        (["file"], "no .keras file"),
    ],
)
def test_bad_input_to_presets_is_told_in_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert cli.main(["presets", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
