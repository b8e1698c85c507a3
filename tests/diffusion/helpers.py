"""Small networks, some of them known in closed form, that the tests of diffusion share."""

import keras
import numpy as np
from keras import layers, ops

from unet_keras import DiffusionModel, classifier_free, unclipped
from unet_keras.diffusion.loop import last, make_step, run
from unet_keras.diffusion.predictions import noise

SHAPE = (8, 8, 3)


def pixels(count, seed=0, shape=SHAPE):
    """Random images, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype="uint8")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def network(classes=None, *, shape=SHAPE, filters=4, dropout=0.0, seed=0):
    """A tiny network with the named inputs of a U-Net; ``classes`` counts the null label too."""
    keras.utils.set_random_seed(seed)
    inputs = {"image": keras.Input(shape, name="image"), "timestep": keras.Input((), name="timestep")}
    emb = layers.Dense(filters, dtype="float32")(layers.Rescaling(0.001, dtype="float32")(inputs["timestep"][:, None]))
    if classes:
        inputs["label"] = keras.Input((), dtype="int32", name="label")
        emb = layers.Add()([emb, layers.Embedding(classes, filters)(inputs["label"])])
    x = layers.Conv2D(filters, 3, padding="same")(inputs["image"])
    x = layers.Activation("silu")(layers.Add()([x, layers.Reshape((1, 1, filters))(emb)]))
    x = layers.Dropout(dropout, seed=1)(x) if dropout else x
    return keras.Model(inputs, layers.Conv2D(shape[-1], 3, padding="same", dtype="float32")(x))


def wide(classes=None, **options):
    """A tiny network of twice the image's channels, which learns the variance."""
    inner, other = network(classes, **options), network(classes, **{**options, "seed": 1})
    return keras.Model(inner.input, layers.Concatenate(dtype="float32")([inner.output, other(inner.input)]))


def trainer(classes=None, *, optimizer=None, compiled=None, net=None, **options):
    """A compiled DiffusionModel of a tiny network whose weights and seed are the same at every call."""
    options = {"seed": 7, **options}
    if classes:
        options = {"null": {"label": classes - 1}, "drop": 0.2, **options}
    model = DiffusionModel(network(classes) if net is None else net, **options)
    model.compile(keras.optimizers.SGD(0.1) if optimizer is None else optimizer, **(compiled or {}))
    return model


def standing(classes=None, **options):
    """A trainer that never moves: its losses differ by their noise alone."""
    return trainer(classes, optimizer=keras.optimizers.SGD(0.0), **options)


def rewinder(model):
    """A function that takes a model back to where it is now, without compiling anything anew."""
    model.optimizer.build(model.trainable_variables)
    variables = model.variables + model.optimizer.variables
    start = [ops.convert_to_numpy(v).copy() for v in variables]

    def rewound():
        for v, value in zip(variables, start, strict=True):
            v.assign(value)
        return model

    return rewound


def weights(model):
    """All that training changes: the weights and their average, one vector each."""
    nets = [model.network] + ([] if model.ema_network is None else [model.ema_network])
    return [np.concatenate([w.ravel() for w in net.get_weights()]) for net in nets]


def everything(model):
    """All that ``fit`` changes: the weights and their average, the generators' states, the optimizer's variables."""
    found = model.trainable_variables + model.non_trainable_variables + model.optimizer.variables
    return [ops.convert_to_numpy(v).astype("float64") for v in found if v is not model.val_noise.state]


def check_alike(first, second):
    """Check that two models are where the same training would have taken them."""
    for a, b in zip(everything(first), everything(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def losses(model, images, epochs=4, **options):
    """The loss of each epoch over ``images`` as one batch."""
    options = {"batch_size": len(images), "shuffle": False, "verbose": 0, **options}
    return model.fit(images, epochs=epochs, **options).history["loss"]


class Closed(layers.Layer):
    """A network known in closed form: ``function(x, alpha, sigma, *conditions)`` at the schedule's whole timesteps."""

    def __init__(self, function, schedule, **options):
        super().__init__(autocast=False, **options)
        self.function = function
        self.tables = [schedule.alpha.astype("float32"), schedule.sigma.astype("float32")]

    def call(self, x, t, *conditions):
        index = ops.cast(t, "int32")
        alpha, sigma = (ops.take(ops.convert_to_tensor(table), index)[:, None, None, None] for table in self.tables)
        return self.function(x, alpha, sigma, *conditions)

    def compute_output_shape(self, x_shape, *shapes):
        return x_shape


def closed_form(function, schedule, shape, *, label=False):
    """Wrap ``function(x, alpha, sigma[, label])`` as a functional network."""
    inputs = {"image": keras.Input(shape, name="image"), "timestep": keras.Input((), name="timestep")}
    if label:
        inputs["label"] = keras.Input((), dtype="int32", name="label")
    return keras.Model(inputs, Closed(function, schedule)(*inputs.values()))


def sampled(rows, function, schedule, x, z=None, *, prediction=noise, threshold=unclipped):
    """Run the real, compiled loop over ``rows`` with a network known in closed form; z holds the noise of each row."""
    step = make_step(closed_form(function, schedule, x.shape[1:]), prediction, classifier_free, threshold)
    return last([run(step, rows, x, lambda n: z[n])])


def by_hand(rows, x, z, clean):
    """Run rows in NumPy's float64: x_{n+1} = sum_k a_k x_{n-k} + sum_k b_k D_{n-k} + c z_n, D_n = clean(x_n, point)."""
    return states_by_hand(rows, x, z, clean)[-1]


def states_by_hand(rows, x, z, clean):
    """As by_hand, but every state, from x on."""
    x, z = np.asarray(x, "float64"), None if z is None else np.asarray(z, "float64")
    states, estimates = [x], []
    for n, row in enumerate(rows):
        estimates.append(clean(states[-1], row.point))
        x = sum(a * v for a, v in zip(row.a, reversed(states), strict=False))
        x = x + sum(b * v for b, v in zip(row.b, reversed(estimates), strict=False))
        states.append(x + row.c * z[n] if row.c else x)
    return states


class Spy(layers.Layer):
    """Passes its input on, and keeps the static shape that each Python call of it saw: one a trace, or a call."""

    seen = []

    def call(self, x):
        Spy.seen.append(tuple(x.shape))
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def spied(classes=None):
    """A tiny network with a Spy at its door, and the list that the spy writes."""
    inner = network(classes)
    net = keras.Model(inner.input, inner({**inner.input, "image": Spy()(inner.input["image"])}))
    Spy.seen = []
    return net, Spy
