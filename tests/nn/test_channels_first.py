"""The slides write (B, C, H, W): where Keras says so, the same weights give the transposed output."""

import keras
import numpy as np
import pytest
from helpers import TINY_UNETS, output_of, random_inputs, randomized


def outputs(network, size, layout):
    """A network's random output under an image data format; the network comes too."""
    keras.config.set_image_data_format(layout)
    model = randomized(network(size=size))
    return model, output_of(model, random_inputs(model, size=(7, 10)))


@pytest.mark.parametrize("network", TINY_UNETS.values(), ids=TINY_UNETS.keys())
@pytest.mark.parametrize("size", [(7, 10), (None, None)])
def test_channels_first_gives_the_transposed_output(network, size):
    _, last = outputs(network, size, "channels_last")
    _, first = outputs(network, size, "channels_first")
    assert first.shape == (2, 3, 7, 10)
    np.testing.assert_allclose(first.transpose(0, 2, 3, 1), last, atol=1e-5)


@pytest.mark.parametrize("network", TINY_UNETS.values(), ids=TINY_UNETS.keys())
def test_a_file_remembers_its_layout(network, tmp_path):
    model, expected = outputs(network, (7, 10), "channels_first")
    inputs = random_inputs(model, size=(7, 10))
    model.save(tmp_path / "unet.keras")
    keras.config.set_image_data_format("channels_last")
    copy = keras.models.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(output_of(copy, inputs), expected, atol=1e-6)
