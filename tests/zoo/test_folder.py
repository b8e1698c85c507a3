"""Folders as diffusers writes them: read whole or refused with the reason, trained on, written back."""

import inspect
import json
import shutil

import diffusers
import keras
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UNet2DModel,
)
from safetensors.numpy import load_file, save_file

from unet_keras import (
    DiffusionModel,
    Level,
    Values,
    build_unet,
    clean,
    clipped,
    cosine,
    ddpm_learned,
    dynamic,
    flow,
    flow_velocity,
    from_preset,
    latents,
    leading,
    linear,
    noise,
    pixels,
    to_diffusers,
    unclipped,
    velocity,
)
from unet_keras.diffusion.schedules import zero_terminal_snr
from unet_keras.nn.conditions import timestep
from unet_keras.zoo.diffusers.network import unet_of
from unet_keras.zoo.diffusers.scheduler import CLIPPING, FIELDS, VARIANCE_PRESERVING, read_schedule, read_threshold

from .helpers import TINY, assert_same, given, made_of, their_output

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = TINY["tiny DDPM"] | {"sample_size": 8}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A pipeline's folder: a small U-Net, a scheduler and the index."""
    folder = tmp_path_factory.mktemp("pipeline")
    made_of(CONFIG).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(
        folder / "scheduler"
    )
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(written, tmp_path / "copy")


def edit(path, **fields):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | fields))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_pipeline_brings_its_schedule_prediction_and_clipping(written):
    model = from_preset(written)
    np.testing.assert_allclose(model.schedule.alpha, cosine(1000).alpha, atol=1e-7)
    assert model.prediction == velocity and model.values == pixels and model.ema_network is None
    theirs = UNet2DModel.from_pretrained(written / "unet").eval()
    assert_same(theirs, model.network, given(theirs, (8, 8)))
    assert model.generate(2, steps=2, seed=0).shape == (2, 8, 8, 3)


def test_a_bare_network_finds_the_scheduler_beside_it(written, folder):
    assert from_preset(written / "unet").prediction == velocity
    shutil.rmtree(folder / "scheduler")
    with pytest.warns(UserWarning, match="has no scheduler_config.json: the linear schedule and noise prediction"):
        assert from_preset(folder / "unet").prediction == noise
    shutil.move(folder / "unet" / "config.json", folder / "config.json")
    shutil.move(folder / "unet" / WEIGHTS, folder / WEIGHTS)
    shutil.rmtree(folder / "unet")
    DDIMScheduler(clip_sample=False).save_pretrained(folder)  # all in one folder, as google/ddpm-cifar10-32 has it
    assert from_preset(folder).values.threshold is unclipped and from_preset(folder).values.bounded


def test_options_are_those_of_the_model(written):
    model = from_preset(written, ema=0.9, prediction=clean, seed=3)
    assert model.ema == 0.9 and model.prediction == clean and model.seed == 3
    with pytest.raises(ValueError, match="emma"):
        from_preset(written, emma=0.9)


def test_without_weights_no_file_of_weights_is_needed(folder):
    (folder / "unet" / WEIGHTS).unlink()
    assert from_preset(folder, weights=False).network.count_params() == 16_303


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "float16"])
def test_the_network_has_the_dtype_asked_for(written, dtype):
    before = keras.config.dtype_policy()
    model = from_preset(written, dtype=dtype)
    assert keras.config.dtype_policy() == before
    stem = model.network.get_layer("stem")
    assert stem.dtype_policy.name == dtype and stem.kernel.dtype == stem.dtype_policy.variable_dtype
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    inputs = {"image": image, "timestep": np.array([1, 999], "float32")}
    plain, half = (keras.ops.convert_to_numpy(m.network(inputs)) for m in (from_preset(written), model))
    assert half.dtype == "float32" and np.abs(half - plain).max() < 0.2 * plain.std()


def test_another_size_of_image(written):
    model = from_preset(written, size=(16, 12))
    assert model.network.input["image"].shape == (None, 16, 12, 3)
    theirs = UNet2DModel.from_pretrained(written / "unet").eval()
    assert_same(theirs, model.network, given(theirs, (16, 12)))


