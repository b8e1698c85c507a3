"""Networks on shapes alone."""

import keras
import numpy as np
import pytest
from helpers import output_of, random_inputs, tiny_film_unet, tiny_text_unet

from unet_keras.nn.abstract import fill, fill_rest, shapes_only


@pytest.mark.parametrize("network", [tiny_text_unet, tiny_film_unet])
def test_a_network_on_shapes_has_no_values_until_they_are_filled_in(network):
    real = network()
    with shapes_only():
        bare = network()
    assert bare.count_params() == real.count_params() and all(v._value is None for v in bare.weights)
    with keras.StatelessScope():
        pass  # the end of a scope must not fill them in
    assert all(v._value is None for v in bare.weights)
    for variable, value in zip(bare.weights, real.get_weights(), strict=True):
        fill(variable, value)
    fill_rest(bare)
    inputs = random_inputs(real)
    np.testing.assert_array_equal(output_of(bare, inputs), output_of(real, inputs))


def test_variables_of_others_are_still_filled_in():
    with keras.StatelessScope():
        outside = keras.layers.Dense(2)
        outside.build((None, 3))
        with shapes_only():
            keras.layers.Dense(2).build((None, 3))
    assert outside.kernel.shape == (3, 2) and np.isfinite(keras.ops.convert_to_numpy(outside.kernel)).all()


def test_a_value_that_is_there_is_replaced():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    fill(layer.bias, np.ones(2, "float16"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.bias), [1, 1])
