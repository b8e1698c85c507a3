"""DiffusionModel: a network trained by noise prediction through Keras's own ``fit``, and sampled by ``generate``.

Training is supervised learning on corrupted inputs: ``train_step`` turns a batch of images into (noisy images and
timesteps, target, weight), x_t = alpha_t x_0 + sigma_t eps, and hands it to Keras's own ``train_step``. Gradient
accumulation, loss scaling, callbacks and distribution stay Keras's.
"""

import contextlib
import random
from functools import partial

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.attached import state_scope
from unet_keras.diffusion.dropping import Dropping
from unet_keras.diffusion.inputs import Inputs, check_end, is_array
from unet_keras.diffusion.losses import as_loss, portable, weighted_mean
from unet_keras.diffusion.options import check_compiled, check_options, check_parts
from unet_keras.diffusion.predictions import Prediction, noise
from unet_keras.diffusion.remat import rematerialised
from unet_keras.diffusion.replicas import apply_whole, logged, share_of, together
from unet_keras.diffusion.sampled import SampledModel
from unet_keras.diffusion.schedules import Schedule, linear, look_up
from unet_keras.diffusion.seeds import derived
from unet_keras.diffusion.timesteps import drawn
from unet_keras.diffusion.values import Values, pixels
from unet_keras.diffusion.variance import VLB_WEIGHT, bound, check_channels, halves, learned
from unet_keras.optimizers import move

TABLES = ("schedule", "prediction", "values", "encoder")
"""The parts that are written into a model's configuration whole."""