@pytest.mark.parametrize("kind", ["fp16", "sharded", "sharded fp16", "bfloat16"])
def test_weights_in_other_files(folder, kind):
    theirs = UNet2DModel.from_pretrained(folder / "unet").eval()
    inputs, path = given(theirs, (8, 8)), folder / "unet" / WEIGHTS
    expected = their_output(theirs, inputs)
    path.unlink()
    if kind == "bfloat16":
        theirs.to(torch.bfloat16).save_pretrained(folder / "unet")
    else:
        theirs = theirs.half() if "fp16" in kind else theirs
        options = {"variant": "fp16"} if "fp16" in kind else {}
        theirs.save_pretrained(folder / "unet", max_shard_size="20KB" if "sharded" in kind else "1GB", **options)
    names = sorted(p.name for p in (folder / "unet").iterdir())
    assert WEIGHTS not in names or kind == "bfloat16"
    assert any("-of-" in name for name in names) == ("sharded" in kind)
    model = from_preset(folder)
    y = keras.ops.convert_to_numpy(
        model.network({"image": inputs["sample"].transpose(0, 2, 3, 1), "timestep": np.array([1, 999], "float32")})
    )
    error = {"sharded": 1e-4, "bfloat16": 0.1}.get(kind, 0.01)
    np.testing.assert_allclose(y, expected, atol=error * expected.std())
    if "fp16" in kind:
        assert from_preset(folder, variant="fp16").network.count_params() == 16_303


def test_the_plain_file_is_read_before_a_variant(folder):
    arrays = load_file(folder / "unet" / WEIGHTS)
    wrong = {name: (0 * array).astype("float16") for name, array in arrays.items()}
    save_file(wrong, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    save_file(wrong, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    bias = from_preset(folder).network.get_layer("stem").bias
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(bias), arrays["conv_in.bias"])
    assert not keras.ops.convert_to_numpy(from_preset(folder, variant="fp16").network.get_layer("stem").bias).any()
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="several variants of diffusion_pytorch_model: give one of fp16, non_ema"):
        from_preset(folder)


def test_a_field_that_is_null_is_false(folder):
    edit(folder / "unet" / "config.json", center_input_sample=None, act_fn="swish")
    assert from_preset(folder).network.count_params() == 16_303


def test_old_names_of_attention(folder):
    theirs, path = UNet2DModel.from_pretrained(folder / "unet").eval(), folder / "unet" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name):
        for new, older in old.items():
            name = name.replace(f".{new}.", f".{older}.")
        return name

    arrays = load_file(path)
    save_file({renamed(name): array for name, array in arrays.items()}, path)
    assert any("proj_attn" in name for name in load_file(path))
    assert_same(theirs, from_preset(folder).network, given(theirs, (8, 8)))


def test_convolutions_where_linear_maps_are_expected(tmp_path):
    config = TINY["tiny Stable Diffusion"] | {"use_linear_projection": True, "attention_head_dim": 2}
    theirs = made_of(config)
    theirs.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / WEIGHTS)
    wide = {
        n: a[:, :, None, None] if n.endswith(("proj_in.weight", "proj_out.weight")) else a for n, a in arrays.items()
    }
    assert wide.keys() == arrays.keys() and any(a.ndim == 4 and n.endswith("proj_in.weight") for n, a in wide.items())
    save_file(wide, tmp_path / WEIGHTS)
    with pytest.warns(UserWarning, match="has no scheduler_config.json"):
        model = from_preset(tmp_path)
    assert model.values == latents
    assert_same(theirs, model.network, given(theirs, (16, 16)))


def test_handles_are_fetched_and_read(monkeypatch, written):
    import huggingface_hub

    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(written)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert from_preset("hf://google/ddpm-cifar10-32").prediction == velocity
    assert from_preset("hf://google/ddpm-cifar10-32", weights=False).prediction == velocity
    (name, files), (_, fewer) = asked
    assert name == "google/ddpm-cifar10-32" and f"unet/{WEIGHTS}" in files and "model_index.json" in files
    assert not any("safetensors" in pattern for pattern in fewer)
    assert not any(pattern.endswith((".bin", "*")) for pattern in files)
    assert from_preset("ddpm-cifar10").prediction == velocity and asked[-1][0] == "google/ddpm-cifar10-32"


def test_handles_that_cannot_be_fetched_are_named(monkeypatch):
    import huggingface_hub

    with pytest.raises(ValueError, match="^hf://a/b/c was not fetched"):
        from_preset("hf://a/b/c")

    def offline(name, allow_patterns):
        raise RuntimeError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="^hf://a/b was not fetched from the Hugging Face hub: no connection$"):
        from_preset("hf://a/b")


