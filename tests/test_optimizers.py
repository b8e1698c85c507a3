"""AdamW and Muon beside Keras's own."""

import keras
import numpy as np
import pytest

from unet_keras import AdamW, Muon
from unet_keras.optimizers import orthogonal

BACKEND = keras.backend.backend()


def network(dtype="float32"):
    x = keras.Input((3,))
    y = keras.layers.Dense(5, activation="tanh", dtype=dtype)(x)
    model, rng = keras.Model(x, keras.layers.Dense(2, dtype=dtype)(y)), np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    return model


def trained(kind, dtype="float32", **options):
    model, rng = network(dtype), np.random.default_rng(0)
    model.compile(kind(learning_rate=0.05, **options), "mse")
    for _ in range(10):
        model.train_on_batch(*(rng.normal(size=(4, n)).astype("float32") for n in (3, 2)))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1, "global_clipnorm": 0.5},
        {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {"gradient_accumulation_steps": 2},
        {"amsgrad": True},
    ],
    ids=str,
)
def test_it_moves_weights_and_moments_as_keras_does(options):
    ours, theirs = trained(AdamW, **options), trained(keras.optimizers.AdamW, **options)
    assert not np.allclose(ours.get_weights()[0], network().get_weights()[0], atol=0.01)
    for a, b in zip(ours.weights + ours.optimizer.variables, theirs.weights + theirs.optimizer.variables, strict=True):
        # TensorFlow's kernel takes 1 - 0.999 in float32, off by 5e-5 of itself.
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (a, b)), rtol=1e-4, atol=1e-5, err_msg=a.path)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_moves_weights_of_half_precision_networks_as_keras_does(policy):
    ours, theirs = (trained(kind, policy) for kind in (AdamW, keras.optimizers.AdamW))
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (a, b)), rtol=1e-3, atol=1e-5, err_msg=a.path)


def test_it_is_the_formula():
    rng, rate, decay, b1, b2, epsilon = np.random.default_rng(0), 0.1, 0.3, 0.8, 0.9, 1e-3
    variable, p = keras.Variable(np.ones((2, 3), "float32")), np.ones((2, 3))
    optimizer, m, v = AdamW(rate, weight_decay=decay, beta_1=b1, beta_2=b2, epsilon=epsilon), 0.0, 0.0
    optimizer.build([variable])
    for t in range(1, 6):
        g = rng.normal(size=(2, 3)).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(g)])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        corrected = rate * np.sqrt(1 - b2**t) / (1 - b1**t)  # epsilon beside the uncorrected root, as Keras and TF do
        p = p - rate * decay * p - corrected * m / (np.sqrt(v) + epsilon)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), p, rtol=1e-5)  # moved by 0.5 and more


def test_it_is_saved_with_a_model(tmp_path):
    model = trained(AdamW, weight_decay=0.1)
    model.save(tmp_path / "model.keras")
    back = keras.saving.load_model(tmp_path / "model.keras")
    assert type(back.optimizer) is AdamW and back.optimizer.weight_decay == 0.1
    for a, b in zip(model.optimizer.variables, back.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)), err_msg=a.path)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's kernel")
def test_one_kernel_moves_a_variable():
    import tensorflow as tf

    model = network()
    model.compile(optimizer := AdamW())
    optimizer.build(model.trainable_variables)
    gradients = [tf.ones(v.shape) for v in model.trainable_variables]
    graph = tf.function(lambda: optimizer.apply(gradients)).get_concrete_function().graph
    assert [op.type for op in graph.get_operations()].count("ResourceApplyAdam") == 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's kind of gradient")
def test_rows_of_an_embedding_that_are_met_twice_are_summed():  # Keras squares them one by one
    import tensorflow as tf

    moved = []
    for dense in (True, False):
        variable, optimizer = keras.Variable(np.ones((4, 2), "float32")), AdamW(0.1)
        optimizer.build([variable])
        for values in ([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], [[-1.0, 1.0], [2.0, 2.0], [1.0, 0.0]]):
            rows = tf.IndexedSlices(tf.constant(values), tf.constant([2, 0, 2]), tf.constant([4, 2]))
            optimizer.apply([tf.convert_to_tensor(rows) if dense else rows])
        moved.append(keras.ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*moved, rtol=1e-6)
    assert moved[0][2, 0] != moved[0][0, 0]


