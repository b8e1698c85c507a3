"""Networks of diffusers' configurations, with weights that diffusers wrote, give the same output; and back again."""

import json

import keras
import numpy as np
import pytest
from diffusers import UNet2DConditionModel, UNet2DModel
from helpers import output_of

from unet_keras import DiffusionModel, cosine
from unet_keras.files import Tensors
from unet_keras.zoo.diffusers.folder import to_diffusers
from unet_keras.zoo.diffusers.network import unet_of
from unet_keras.zoo.diffusers.weights import arrays_of, load

from .helpers import TINY, assert_same, given, made_of, our_inputs, random_config

CONFIGS = {name: (config, (config["sample_size"],) * 2) for name, config in TINY.items()}
CONFIGS |= {f"random {seed}": random_config(seed) for seed in range(20 if keras.backend.backend() == "torch" else 4)}


def both(name, folder):
    """diffusers' network, and ours read from the file that it wrote; the configuration and inputs for theirs."""
    config, size = CONFIGS[name]
    theirs = made_of(config)
    theirs.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    ours = unet_of(config, size=size)
    load(ours, Tensors(folder, "diffusion_pytorch_model"))
    return theirs, ours, config, given(theirs, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_output_and_the_same_tensors_back(name, tmp_path):
    theirs, ours, config, inputs = both(name, tmp_path)
    assert_same(theirs, ours, inputs)
    state = theirs.state_dict()
    back = arrays_of(ours, linear=config.get("use_linear_projection", True))
    assert back.keys() == state.keys() and ours.count_params() == theirs.num_parameters()
    assert all(np.array_equal(array, state[name].numpy()) for name, array in back.items())


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="TensorFlow's CPUs convolve channels last alone")
@pytest.mark.parametrize("name", TINY)
def test_channels_first_gives_the_transposed_output(name, tmp_path):
    theirs, last, config, inputs = both(name, tmp_path)
    inputs = our_inputs(last, inputs)
    keras.config.set_image_data_format("channels_first")
    first = unet_of(config)
    load(first, Tensors(tmp_path, "diffusion_pytorch_model"))
    turned = output_of(first, inputs | {"image": inputs["image"].transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(turned.transpose(0, 2, 3, 1), output_of(last, inputs), atol=1e-5)
    to_diffusers(DiffusionModel(first, cosine(), ema=None), tmp_path / "back")
    assert json.loads((tmp_path / "back/unet/config.json").read_text())["sample_size"] == config["sample_size"]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="layers are read alike on every backend")
@pytest.mark.once
@pytest.mark.parametrize("name", list(CONFIGS)[::2])
def test_diffusers_opens_what_we_write(name, tmp_path):
    """Read off our layers, the configuration is another where diffusers can say one thing in several ways."""
    _, ours, config, inputs = both(name, tmp_path)
    to_diffusers(DiffusionModel(ours, cosine(), ema=None), tmp_path / "back")
    kind = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}[config["_class_name"]]
    assert_same(kind.from_pretrained(tmp_path / "back" / "unet"), ours, inputs)


def test_a_conditional_network_that_reads_no_context_is_refused(tmp_path):
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    made_of({**TINY["tiny Stable Diffusion"], **plain, "mid_block_type": "UNetMidBlock2D"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hold no block that reads a context .*As a UNet2DModel it would be"):
        unet_of(json.loads((tmp_path / "config.json").read_text()))
