"""Keras's AdamW in fewer operations on TensorFlow, and Muon for convolutions as well as matrices."""

import math

import keras
from keras import ops

# On torch a class of its own, which moves all variables at once. Not made whole: that would initialise the devices.
KERAS = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


def move(variable, share, along):
    """Subtract ``share * along``, a scalar and a tensor, from a variable; on TensorFlow in one kernel."""
    if keras.backend.backend() == "tensorflow" and keras.backend.standardize_dtype(variable.dtype) == "float32":
        import tensorflow as tf

        if not _has_strategy():
            share, along = (tf.convert_to_tensor(v, "float32") for v in (share, along))
            tf.raw_ops.ResourceApplyGradientDescent(var=_handle(variable), alpha=share, delta=along)
            return
    variable.assign(variable - ops.cast(share, variable.dtype) * along)


def _handle(variable):
    return variable.value.handle if isinstance(variable, keras.Variable) else variable.handle


def _has_strategy():
    import tensorflow as tf

    return tf.distribute.has_strategy()


@keras.saving.register_keras_serializable("unet_keras")
class AdamW(KERAS):
    """``keras.optimizers.AdamW``: Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    The same options, and the same numbers to rounding. On TensorFlow one kernel moves both moments and the variable,
    where Keras takes twelve operations (benchmarks/README.md), and the rows of an embedding that a batch meets twice
    are summed before they are squared, as on JAX and torch. With ``amsgrad``, and for variables other than float32, it
    is Keras's own. JAX fuses the operations itself, and on torch Keras groups them.
    """

    def update_step(self, gradient, variable, learning_rate):
        fused = keras.backend.backend() == "tensorflow" and not self.amsgrad
        if not fused or keras.backend.standardize_dtype(variable.dtype) != "float32":
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        index = self._get_variable_index(variable)
        moments = (self._momentums[index], self._velocities[index])
        var, m, v = map(_handle, (variable, *moments))
        step = ops.cast(self.iterations + 1, "float32")
        tf.raw_ops.ResourceApplyAdam(
            var=var,
            m=m,
            v=v,
            beta1_power=ops.power(ops.cast(self.beta_1, "float32"), step),
            beta2_power=ops.power(ops.cast(self.beta_2, "float32"), step),
            lr=ops.cast(learning_rate, "float32"),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.convert_to_tensor(gradient, "float32"),  # an embedding's gradient holds the rows it met
        )

    def _apply_weight_decay(self, variables):
        """Keras takes three operations on TensorFlow. Under a strategy, Keras's own, which moves each copy."""
        if self.weight_decay is None or keras.backend.backend() != "tensorflow" or _has_strategy():
            super()._apply_weight_decay(variables)
            return
        for variable in variables:
            if self._use_weight_decay(variable):
                move(variable, ops.cast(self.learning_rate, "float32") * self.weight_decay, variable)


SMALLEST = 16
"""The fewest channels, in and out, of a kernel that Muon moves: the first and the last layer of a U-Net have fewer."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""What brings the singular values of a matrix near to 1 in five steps (Jordan et al. 2024)."""


@keras.saving.register_keras_serializable("unet_keras")
class Muon(AdamW):
    """AdamW, but for kernels of dense layers and convolutions, whose momentum is made orthogonal (Jordan et al. 2024).

    The step is as long as AdamW's would be (Liu et al. 2025, equation 4), so that its learning rates serve. A
    convolution's kernel (h, w, in, out) is taken as the matrix (h * w * in, out); ``keras.optimizers.Muon`` leaves
    those to AdamW, which of a U-Net is nearly all. Variables of another name than ``kernel``, kernels of other ranks,
    and those of fewer than 16 channels in or out are moved by AdamW. What is moved by Muon keeps one moment, not two.

    momentum        of the kernels, in Nesterov's form
    exclude         parts of the paths of variables that AdamW is to move as well, e.g. ("bridge",)
    options         AdamW's

    Raises ValueError for a momentum outside [0, 1), for ``exclude`` that is no list of texts, and, once the variables
    are known, for a text that no path holds.
    """

    def __init__(self, learning_rate=0.001, *, momentum=0.95, exclude=(), **options):
        super().__init__(learning_rate, **options)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
        listed = isinstance(exclude, list | tuple) and all(isinstance(part, str) and part for part in exclude)
        if not listed:
            raise ValueError(f"exclude must be a list of texts, parts of variables' paths, got {exclude!r}.")
        self.momentum, self.exclude = momentum, tuple(exclude)

    def build(self, variables):
        """Make the optimizer's own variables. Raises ValueError where ``exclude`` names none of those to move."""
        paths = [v.path for v in variables]
        unknown = [part for part in self.exclude if not any(part in path for path in paths)]
        if unknown:
            raise ValueError(f"exclude names {unknown}, in no variable's path: they are such as {paths[:3]}.")
        self._matrices = [self._is_matrix(v) for v in variables]
        super().build(variables)

    def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
        """Make a variable of a variable's shape; none for the second moment of what Muon moves, which needs none."""
        if name in ("velocity", "velocity_hat") and self._is_matrix(reference_variable):
            return None
        return super().add_variable_from_reference(reference_variable, name, initializer)

    def _is_matrix(self, variable):
        shape, excluded = variable.shape, any(part in variable.path for part in self.exclude)
        return variable.name == "kernel" and len(shape) in (2, 4) and min(shape[-2:]) >= SMALLEST and not excluded

    def _moves(self, variable):
        return self._matrices[self._get_variable_index(variable)]

    def update_step(self, gradient, variable, learning_rate):
        if not self._moves(variable):
            super().update_step(gradient, variable, learning_rate)
            return
        gradient, rate = (ops.cast(x, variable.dtype) for x in (gradient, learning_rate))
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.momentum * momentum + gradient)
        ahead = ops.reshape(gradient + self.momentum * momentum, (-1, variable.shape[-1]))
        step = orthogonal(ahead) * (0.2 * math.sqrt(max(ahead.shape)))
        self.assign_sub(variable, rate * ops.reshape(step, variable.shape))

    def _parallel_update_step(self, gradients, variables, learning_rate):
        """Torch's way: kernels one by one, the rest at once."""
        rest = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if self._moves(variable):
                self.update_step(gradient, variable, learning_rate)
            else:
                rest.append((gradient, variable))
        if rest:
            super()._parallel_update_step(*zip(*rest, strict=True), learning_rate)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum, "exclude": list(self.exclude)}


def orthogonal(matrix, steps: int = 5):
    """Bring a matrix's singular values near to 1, from 0.7 to 1.2, by Newton-Schulz iteration (Jordan et al. 2024)."""
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else ops.transpose(matrix)
    x = x / (ops.norm(x) + 1e-7)
    for _ in range(steps):
        square = ops.matmul(x, ops.transpose(x))
        x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
    return x if wide else ops.transpose(x)
