"""What ``compile`` takes, in the form that trains and saves alike on every backend."""

import keras


class FunctionLoss(keras.losses.Loss):
    """A loss function as a Loss object, which takes weights."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, y_true, y_pred):
        found = self.function(y_true, y_pred)
        if len(found.shape) != 1:
            raise ValueError(
                f"loss must give one number an example, (B,), got the shape {tuple(found.shape)}: average over the "
                "last axis alone, or the weights of examples and timesteps would count for nothing."
            )
        return found


def as_loss(loss):
    """Make a Loss object of what ``compile`` takes: None, a name, a function (target, output) or a Loss."""
    loss = keras.losses.MeanSquaredError() if loss is None else keras.losses.get(loss)
    if getattr(loss, "reduction", "mean") in (None, "none"):
        raise ValueError("loss must average or add up, to be trained on, and its reduction is None: leave that out.")
    return loss if isinstance(loss, keras.losses.Loss) else FunctionLoss(loss)


def weighted_mean(values, sample_weight=None):
    """Average the values of examples (B,) as Keras averages losses: weighted, and scaled for replicas."""
    return FunctionLoss(lambda values, _: values)(values, values, sample_weight)


def portable(config):
    """Name optimizers by Keras's public module: on torch it writes torch's own, which no other backend can run."""
    if not isinstance(config, dict):
        return config
    config = {key: portable(value) for key, value in config.items()}
    if str(config.get("module")).startswith("keras.src.backend."):
        config["module"] = "keras.optimizers"
    return config
