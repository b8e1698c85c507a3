"""LoRA files against diffusers with PEFT: theirs computes the same in ours, and ours in theirs."""

import json

import keras
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import normal, numpy_of, output_of
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.numpy import load_file, save_file

from unet_keras import DiffusionModel, enable_lora, latents, load_lora, merge_lora, save_lora, to_diffusers
from unet_keras.files import Tensors
from unet_keras.nn.lora import adapted
from unet_keras.zoo.diffusers import weights
from unet_keras.zoo.diffusers.network import unet_of

from .helpers import TINY, assert_same, given, made_of, our_inputs, their_output

NAME = "pytorch_lora_weights.safetensors"
SD = TINY["tiny Stable Diffusion"] | {"cross_attention_dim": 6, "sample_size": 8}
LINEAR = SD | {"use_linear_projection": True}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out"]
OTHERS = ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj", "linear_1"]
OUR_CONVOLUTIONS = r"conv\d$|shortcut$|_(down|up)$|^stem$|^head$"
OUR_OTHERS = r"_feed_|proj_|emb$|^timestep_dense1$"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of networks of diffusers without LoRA."""
    folders = {"SD": SD, "linear": LINEAR, "DDPM": TINY["tiny DDPM"] | {"sample_size": 8}}
    for name, config in folders.items():
        folders[name] = tmp_path_factory.mktemp(name)
        made_of(config).save_pretrained(folders[name])
    return folders


def theirs_of(folder):
    kind = UNet2DModel if "UNet2DModel" in (folder / "config.json").read_text() else UNet2DConditionModel
    return kind.from_pretrained(folder).eval()


def ours_of(folder):
    network = unet_of(json.loads((folder / "config.json").read_text()))
    weights.load(network, Tensors(folder, "diffusion_pytorch_model"))
    return network


def with_adapter(theirs, seed=0, **config):
    """Theirs with a LoRA whose A and B are random."""
    theirs.add_adapter(LoraConfig(**config))
    return with_random_weights(theirs, seed)


def with_random_weights(theirs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return theirs.eval()


def with_random_factors(ours, rank=2, seed=0, **options):
    enable_lora(ours, rank, **options)
    generator = np.random.default_rng(seed)
    for layer in adapted(ours).values():
        for v in layer.factors:
            v.assign(0.4 * generator.normal(size=v.shape))
    return ours


def differ(theirs, plain, inputs):
    """The LoRA shows in the output."""
    assert np.abs(their_output(theirs, inputs) - their_output(plain, inputs)).max() > 0.05


# ---- theirs in ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [pytest.param("", id="of the network", marks=pytest.mark.once), pytest.param("unet.", id="of the pipeline")],
)
@pytest.mark.parametrize(
    ("base", "config"),
    [
        ("SD", {"r": 2, "lora_alpha": 2, "target_modules": ATTENTION}),
        ("SD", {"r": 3, "lora_alpha": 8, "target_modules": CONVOLUTIONS}),
        ("SD", {"r": 3, "lora_alpha": 7, "target_modules": OTHERS}),
        ("linear", {"r": 2, "lora_alpha": 1, "target_modules": OTHERS}),
        (
            "SD",
            {
                "r": 2,
                "lora_alpha": 3,
                "target_modules": ATTENTION + CONVOLUTIONS + OTHERS,
                "rank_pattern": {"to_q": 3, "^down_blocks.0.resnets.0.conv1": 1},
                "alpha_pattern": {"conv1": 5, "attn1.to_k": 1, "^mid_block.resnets.0.conv2": 4},
            },
        ),
        ("SD", {"r": 3, "lora_alpha": 2, "target_modules": ATTENTION, "use_rslora": True}),
    ],
)
def test_theirs_in_ours(bases, tmp_path, base, config, prefix):
    theirs = with_adapter(theirs_of(bases[base]), **config)
    theirs.save_lora_adapter(tmp_path)
    if prefix:  # as a pipeline writes it
        arrays, metadata = load_file(tmp_path / NAME), Tensors(tmp_path, "pytorch_lora_weights").metadata
        inner = {f"unet.{k}": v for k, v in json.loads(metadata["lora_adapter_metadata"]).items()}
        metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(inner)}
        save_file({prefix + name: array for name, array in arrays.items()}, tmp_path / NAME, metadata)
    ours, inputs = ours_of(bases[base]), given(theirs, (8, 8))
    differ(theirs, theirs_of(bases[base]), inputs)
    names = load_lora(ours, tmp_path)
    assert len(ours.trainable_weights) == 2 * len(names) > 0
    assert_same(theirs, ours, inputs)
    merge_lora(ours)
    assert_same(theirs, ours, inputs)


@pytest.mark.parametrize("scale", [0.5, -1.0])
def test_a_scale(bases, tmp_path, scale):
    theirs = with_adapter(theirs_of(bases["SD"]), r=2, lora_alpha=3, target_modules=ATTENTION)
    theirs.save_lora_adapter(tmp_path)
    theirs.set_adapters("default", scale)
    ours = ours_of(bases["SD"])
    load_lora(ours, tmp_path / NAME, scale)
    assert_same(theirs, ours, given(theirs, (8, 8)))


OLD = {
    "before PEFT": {".lora_A.": ".lora.down.", ".lora_B.": ".lora.up."},
    "processors": {
        "attn1.to_out.0.lora_A": "attn1.processor.to_out_lora.down",
        "attn1.to_out.0.lora_B": "attn1.processor.to_out_lora.up",
        "attn1.to_q.lora_A": "attn1.processor.to_q_lora.down",
        "attn1.to_q.lora_B": "attn1.processor.to_q_lora.up",
        "attn2.to_k.lora_A": "attn2.processor.to_k_lora.down",
        "attn2.to_k.lora_B": "attn2.processor.to_k_lora.up",
    },
    "PEFT's own": {"": ""},
}


@pytest.mark.once
@pytest.mark.parametrize("form", OLD)
def test_older_names(bases, tmp_path, form):
    theirs = with_adapter(theirs_of(bases["SD"]), r=2, lora_alpha=2, target_modules=ATTENTION)
    theirs.save_lora_adapter(tmp_path)
    first = "base_model.model." if form == "PEFT's own" else "unet."

    def renamed(name):
        for now, before in OLD[form].items():
            name = name.replace(now, before)
        return first + name

    save_file({renamed(name): array for name, array in load_file(tmp_path / NAME).items()}, tmp_path / NAME)
    ours, inputs = ours_of(bases["SD"]), given(theirs, (8, 8))
    load_lora(ours, tmp_path)
    assert_same(theirs, ours, inputs)


def test_alphas_in_tensors_and_half_precision(bases, tmp_path):
    theirs = with_adapter(theirs_of(bases["SD"]), r=2, lora_alpha=5, target_modules=ATTENTION)
    theirs.save_lora_adapter(tmp_path)
    arrays = {name: array.astype("float16") for name, array in load_file(tmp_path / NAME).items()}
    modules = {name.split(".lora_")[0] for name in arrays}
    arrays |= {f"{module}.alpha": np.array(5.0, "float16") for module in modules}
    save_file(arrays, tmp_path / NAME)
    ours, inputs = ours_of(bases["SD"]), given(theirs, (8, 8))
    load_lora(ours, tmp_path)
    theirs.load_state_dict({k: v.half().float() if "lora" in k else v for k, v in theirs.state_dict().items()})
    assert_same(theirs, ours, inputs)


# ---- ours in theirs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, pytest.param(5.0, marks=pytest.mark.once)])
@pytest.mark.parametrize(
    ("base", "layers"),
    [
        ("SD", None),
        ("SD", OUR_CONVOLUTIONS),
        pytest.param("SD", OUR_OTHERS, marks=pytest.mark.once),
        ("linear", ""),
        ("linear", "_feed_value$"),
        pytest.param("SD", "/(query|out)$|conv1$", marks=pytest.mark.once),
    ],
)
def test_ours_in_theirs(bases, tmp_path, base, layers, alpha):
    ours = with_random_factors(ours_of(bases[base]), alpha=alpha, **({} if layers is None else {"layers": layers}))
    file = save_lora(ours, tmp_path, linear=base == "linear")
    assert file == tmp_path / NAME
    theirs, inputs = theirs_of(bases[base]), given(theirs_of(bases[base]), (8, 8))
    theirs.load_lora_adapter(tmp_path, prefix="unet", weight_name=NAME)
    assert theirs.peft_config
    differ(theirs, theirs_of(bases[base]), inputs)
    assert_same(theirs, ours, inputs)
    again = ours_of(bases[base])
    load_lora(again, tmp_path)
    assert_same(theirs, again, inputs)


@pytest.mark.once
def test_of_a_trained_model_the_average_is_written(bases, tmp_path):
    model = DiffusionModel(ours_of(bases["linear"]), values=latents, ema=0.5, seed=1)
    enable_lora(model, 2, alpha=4.0)
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(normal(4, 8, 8, 4), {"context": normal(4, 5, 6)}, epochs=3, verbose=0)
    save_lora(model, tmp_path)
    theirs, inputs = theirs_of(bases["linear"]), given(theirs_of(bases["linear"]), (8, 8))
    theirs.load_lora_adapter(tmp_path, prefix="unet", weight_name=NAME)
    differ(theirs, theirs_of(bases["linear"]), inputs)
    assert_same(theirs, model.averaged, inputs)
    with pytest.raises(ValueError, match="The model has LoRA: merge_lora.model. first"):
        to_diffusers(model, tmp_path / "whole")
    model.save(tmp_path / "m.keras")
    back = keras.saving.load_model(tmp_path / "m.keras")
    save_lora(back, tmp_path / "again")
    one, other = (load_file(folder / NAME) for folder in (tmp_path, tmp_path / "again"))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    merge_lora(model)
    to_diffusers(model, tmp_path / "whole")
    assert_same(theirs_of(tmp_path / "whole" / "unet"), model.averaged, inputs)


def test_unconditional_networks_by_peft_alone(bases, tmp_path):
    """diffusers gives its UNet2DModel no LoRA; PEFT does."""
    theirs, inputs = theirs_of(bases["DDPM"]), given(theirs_of(bases["DDPM"]), (8, 8))
    config = LoraConfig(r=2, lora_alpha=5, target_modules=ATTENTION + CONVOLUTIONS)
    theirs = with_random_weights(inject_adapter_in_model(config, theirs))
    arrays = {name: v.numpy() for name, v in get_peft_model_state_dict(theirs).items()}
    metadata = {"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 5})}
    save_file(arrays, tmp_path / NAME, metadata)
    ours = ours_of(bases["DDPM"])
    load_lora(ours, tmp_path)
    differ(theirs, theirs_of(bases["DDPM"]), inputs)
    assert_same(theirs, ours, inputs)
    save_lora(ours, tmp_path / "ours")
    again = load_file(tmp_path / "ours" / NAME)
    assert again.keys() == {f"unet.{name}" for name in arrays}
    assert all(np.array_equal(again[f"unet.{name}"], array) for name, array in arrays.items())


@pytest.mark.once
@pytest.mark.parametrize("options", [{}, {"alpha_pattern": {"to_q": 3}}, {"use_rslora": True}])
def test_what_peft_itself_writes(bases, tmp_path, options):
    """Names of its own, and alpha in a file beside."""
    theirs, inputs = theirs_of(bases["DDPM"]), given(theirs_of(bases["DDPM"]), (8, 8))
    config = LoraConfig(r=2, lora_alpha=16, target_modules=ATTENTION, **options)
    theirs = get_peft_model(theirs, config)
    with_random_weights(theirs).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        ours = ours_of(bases["DDPM"])
        load_lora(ours, path)
        assert_same(theirs, ours, inputs)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="no adapter_config.json, where PEFT keeps alpha"):
        load_lora(ours_of(bases["DDPM"]), tmp_path)
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        load_lora(ours_of(bases["DDPM"]), tmp_path, scale=np.nan)


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("layers", [OUR_CONVOLUTIONS, r"/(query|key|value|out)$|proj_|_feed_out"])
def test_there_and_back_is_exact(bases, tmp_path, layers):
    ours = with_random_factors(ours_of(bases["linear"]), alpha=5.0, layers=layers)
    save_lora(ours, tmp_path / "a.safetensors")
    model = DiffusionModel(ours_of(bases["linear"]), ema=0.9)
    names = load_lora(model, tmp_path / "a.safetensors")
    assert sorted(names) == sorted(adapted(ours))
    for network in (model.network, model.ema_network):
        assert [v.path for v in ours.weights] == [v.path for v in network.weights]
        for mine, theirs in zip(ours.weights, network.weights, strict=True):
            assert np.array_equal(numpy_of(mine), numpy_of(theirs))
    inputs = our_inputs(ours, given(theirs_of(bases["linear"]), (8, 8)))
    assert np.array_equal(output_of(ours, inputs), output_of(model.averaged, inputs))


def test_a_feed_forward_of_theirs_comes_back_as_it_was(bases, tmp_path):
    theirs = with_adapter(theirs_of(bases["linear"]), r=2, lora_alpha=3, target_modules=["ff.net.0.proj"])
    theirs.save_lora_adapter(tmp_path / "theirs")
    ours = ours_of(bases["linear"])
    load_lora(ours, tmp_path / "theirs")
    save_lora(ours, tmp_path / "ours")
    one, other = (load_file(tmp_path / side / NAME) for side in ("theirs", "ours"))
    assert {f"unet.{name}" for name in one} == set(other)
    assert all(np.array_equal(one[name], other[f"unet.{name}"]) for name in one)


# ---- bad input ------------------------------------------------------------------------------------------------------


def edited(change):
    def damage(path):
        arrays = load_file(path)
        change(arrays, sorted(arrays))
        save_file(arrays, path)

    return damage


QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.once
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited(lambda a, n: a.pop(f"{QUERY}.lora_A.weight")), rf"without their pair .1.: {QUERY}.lora_B.weight"),
        (edited(lambda a, n: a.update({"text_encoder.x": a[n[0]]})), "no layer takes.* .1.: text_encoder.x. Layers"),
        (
            edited(lambda a, n: a.update({f"{QUERY}.lora_magnitude_vector": np.ones(8, "float32")})),
            rf"no layer takes.* .3.: {QUERY}.lora_A.weight, {QUERY}.lora_B.weight, {QUERY}.lora_magnitude_vector",
        ),
        (
            edited(lambda a, n: a.update({f"{QUERY}.lora_B.weight": np.ones((9, 2), "float32")})),
            rf"Other shapes .1.: {QUERY} .2, 8. and .9, 2. for down1_attend0_layer0_self/query .8, 8.",
        ),
        (
            edited(lambda a, n: a.update({f"{QUERY}.lora_A.weight": np.ones((3, 8), "float32")})),
            rf"Other shapes .1.: {QUERY} .3, 8. and .8, 2. for",
        ),
        (
            edited(lambda a, n: a.update({f"unet.{n[0]}": a[n[0]]})),
            "are one tensor",
        ),
        (edited(lambda a, n: a.clear()), "There are no tensors in it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "truncated or no safetensors file"),
        (lambda path: path.rename(path.with_suffix(".bin")), "is no safetensors file"),
        (
            lambda path: save_file(load_file(path), path, {"lora_adapter_metadata": "{"}),
            "lora_adapter_metadata (is no JSON|must hold an object)",
        ),
    ],
)
def test_files_that_are_refused(bases, tmp_path, damage, message):
    with_adapter(theirs_of(bases["SD"]), r=2, target_modules=ATTENTION).save_lora_adapter(tmp_path)
    damage(tmp_path / NAME)
    ours = ours_of(bases["SD"])
    with pytest.raises(ValueError, match=message):
        load_lora(ours, tmp_path / NAME)
    assert adapted(ours) == {} and len(ours.trainable_weights) == len(ours.weights)


@pytest.mark.once
def test_networks_that_are_refused(bases, tmp_path):
    ours = ours_of(bases["SD"])
    with pytest.raises(ValueError, match="unet has no LoRA to save"):
        save_lora(ours, tmp_path)
    odd = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="nose")])
    enable_lora(odd, layers="nose")
    with pytest.raises(ValueError, match="nose/kernel has no counterpart in diffusers' networks"):
        save_lora(odd, tmp_path)
    assert not any(tmp_path.iterdir())
    save_lora(with_random_factors(ours), tmp_path)
    with pytest.raises(ValueError, match="unet has LoRA already, on 32 layers"):
        load_lora(ours, tmp_path)
