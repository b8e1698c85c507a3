"""Functions in saved models: by the name that they are registered under, and nothing that has none."""

import keras


def serialized(function) -> dict | str:
    """Give what Keras writes for a function, or an object that is one.

    Raises ValueError where it is not registered: Keras would write its bare name, and load any function of that name.
    """
    if ">" not in keras.saving.get_registered_name(function if hasattr(function, "__name__") else type(function)):
        raise ValueError(
            f"{function!r:.100} cannot be saved: decorate it with "
            "keras.saving.register_keras_serializable('my_package'), so that it can be loaded again."
        )
    return keras.saving.serialize_keras_object(function)
