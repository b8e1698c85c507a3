"""The one derivative that Keras has no name for: of a function's output along a direction, on each backend."""

import keras


def with_product(function, x, v):
    """Give function(x) and v^T J, J being the Jacobian of the function at x: one backward pass.

    ``function`` maps a tensor to one of the same shape, and so is v.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        value, backwards = jax.vjp(function, x)
        return value, backwards(v)[0]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value = function(x)
        return value, tape.gradient(value, x, output_gradients=v, unconnected_gradients="zero")
    if backend == "torch":
        import torch

        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = function(x)
            (product,) = torch.autograd.grad(value, x, v)
        return value.detach(), product
    raise ValueError(f"The derivative is known for tensorflow, jax and torch, not for {backend}.")
