"""A file that one backend wrote gives the same output on the others."""

import os
import subprocess
import sys
from functools import partial

import keras
import numpy as np
from helpers import (
    output_of,
    random_inputs,
    randomized,
    tiny_cross_attention,
    tiny_film_block,
    tiny_self_attention,
    tiny_text_unet,
    tiny_transformer,
)

from unet_keras import Level, conv_block, conv_transpose, mean_pool, nearest_conv, res_down, sandwich
from unet_keras.nn import group_norm, layers

THERE = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[keras.backend.backend()]
"""One other: run on each backend, all three are compared."""

LOAD = """
import sys
import keras, numpy as np
import unet_keras

folder = sys.argv[1]
model = keras.models.load_model(f"{folder}/unet.keras")
np.save(f"{folder}/output.npy", keras.ops.convert_to_numpy(model(dict(np.load(f"{folder}/inputs.npz")))))
print(keras.backend.backend())
"""


def every_kind_of_layer():
    return tiny_text_unet(
        size=(None, None),
        levels=[Level(4, 1, tiny_self_attention), Level(8, 1, tiny_cross_attention, up=nearest_conv), Level(8)],
        block=tiny_film_block,
        bridge=partial(sandwich, block=conv_block, attend=tiny_transformer),
        down=partial(res_down, groups=2),
        up=conv_transpose,
        pool=mean_pool,
    )


def test_it_has_every_kind_of_layer():
    kinds = {type(layer).__name__ for layer in every_kind_of_layer().layers}
    ours = {name for module in (layers, group_norm) for name, value in vars(module).items() if is_layer(value, module)}
    assert {"FiLM", "GroupNorm"} <= ours <= kinds


def is_layer(value, module):
    """Tell whether it is a layer of the module's own, other than a base of some."""
    ours = isinstance(value, type) and value.__module__ == module.__name__
    return ours and issubclass(value, keras.layers.Layer) and "call" in vars(value)


def test_a_file_gives_the_same_output_on_another_backend(tmp_path):
    model = randomized(every_kind_of_layer())
    inputs = random_inputs(model, size=(7, 10))
    model.save(tmp_path / "unet.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    environment = {**os.environ, "KERAS_BACKEND": THERE}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == THERE, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), output_of(model, inputs), atol=1e-4)