@keras.saving.register_keras_serializable("unet_keras")
class DiffusionModel(SampledModel):
    """Train a network to undo noise, and sample images from it.

        model = DiffusionModel(build_unet((32, 32, 3)))
        model.compile(keras.optimizers.AdamW(2e-4))
        model.fit(images, epochs=100)                     # uint8, or floats in [-1, 1]
        pictures = model.generate(16)                     # uint8 (16, 32, 32, 3)

    network       a functional keras.Model with inputs ``image`` and ``timestep``, and one for each condition. One that
                  gives twice the image's channels learns the variance too, for ``ddpm_learned``: see variance.py
    schedule      the noise of each timestep, saved with the weights
    prediction    what the network predicts: noise, velocity, clean or flow_velocity
    values        what an image's numbers are: pixels, or latents, which know no bounds
    weight        a table (T,) of loss weights, e.g. ``min_snr(schedule, prediction)``; None weighs all alike. That of
                  what the network learns of the variance is not changed
    density       a table (T,) of how often training and validation draw each timestep, relative to the others, e.g.
                  ``logit_normal(schedule, 1.0)``; None draws all alike
    encoder       prompts -> conditions, see text/: ``fit`` and ``generate`` then take lists of texts, or {"prompt":
                  texts} beside other conditions
    null, drop    conditions that mean "none", {name: one example's array}, and the probability with which training
                  puts them in the place of an example's own: both are needed for guidance. For a prompt, null is
                  the empty one. ``drop={"prompt": 0.1, "label": 0.5}`` drops each on its own
    ema           decay of the weights' running average, which ``generate``, ``evaluate``, ``predict`` and ``export``
                  use; it is warmed up as min(ema, (1 + n) / (10 + n)) at update n. None keeps no average
    remat         True to train in less memory and more time: blocks compute their activations again, see remat.py
    seed          of timesteps, noise and drops in training; drawn from Python's generator unless given

    Raises ValueError for a network without these inputs, for tables of the wrong length, null conditions that the
    network does not take, and where noise is to be predicted without any image (alpha = 0).
    """

    def __init__(
        self,
        network,
        schedule: Schedule = linear(),
        prediction: Prediction = noise,
        *,
        values: Values = pixels,
        weight=None,
        density=None,
        encoder=None,
        null=None,
        drop=0.0,
        ema=0.999,
        remat=False,
        seed=None,
        **kwargs,
    ):
        # Of the network's own policy, or Keras would not scale the loss of a float16 network. No automatic casting:
        # it would round the timesteps and the images before the network sees them.
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        check_parts(schedule, prediction, values)
        self.network, self.schedule, self.prediction, self.values = network, schedule, prediction, values
        self.weight, self.density = (None if v is None else np.asarray(v, "float64") for v in (weight, density))
        self.encoder, self.drop, self.ema, self.remat = encoder, drop, ema, remat
        self.seed = random.getrandbits(31) if seed is None else seed
        self.named_inputs = Inputs(network, encoder, values)
        self.dropping = Dropping(self.named_inputs, dict(null or {}), drop)
        check_options(self)
        self.bound = bound(schedule, prediction, values.bounded) if learned(network) else None
        self.gaps = {name: keras.metrics.Mean(name=name) for name in self.dropping.groups}
        self.train_noise = keras.random.SeedGenerator(derived(self.seed, 0), name="train_noise")
        self.val_noise = keras.random.SeedGenerator(derived(self.seed, 1), name="val_noise")
        self.noise_loss = keras.losses.MeanSquaredError()
        _settle(network)
        self.ema_network = None
        if ema is not None:
            self.ema_network = keras.models.clone_model(network)
            self.ema_network.trainable = False
            _settle(self.ema_network)
            self.ema_network.set_weights(network.get_weights())
            self.ema_step = self.add_weight(
                shape=(), dtype="int32", initializer="zeros", trainable=False, name="ema_step"
            )
        self._steps = {}
        self._train = rematerialised(network) if remat else partial(network, training=True)
        self.built = True

    @property
    def averaged(self):
        """The network to use: the one with the averaged weights, where an average is kept."""
        return self.network if self.ema_network is None else self.ema_network

    def call(self, inputs, training=None):
        """Run the network on its named inputs: the trained weights in training, the averaged ones otherwise."""
        return self._train(inputs) if training else self.averaged(inputs, training=False)

    # ---- training ---------------------------------------------------------------------------------------------------

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Set the optimizer, and the loss between target and output (mean squared error), as in ``keras.Model``.

        Raises ValueError for metrics, which Keras builds before it knows the network's inputs, for an optimizer that
        keeps its own average (it would overwrite the weights when ``fit`` ends; this model keeps one), for a network
        that gives other channels than its images have or whose weights are in half precision (not its computations:
        "mixed_float16" is fine), and for what Keras cannot do on several devices.
        """
        check_channels(self.network)
        if self.ema_network is not None:
            self.ema_network.trainable = False  # what was set for the whole model was set for the average as well
        optimizer = keras.optimizers.get(optimizer)
        check_compiled(self, optimizer, kwargs)
        self._train = together(self, self._train)
        self._compiled_with = {"loss": loss, "jit_compile": kwargs.get("jit_compile", "auto")}
        super().compile(optimizer=optimizer, **kwargs)
        apply_whole(self.optimizer)
        # Here, or TensorFlow would trace the first step twice, to find variables created in it.
        self.optimizer.build(self.trainable_variables)
        self.noise_loss = as_loss(loss)

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            # As it was asked for: what "auto" came to on this backend would be wrong on another.
            loss = keras.saving.serialize_keras_object(self._compiled_with["loss"])
            optimizer = portable(config["optimizer"])
            config.update(optimizer=optimizer, loss=loss, jit_compile=self._compiled_with["jit_compile"])
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        weight = sample_weight
        if self.weight is not None:
            weight = look_up(self.weight, x["timestep"], 1) * (1.0 if weight is None else weight)
        # Flat, so that the loss of an example is one number and weights (B,) mean what they say; a Loss object, which
        # computes in float32 and scales for replicas.
        flat = [ops.reshape(v, (ops.shape(v)[0], -1)) for v in (y, self._predicted(y_pred))]
        loss = self.noise_loss(*flat, weight)
        if self.bound is not None:
            loss = loss + VLB_WEIGHT * weighted_mean(self.bound(x, y, y_pred), sample_weight)
        loss = share_of(ops.shape(y)[0]).of_all(loss)
        return sum((self._aggregate_additional_loss(more) for more in self.losses), start=loss)

    def _predicted(self, output):
        """What an output says of the image, without what it says of the variance."""
        return output if self.bound is None else halves(output)[0]

    def corrupted(self, data, generator, dropping=None):
        """Turn a batch into (inputs, target, weight): steps 2 to 4 of DDPM's training (Ho et al. 2020, algorithm 1).

        The weight is the example's own; that of its timestep belongs to the loss.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images, conditions = self.named_inputs.unpack(x, y)
        images, conditions = keras.tree.map_structure(ops.convert_to_tensor, (images, conditions))  # of *_on_batch
        clean = self.values.given(images)
        count, *shape = ops.shape(clean)
        share = share_of(count)
        t = share.rows(partial(drawn, len(self.schedule), self.density, seed=generator))
        eps = share.rows(lambda n: keras.random.normal((n, *shape), dtype="float32", seed=generator))
        alpha, sigma = (look_up(table, t, len(clean.shape)) for table in (self.schedule.alpha, self.schedule.sigma))
        if dropping is not None:
            conditions = dropping.dropped(conditions, share, generator)
        if sample_weight is not None:  # Keras repeats it for each of y's entries
            sample_weight = ops.cast(keras.tree.flatten(sample_weight)[0], "float32")
        inputs = {"image": alpha * clean + sigma * eps, "timestep": ops.cast(t, "float32"), **conditions}
        return inputs, self.prediction.target(clean, eps, alpha, sigma), sample_weight

    def train_step(self, *args):
        before = None if self.ema_network is None else self._updates(args)
        out = self._with_noise(super().train_step, args, self.train_noise, self.dropping)
        logs = out[0] if keras.backend.backend() == "jax" else out
        for name in self.gaps:
            logs.pop(name, None)  # measured in validation only
        if self.ema_network is None:
            return out
        if keras.backend.backend() == "jax":
            logs, (trainable, rest, optimizer, metrics) = out
            pairs = [(self.trainable_variables, trainable), (self.non_trainable_variables, rest)]
            with state_scope([*pairs, (self.optimizer.variables, optimizer)]) as scope:
                self._update_average(before)
            rest = [scope.get_current_value(v) for v in self.non_trainable_variables]
            return logs, (trainable, rest, optimizer, metrics)
        if keras.backend.backend() == "torch":
            import torch

            with torch.no_grad():
                self._update_average(before)
        else:
            self._update_average(before)
        return out

    def test_step(self, *args):
        return self._with_noise(super().test_step, args, self.val_noise, gaps=self.gaps)

    def _with_noise(self, keras_step, args, generator, dropping=None, gaps=None):
        if keras.backend.backend() != "jax":
            data = self.corrupted(args[0], generator, dropping)
            self._measure(gaps, data[0])
            return logged(keras_step(data))
        # JAX's steps take and return their state. The advanced generator must go back into it, or the same noise
        # would be compiled into every step.
        (trainable, rest, *others, metrics), data = args
        pairs = [(self.trainable_variables, trainable), (self.non_trainable_variables, rest)]
        with state_scope([*pairs, (self.metrics_variables, metrics)]) as scope:
            data = self.corrupted(data, generator, dropping)
            self._measure(gaps, data[0])
        changed = (self.non_trainable_variables, self.metrics_variables)
        rest, metrics = ([scope.get_current_value(v) for v in variables] for variables in changed)
        return keras_step((trainable, rest, *others, metrics), data)

    def _measure(self, gaps, inputs):
        """Note how far the output moves, relative to its size, when conditions are dropped: all, and each."""
        if not gaps:
            return
        given = self._output(inputs)
        share = share_of(ops.shape(given)[0])
        size = share.add(ops.sum(ops.square(given)))
        for name, dropped in self.dropping.groups.items():
            moved = given - self._output(self.dropping.without(inputs, dropped))
            gaps[name].update_state(ops.sqrt(share.add(ops.sum(ops.square(moved))) / size))

    def _output(self, inputs):
        return ops.cast(self._predicted(self.averaged(inputs, training=False)), "float32")

    def _updates(self, args=None):
        """The updates of the weights that the optimizer has made; JAX has its state in a step's arguments."""
        known = contextlib.nullcontext()
        if args and keras.backend.backend() == "jax":
            known = keras.StatelessScope(list(zip(self.optimizer.variables, args[0][2], strict=True)))
        with known:
            return ops.cast(self.optimizer.iterations, "int32") + 0  # not the variable itself, which will change

    def _update_average(self, before):
        """Move the average towards the weights where they have been updated; it counts on when compiled anew."""
        updated = self._updates() - before
        n = ops.cast(self.ema_step + 1, "float32")
        keep = ops.where(updated > 0, ops.minimum(self.ema, (1.0 + n) / (10.0 + n)), 1.0)
        self.ema_step.assign(self.ema_step + updated)
        for average, v in zip(self.ema_network.weights, self.network.weights, strict=True):
            move(average, 1.0 - keep, average - v)

    def fit(self, x=None, y=None, batch_size=None, epochs=1, *, validation_data=None, sample_weight=None, **kwargs):
        """Train as ``keras.Model.fit`` does, on images and their conditions; returns the History.

        ``x`` holds images (N, H, W, C), uint8 or floats in [-1, 1], and ``y`` their conditions: {name: array}, the
        array alone where the network has one, or captions for a model with an encoder. Or ``x`` is a tf.data.Dataset,
        PyDataset, torch DataLoader or generator of such batches, their texts encoded: images, (images, conditions) or
        (images, conditions, weights). `image_folder`, `image_stream` and `Redrawn` keep to an order of their own, which
        their seed decides.

        Raises ValueError where they do not fit the network, before any training; for a dataset, before the batch at
        fault is trained on.
        """
        if is_array(x) and kwargs.get("class_weight") is not None:
            raise ValueError("class_weight is not taken: give sample_weight, a number for each image.")
        if hasattr(x, "set_epoch"):  # it shuffles itself, and may read ahead what comes next in its own order
            kwargs.setdefault("shuffle", False)
        x, y, sample_weight = self.named_inputs.prepare(x, y, sample_weight)
        self.named_inputs.check_batches(x, batch_size)
        if validation_data is not None:
            held = validation_data if isinstance(validation_data, tuple | list) else (validation_data,)
            if not 1 <= len(held) <= 3:
                raise ValueError(f"validation_data must be (images, conditions, weights), got {len(held)} parts.")
            held = self.named_inputs.prepare(*held)
            self.named_inputs.check_batches(held[0], kwargs.get("validation_batch_size") or batch_size)
            validation_data = held[0] if held[1] is None and held[2] is None and not is_array(held[0]) else held
        check_end(x, kwargs.get("steps_per_epoch"), "steps_per_epoch")
        check_end(validation_data, kwargs.get("validation_steps"), "validation_steps")
        if not is_array(x) and getattr(x, "num_batches", None) is None:
            kwargs.setdefault("shuffle", False)  # or Keras warns that its own default does nothing
        options = {"validation_data": validation_data, "sample_weight": sample_weight, **kwargs}
        return self._guarded(super().fit, x, y, batch_size=batch_size, epochs=epochs, **options)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, **kwargs):
        """Train on one batch, of what ``fit`` takes as arrays, and checked as there."""
        if class_weight is not None:
            raise ValueError("class_weight is not taken: give sample_weight, a number for each image.")
        x, y, sample_weight = self.named_inputs.prepare(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """Compute the loss on one batch, of what ``evaluate`` takes as arrays, and checked as there."""
        x, y, sample_weight = self.named_inputs.prepare(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def evaluate(self, x=None, y=None, *, sample_weight=None, **kwargs):
        """Compute the loss on held-out images with the averaged weights, and with the same noise at every call.

        With ``drop`` also ``guidance_gap``, the root mean square by which the output changes when all that can be
        dropped is dropped, relative to the output's own: near zero where the conditions do nothing. Where several are
        dropped each on its own, the same of each alone, e.g. ``guidance_gap_prompt`` and ``guidance_gap_label``.
        """
        if not kwargs.get("_use_cached_eval_dataset"):  # given by fit, whose data have been checked
            x, y, sample_weight = self.named_inputs.prepare(x, y, sample_weight)
            self.named_inputs.check_batches(x, kwargs.get("batch_size"))
        self.attach()  # in the middle of fit, or what is assigned now would be lost
        state = self.val_noise.state
        state.assign(np.array([derived(self.seed, 1), 0], dtype=keras.backend.standardize_dtype(state.dtype)))
        return self._guarded(super().evaluate, x, y, sample_weight=sample_weight, **kwargs)

    def _guarded(self, method, *args, **kwargs):
        """Raise what went wrong in a data pipeline as it was raised there."""
        try:
            return method(*args, **kwargs)
        except Exception:
            failure, self.named_inputs.failure = self.named_inputs.failure, None
            if failure is None:
                raise
            raise failure from None

    def renew(self):
        """Forget what was compiled, as the network has other variables now; a compiled model gets a new optimizer."""
        self._steps.clear()
        self.train_function = self.test_function = self.predict_function = None
        if self.ema_network is not None:
            self.ema_step.assign(0)
        if self.compiled:
            self.compile_from_config(self.get_compile_config())

    # ---- saving ----------------------------------------------------------------------------------------------------

    def get_config(self):
        self.attach()  # the optimizer's configuration, written next, reads its learning rate
        network = keras.saving.serialize_keras_object(self.network)
        tables = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in TABLES}
        lists = {"weight": self.weight, "density": self.density}
        lists = {name: None if table is None else table.tolist() for name, table in lists.items()}
        null = {name: np.asarray(value).tolist() for name, value in self.dropping.given.items()}
        drop = dict(self.drop) if isinstance(self.drop, dict) else self.drop
        own = {"null": null, "drop": drop, "ema": self.ema, "remat": self.remat, "seed": self.seed}
        return {**super().get_config(), "network": network, **tables, **lists, **own}

    @classmethod
    def from_config(cls, config):
        parts = {k: keras.saving.deserialize_keras_object(config[k]) for k in ("network", *TABLES) if k in config}
        return cls(**{**config, **parts})


def _settle(network: keras.Model) -> None:
    """Freeze the parts of frozen layers: Keras does when one is set so, not when one is made from its configuration."""
    for layer in network._flatten_layers(include_self=False):
        if not layer.trainable:
            layer.trainable = True  # on TensorFlow, setting what is set already does nothing
            layer.trainable = False