# ---- schedulers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (DDPMScheduler(), noise),
        (DDPMScheduler(500, beta_schedule="sigmoid"), noise),
        (PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), noise),
        (DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"), clean),
        (DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"), velocity),
        (EulerDiscreteScheduler(trained_betas=np.linspace(1e-4, 0.03, 100).tolist(), num_train_timesteps=100), noise),
    ],
)
def test_schedules_are_those_of_diffusers(scheduler, prediction):
    schedule, predicts = read_schedule(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    np.testing.assert_allclose(schedule.alpha**2, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
    assert predicts == prediction


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_those_of_the_classes_that_have_them(field):
    kinds = {kind: inspect.signature(getattr(diffusers, f"{kind}Scheduler")).parameters for kind in VARIANCE_PRESERVING}
    assert set(FIELDS[field]) == {kind for kind, taken in kinds.items() if field in taken}
    if field == "clip_sample":
        assert set(CLIPPING) == {kind for kind, taken in kinds.items() if field in taken and taken[field].default}


@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler, DDPMScheduler, TCDScheduler])
def test_a_scheduler_made_of_another_keeps_fields_that_mean_nothing_to_it(kind, tmp_path):
    other = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=True)
    made = kind.from_config(other.config)
    made.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert config["rescale_betas_zero_snr"] and config["clip_sample"]
    schedule, predicts = read_schedule(config)
    np.testing.assert_allclose(schedule.alpha**2, made.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
    assert predicts == velocity
    assert (read_threshold(config) is clipped) == (kind is not PNDMScheduler)
    assert read_threshold({"_class_name": "TCDScheduler"}) is unclipped


@pytest.mark.once
@pytest.mark.parametrize("values", [latents, pixels, Values(True, unclipped), Values(False, clipped)])
def test_values_come_back(values, written, tmp_path):
    to_diffusers(DiffusionModel(from_preset(written).network, values=values, ema=None), tmp_path)
    assert from_preset(tmp_path).values == values == from_preset(tmp_path / "unet").values
    DDIMScheduler.from_pretrained(tmp_path / "scheduler")  # which passes over our field
    with pytest.raises(ValueError, match="the threshold must be clipped or unclipped"):
        to_diffusers(DiffusionModel(from_preset(written).network, values=Values(True, dynamic(0.9))), tmp_path)


def test_a_network_of_a_pipeline_is_told_by_its_index(written, tmp_path):
    shutil.copytree(written, tmp_path / "pipe")
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps({"vqvae": ["diffusers", "VQModel"]}))
    assert not any(from_preset(path).values.bounded for path in (tmp_path / "pipe", tmp_path / "pipe" / "unet"))


def test_a_schedule_of_one_timestep_comes_back(written, tmp_path):
    to_diffusers(DiffusionModel(from_preset(written).network, linear(1, 0.5, 0.5), ema=None), tmp_path)
    np.testing.assert_allclose(from_preset(tmp_path).schedule.alpha, linear(1, 0.5, 0.5).alpha)
    with pytest.raises(ValueError, match="two timesteps or more"):
        zero_terminal_snr(linear(1, 0.5, 0.5))


@pytest.mark.parametrize("size", [(8,), "x", True, 0])
def test_a_size_that_is_none_is_refused(written, size):
    with pytest.raises(ValueError, match="size must be a number or"):
        from_preset(written, size=size)


@pytest.mark.parametrize("schedule", [cosine(100), unclipped], ids=["cosine", "betas"])
def test_schedules_come_back(schedule, written, tmp_path):
    model = from_preset(written)
    if schedule is unclipped:  # a schedule without a name
        schedule = type(model.schedule)(*(t[::3] for t in (cosine().alpha, cosine().sigma)))
    to_diffusers(DiffusionModel(model.network, schedule, clean, ema=None), tmp_path)
    back = from_preset(tmp_path)
    np.testing.assert_allclose(back.schedule.alpha, schedule.alpha, atol=1e-9)
    assert back.prediction == clean and back.values == pixels


# ---- learned variance -----------------------------------------------------------------------------------------------


@pytest.fixture
def learned(tmp_path):
    """A pipeline's folder, of a U-Net whose v lies about where a trained one's does: it stands in an exponent."""
    unet = made_of(CONFIG | {"out_channels": 6})
    with torch.no_grad():
        unet.conv_out.weight /= 4
    unet.save_pretrained(tmp_path / "unet")
    scheduler = DDPMScheduler(variance_type="learned_range", prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path / "scheduler")
    return tmp_path


