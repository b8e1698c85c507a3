"""Conditions that are left out: what stands in their place, and how often training puts it there.

A model learns what "none" means by seeing it (Ho & Salimans 2022, section 3.2); guidance then leads away from it.
"""

import keras
import numpy as np
from keras import ops

from unet_keras.diffusion.inputs import Inputs, check_condition
from unet_keras.diffusion.replicas import Share


class Dropping:
    """The conditions of a model that may be dropped.

    null      {name: one example's array}, what stands for "none"; that of a prompt is the empty one
    drop      probability with which all of them are dropped together; or {name: probability}, each on its own, where
              "prompt" names all that the encoder gives
    """

    def __init__(self, named_inputs: Inputs, null: dict, drop):
        prompt = named_inputs.encoder([""]) if named_inputs.encoder is not None else {}
        self.given = null
        self.null = {name: np.asarray(value[0]) for name, value in prompt.items()} | {
            name: np.asarray(value) for name, value in null.items()
        }
        self._inputs = named_inputs
        self._check(drop, tuple(prompt))
        together = drop if isinstance(drop, dict) else {tuple(self.null): drop}
        named = {"prompt": tuple(prompt)} if isinstance(drop, dict) else {}
        self.shares = {named.get(k, k if isinstance(k, tuple) else (k,)): p for k, p in together.items() if p}
        """{names dropped together: probability}."""

    def _check(self, drop, prompt):
        each = isinstance(drop, dict)
        unknown = sorted(set(drop) - set(self.null) - ({"prompt"} if prompt else set())) if each else []
        if unknown:
            raise ValueError(f"drop names {unknown}, which have no null: give null={{name: one example's array}}.")
        shares = drop.values() if each else [drop]
        if not all(0 <= share <= 1 for share in shares) or (any(shares) and not self.null):
            raise ValueError(f"drop must lie in [0, 1] and needs null conditions, got drop={drop}, null={self.given}.")
        if set(self.null) - set(self._inputs.conditions) or (self.null and not each):
            self._inputs.check_names(self.null)
        for name, value in self.null.items():
            check_condition(name, value[None], self._inputs.conditions[name], 1)

    @property
    def learned(self) -> dict:
        """The nulls that training has put in a condition's place: those that guidance can lead away from."""
        return {name: self.null[name] for names in self.shares for name in names}

    def dropped(self, conditions: dict, share: Share, generator) -> dict:
        """Put nulls in the place of a random choice of a batch's conditions, being traced."""
        for names, probability in self.shares.items():
            drawn = share.rows(lambda n: keras.random.uniform((n,), dtype="float32", seed=generator))
            chosen = drawn < probability
            conditions = conditions | {name: self._or_null(name, conditions[name], chosen) for name in names}
        return conditions

    def without(self, inputs: dict) -> dict:
        """Put nulls in the place of all that training drops."""
        all_of_them = ops.ones((ops.shape(inputs["image"])[0],), "bool")
        return inputs | {name: self._or_null(name, inputs[name], all_of_them) for name in self.learned}

    def _or_null(self, name, value, chosen):
        dtype = self._inputs.conditions[name].dtype
        value, null = ops.cast(value, dtype), ops.convert_to_tensor(self.null[name], dtype)
        return ops.where(ops.reshape(chosen, (-1,) + (1,) * (len(value.shape) - 1)), null, value)
