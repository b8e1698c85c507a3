"""Keras's AdamW in fewer operations on TensorFlow; JAX and torch fuse or group them themselves."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("unet_keras")
class AdamW(keras.optimizers.AdamW):
    """``keras.optimizers.AdamW``: Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    The same options, and the same numbers to rounding. On TensorFlow one kernel moves both moments and the variable,
    where Keras takes twelve operations (benchmarks/README.md), and the rows of an embedding that a batch meets twice
    are summed before they are squared, as on JAX and torch. With ``amsgrad``, and for variables other than float32, it
    is Keras's own.
    """

    def update_step(self, gradient, variable, learning_rate):
        fused = keras.backend.backend() == "tensorflow" and not self.amsgrad
        if not fused or keras.backend.standardize_dtype(variable.dtype) != "float32":
            super().update_step(gradient, variable, learning_rate)
            return
        import tensorflow as tf

        index = self._get_variable_index(variable)
        moments = (self._momentums[index], self._velocities[index])
        var, m, v = (x.value.handle if isinstance(x, keras.Variable) else x.handle for x in (variable, *moments))
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