def their_states(monkeypatch, folder, given):
    """Sample in diffusers with a folder's network and scheduler, and the noise ``given``; channels last."""
    unet, scheduler = (kind.from_pretrained(folder / name) for kind, name in PARTS)
    noise = iter(torch.tensor(np.concatenate([given[:-1], 0 * given[-1:]]).transpose(0, 1, 4, 2, 3)))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **options: next(noise))
    scheduler.set_timesteps(len(given) - 1)
    x, states = next(noise), []
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet.eval()(x, t).sample, t, x).prev_sample
            states.append(x.numpy().transpose(0, 2, 3, 1))
    return states


PARTS = (UNet2DModel, "unet"), (DDPMScheduler, "scheduler")


def test_a_learned_variance_samples_as_in_diffusers_and_is_written_back(monkeypatch, learned, tmp_path):
    model = from_preset(learned)
    assert model.prediction == velocity and model.network.output_shape == (None, 8, 8, 6)
    given = np.random.default_rng(0).standard_normal((6, 2, 8, 8, 3)).astype("float32")
    options = {"noise": given, "steps": 5, "sampler": ddpm_learned}
    found = [keras.ops.convert_to_numpy(f.x) for f in model.denoising(2, spacing=leading, **options)]
    np.testing.assert_allclose(found, their_states(monkeypatch, learned, given), atol=1e-4)
    to_diffusers(model, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["variance_type"]) == ("DDPMScheduler", "learned_range")
    found = [keras.ops.convert_to_numpy(f.x) for f in from_preset(tmp_path / "back").denoising(2, **options)]
    np.testing.assert_allclose(found, their_states(monkeypatch, tmp_path / "back", given), atol=1e-4)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_a_fixed_variance_says_nothing_of_training(learned, kind):
    DDPMScheduler(variance_type=kind).save_pretrained(learned / "scheduler")
    model = from_preset(learned)
    assert model.network.output_shape[-1] == 6
    assert model.generate(1, steps=2, seed=0, progress=False).shape == (1, 8, 8, 3)


def test_latents_of_a_learned_variance_are_latents(tmp_path):
    config = TINY["tiny Stable Diffusion"] | {"out_channels": 8, "sample_size": 8}
    made_of(config).save_pretrained(tmp_path / "unet")
    for clips in (False, True):  # as theirs does
        DDPMScheduler(variance_type="learned_range", clip_sample=clips).save_pretrained(tmp_path / "scheduler")
        assert from_preset(tmp_path).values == Values(False, clipped if clips else unclipped)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_training_changes_what_is_written_back_and_nothing_else_does(written, tmp_path):
    model = from_preset(written, ema=0.5)
    before = load_file(written / "unet" / WEIGHTS)
    to_diffusers(model, tmp_path / "same")
    same = load_file(tmp_path / "same" / "unet" / WEIGHTS)
    assert same.keys() == before.keys() and all(np.array_equal(same[name], before[name]) for name in before)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(np.zeros((2, 8, 8, 3), "uint8"), epochs=1, verbose=0)
    to_diffusers(model, tmp_path / "trained")
    after = load_file(tmp_path / "trained" / "unet" / WEIGHTS)
    # A key's bias moves all of a query's scores alike: its gradient is rounding.
    still = [name for name in before if np.array_equal(after[name], before[name])]
    assert [name for name in still if not name.endswith("to_k.bias")] == []
    theirs = UNet2DModel.from_pretrained(tmp_path / "trained" / "unet").eval()
    assert_same(theirs, model.averaged, given(theirs, (8, 8)))


