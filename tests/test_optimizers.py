"""AdamW and Muon beside Keras's own."""

import keras
import numpy as np
import pytest

from unet_keras import AdamW, Muon
from unet_keras.optimizers import move, orthogonal

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
    kinds = [op.type for op in graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == kinds.count("ResourceApplyGradientDescent") == 4  # the latter is decay
    assert not any(kind.startswith("Assign") and kind.endswith("SubVariableOp") for kind in kinds)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_variable_is_moved_along_itself_or_another(dtype):
    variable = keras.Variable(np.array([1.0, -2.0, 4.0]), dtype=dtype)
    move(variable, 0.25, variable)
    move(variable, keras.ops.convert_to_tensor(0.5), keras.ops.convert_to_tensor([1.0, 1.0, -1.0], dtype))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), [0.25, -2.0, 3.5])


def test_what_is_excluded_from_weight_decay_stays():
    model = network()
    optimizer = AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(model.trainable_variables)
    before = model.get_weights()
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    for v, old in zip(model.trainable_variables, before, strict=True):
        expected = old if v.name == "bias" else old * (1 - 0.1 * 0.5)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(v), expected, rtol=1e-6)


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

KERNELS = {"square": (40, 16), "wide": (16, 40), "conv": (3, 3, 16, 24)}
OTHERS = {"bias": (16,), "stem": (3, 3, 3, 32), "head": (3, 3, 32, 3), "heads": (16, 4, 20)}


def variables_of(shapes, names):
    made = []
    for scope, shape in shapes.items():
        rng = np.random.default_rng(sum(map(ord, scope)))
        with keras.name_scope(scope):
            name = names.get(scope, "kernel")
            made.append(keras.Variable(rng.normal(size=shape).astype("float32"), name=name))
    return made


def moved(optimizer, shapes, steps=4, names=None):
    """What becomes of variables in some steps of random gradients, each its own: flat arrays by name."""
    variables = variables_of(shapes, names or {})
    rngs = [np.random.default_rng(len(scope)) for scope in shapes]
    optimizer.build(variables)
    for _ in range(steps):
        gradients = [rng.normal(size=v.shape).astype("float32") for rng, v in zip(rngs, variables, strict=True)]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients])
    return {name: keras.ops.convert_to_numpy(v).ravel() for name, v in zip(shapes, variables, strict=True)}


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"momentum": 0.5, "weight_decay": 0.1},
        {"gradient_accumulation_steps": 2, "clipnorm": 1.0},
    ],
    ids=str,
)
def test_muon_moves_matrices_as_keras_does_and_kernels_of_convolutions_as_matrices(options):
    ours = moved(Muon(0.05, **options), KERNELS | OTHERS)
    flat = {name: (int(np.prod(shape[:-1])), shape[-1]) for name, shape in KERNELS.items()}
    theirs = moved(keras.optimizers.Muon(0.05, **options), flat)
    start = moved(Muon(0.05), KERNELS, steps=0)
    for name in KERNELS:
        assert np.abs(ours[name] - start[name]).mean() > 0.01
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


def test_muon_leaves_the_rest_and_what_is_excluded_to_adamw():
    others = {**OTHERS, "words": (30, 20), "bias_of_heads": (16, 20), "middle": (20, 20)}
    names = {"words": "embeddings", "bias_of_heads": "bias"}
    for shapes in (KERNELS | others, {"wide": (16, 40), "square": (40, 16)}):  # of the second nothing is left to AdamW
        out = [name for name in ("middle",) if name in shapes]
        muon, adamw = Muon(0.05, exclude=out, beta_1=0.8), AdamW(0.05, beta_1=0.8)
        ours, theirs = (moved(one, shapes, names=names) for one in (muon, adamw))
        same = {name for name in shapes if np.allclose(ours[name], theirs[name], atol=1e-6)}
        assert same == set(shapes) - set(KERNELS)
        state = sum("velocity" in v.path for v in muon.variables), sum("momentum" in v.path for v in muon.variables)
        assert state == (len(same), len(shapes))


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
    "options, said",
    [
        ({"momentum": 1.0}, "momentum .* got 1.0"),
        ({"exclude": "head"}, "exclude must be a list of texts.* got 'head'"),
        ({"exclude": [""]}, "exclude must be a list of texts"),
        ({"exclude": None}, "exclude must be a list of texts"),
        ({"exclude": ["tail"]}, "'tail'.*such as .'square/kernel'"),
    ],
    ids=str,
)
def test_muon_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        Muon(**options).build(variables_of(KERNELS, {}))


@pytest.mark.skipif(BACKEND != "torch", reason="torch's groups")
def test_torch_moves_variables_in_groups_as_with_keras(monkeypatch):
    import torch

    roots, root = [], torch._foreach_sqrt
    monkeypatch.setattr(torch, "_foreach_sqrt", lambda given: roots.append(len(given)) or root(given))
    moved(AdamW(0.05), KERNELS | OTHERS, steps=1)
    moved(Muon(0.05), KERNELS | OTHERS, steps=1)
    assert roots == [len(KERNELS | OTHERS), len(OTHERS)]