# ---- Muon -----------------------------------------------------------------------------------------------------------

SHAPES = {"kernel": (40, 16), "wide": (16, 40), "conv": (3, 3, 16, 24), "bias": (16,), "stem": (3, 3, 1, 32)}
MATRICES = ("kernel", "wide", "conv")


def moved(optimizer, shapes, steps=4):
    """Five variables after some steps of gradients that depend on the name alone, flattened."""
    rngs = [np.random.default_rng(sum(map(ord, name))) for name in shapes]
    variables = [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for rng, (name, shape) in zip(rngs, shapes.items(), strict=True)
    ]
    optimizer.build(variables)
    for _ in range(steps):
        gradients = [rng.normal(size=v.shape).astype("float32") for rng, v in zip(rngs, variables, strict=True)]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients])
    return {name: keras.ops.convert_to_numpy(v).ravel() for name, v in zip(shapes, variables, strict=True)}


@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"momentum": 0.5, "weight_decay": 0.1}], ids=str)
def test_muon_moves_matrices_as_keras_does_and_kernels_of_convolutions_as_matrices(options):
    ours = moved(Muon(0.05, **options), SHAPES)
    flat = {name: (int(np.prod(SHAPES[name][:-1])), SHAPES[name][-1]) for name in MATRICES}
    theirs = moved(keras.optimizers.Muon(0.05, **options), flat)
    start = moved(Muon(0.05), SHAPES, steps=0)
    for name in MATRICES:
        assert np.abs(ours[name] - start[name]).mean() > 0.01
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


def test_muon_leaves_the_rest_and_what_is_excluded_to_adamw():
    shapes = {**SHAPES, "text_embeddings": (30, 20)}
    ours, theirs = moved(Muon(0.05, exclude=("wide",), beta_1=0.8), shapes), moved(AdamW(0.05, beta_1=0.8), shapes)
    same = {name for name in shapes if np.array_equal(ours[name], theirs[name])}
    assert same == {"wide", "bias", "stem", "text_embeddings"}


def test_what_muon_makes_orthogonal_is_nearly_so():
    for shape in ((20, 50), (50, 20)):
        matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
        left, spread, right = np.linalg.svd(matrix, full_matrices=False)
        made = keras.ops.convert_to_numpy(orthogonal(keras.ops.convert_to_tensor(matrix)))
        values = np.diag(left.T @ made @ right.T)  # the same singular vectors, other values
        assert spread.max() / spread.min() > 2 and values.min() > 0.6 and values.max() < 1.3
        np.testing.assert_allclose(left @ np.diag(values) @ right, made, atol=1e-3)


def test_muon_trains_and_is_saved_with_a_model(tmp_path):
    x, rng = keras.Input((16,)), np.random.default_rng(0)
    y = keras.layers.Dense(16, name="other")(keras.layers.Dense(32, activation="tanh", name="one")(x))
    model = keras.Model(x, y)
    model.compile(Muon(0.01, momentum=0.9, exclude=["other"], weight_decay=0.1), "mse")
    data = rng.normal(size=(64, 16)).astype("float32")
    first, *_, last = model.fit(data, data, epochs=30, verbose=0).history["loss"]
    assert last < first / 4
    model.save(tmp_path / "model.keras")
    back = keras.saving.load_model(tmp_path / "model.keras")
    assert type(back.optimizer) is Muon
    assert (back.optimizer.momentum, back.optimizer.exclude, back.optimizer.weight_decay) == (0.9, ("other",), 0.1)
    for one in (model, back):
        one.train_on_batch(data, data)
    for a, b in zip(model.weights, back.weights, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (a, b)), atol=1e-6, err_msg=a.path)


@pytest.mark.parametrize(
    "options, said", [({"momentum": 1.0}, "momentum .* got 1.0"), ({"exclude": "head"}, r"write \['head'\]")]
)
def test_muon_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        Muon(**options)