def test_what_diffusers_cannot_say_is_refused(written, tmp_path):
    slides = DiffusionModel(build_unet((8, 8, 3), (4, 8)))
    with pytest.raises(ValueError, match="cannot be said as a network of diffusers: it has no levels"):
        to_diffusers(slides, tmp_path)
    odd = unet_of(CONFIG)
    other = build_unet((8, 8, 3), [Level(4), Level(8)], conditions=(timestep(),))
    with pytest.raises(ValueError, match="cannot be said"):
        to_diffusers(DiffusionModel(other), tmp_path)
    with pytest.raises(ValueError, match="cannot say this prediction: it must be one of .'epsilon'"):
        to_diffusers(DiffusionModel(odd, flow(), flow_velocity), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_layer_that_differs_is_named(tmp_path):
    def cooler(layer):
        config = layer.get_config()
        if layer.name == "up0_block1_norm2":
            config["epsilon"] = 0.1
        return type(layer).from_config(config)

    network = keras.models.clone_model(unet_of(CONFIG), clone_function=cooler)
    with pytest.raises(ValueError, match="it has up0_block1_norm2 with {'epsilon': 0.1}"):
        to_diffusers(DiffusionModel(network), tmp_path)


# ---- bad input ------------------------------------------------------------------------------------------------------


def cut(folder):
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_shard(folder):
    UNet2DModel.from_pretrained(folder / "unet").save_pretrained(folder / "unet", max_shard_size="20KB")
    (folder / "unet" / WEIGHTS).unlink(missing_ok=True)
    next((folder / "unet").glob("*-00002-of-*")).unlink()


def swap_a_tensor(folder):
    arrays = load_file(folder / "unet" / WEIGHTS)
    arrays["colour.weight"] = arrays.pop("conv_in.bias")
    save_file(arrays, folder / "unet" / WEIGHTS)


def pickle_it(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def unet(**fields):
    return lambda folder: edit(folder / "unet" / "config.json", **fields)


def scheduler(**fields):
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **fields)


BOTH = r"no variable takes .1.: colour.weight. Variables that no tensor sets .1.: stem/bias .conv_in.bias."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cannot be read, truncated or no safetensors file"),
        (lose_a_shard, "names files that are not there: .'diffusion_pytorch_model-00002-of-"),
        (swap_a_tensor, BOTH),
        (pickle_it, "which are pickles and are not read"),
        (lambda f: (f / "unet" / WEIGHTS).unlink(), "must hold diffusion_pytorch_model.safetensors or .*found neither"),
        (lambda f: (f / "unet" / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "config.json must hold an object, .* got a list"),
        (unet(_class_name="UNet3DConditionModel"), "_class_name must be UNet2DModel or .*, got 'UNet3DConditionModel'"),
        (unet(block_out_channels=[8, 8]), r"Other shapes .*conv_in.weight .4, 3, 3, 3. for stem/kernel .3, 3, 3, 8."),
        (unet(layers_per_block=1), "no variable takes .*down_blocks.0.resnets.1"),
        (unet(gravity=9.81), "has no field 'gravity', which is 9.81"),
        (unet(mid_block_scale_factor=1.41), "mid_block_scale_factor=1.41 is not supported: it must be 1"),
        (unet(act_fn="mish"), "act_fn='mish' is not supported: it must be one of .'silu', 'swish'"),
        (unet(time_embedding_type="fourier"), "time_embedding_type='fourier' is not supported"),
        (unet(down_block_types=["SkipDownBlock2D", "DownBlock2D"]), "down_block_types holds 'SkipDownBlock2D'"),
        (unet(up_block_types=["UpBlock2D"]), "up_block_types has 1 entries for 2 block_out_channels"),
        (unet(norm_num_groups=None), "norm_num_groups=None is not supported"),
        (scheduler(_class_name="KarrasVeScheduler"), "'KarrasVeScheduler' is not a scheduler that can be read"),
        (scheduler(beta_schedule="wavy"), "beta_schedule='wavy' is not known"),
        (scheduler(prediction_type="flow"), "prediction_type='flow' is not known"),
        (scheduler(clip_sample_range=2.0), "clip_sample_range=2.0 is not supported"),
        (scheduler(thresholding=True), "thresholding=True is not read"),
        (scheduler(variance_type="learned"), "variance_type='learned' is not read: there the network tells"),
        (scheduler(variance_type="learned_range"), "needs a network with twice as many out_channels .*, got 3 and 3"),
    ],
)
def test_folders_that_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        from_preset(folder)


def test_networks_without_published_weights():
    model = from_preset("slides", weights=False, seed=1)
    assert model.network.count_params() == 32_627_523 and model.seed == 1
    with pytest.raises(ValueError, match="adm-imagenet64 was published with no weights that can be read"):
        from_preset("adm-imagenet64")
    with pytest.raises(ValueError, match=r"slides without weights takes no \['size'\]"):
        from_preset("slides", weights=False, size=32)


def test_options_that_nothing_takes():
    with pytest.raises(ValueError, match=r"emoji-32 takes no \['size'\]: it is loaded as it was saved"):
        from_preset("emoji-32", size=16)
    with pytest.raises(ValueError, match="There is no preset 'emoji-33': give one of emoji-32, ddpm-cifar10"):
        from_preset("emoji-33")
