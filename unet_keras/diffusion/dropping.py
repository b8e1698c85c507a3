"""Conditions that are left out: what stands in their place, and how often training puts it there.

A model learns what "none" means by seeing it (Ho & Salimans 2022, section 3.2); guidance then leads away from it.
"""

from numbers import Real

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
        alone = {"prompt" if names == tuple(prompt) else names[0]: names for names in self.shares}
        every = {"guidance_gap": tuple(self.learned)} if self.shares else {}
        self.groups = every | {f"guidance_gap_{k}": names for k, names in alone.items() if len(alone) > 1}
        """{metric: names}: what is dropped to see how far the output moves: all and, where they are several, each."""

    def _check(self, drop, prompt):
        each = isinstance(drop, dict)
        unknown = sorted(set(drop) - set(self.null) - ({"prompt"} if prompt else set())) if each else []
        if unknown:
            raise ValueError(f"drop names {unknown}, which have no null: give null={{name: one example's array}}.")
        shares = drop.values() if each else [drop]
        numbers = all(isinstance(share, Real | np.generic) for share in shares)
        if not numbers or not all(0 <= share <= 1 for share in shares) or (any(shares) and not self.null):
            raise ValueError(f"drop must lie in [0, 1] and needs null conditions, got drop={drop}, null={self.given}.")
        part = sorted(set(drop) & set(prompt)) if each else []
        if part:
            raise ValueError(f'drop names {part}, part of what the encoder gives: name "prompt", for all of it.')
        if set(self.null) - set(self._inputs.conditions):
            self._inputs.check_names(self.null)
        without = sorted(set(self._inputs.conditions) - set(self.null))
        if without and any(shares) and not each:
            raise ValueError(
                f"drop={drop} drops all conditions together, and {without} have no null: give null={{name: one "
                "example's array}, or drop={name: probability} of those that have one."
            )
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

    def without(self, inputs: dict, names) -> dict:
        """Put nulls in the place of some conditions of every image."""
        all_of_them = ops.ones((ops.shape(inputs["image"])[0],), "bool")
        return inputs | {name: self._or_null(name, inputs[name], all_of_them) for name in names}

    def _or_null(self, name, value, chosen):
        dtype = self._inputs.conditions[name].dtype
        value, null = ops.cast(value, dtype), ops.convert_to_tensor(self.null[name], dtype)
        if None not in value.shape[1:] and tuple(value.shape[1:]) != tuple(null.shape):
            raise ValueError(
                f"condition {name!r} is {tuple(value.shape[1:])} for an image and its null {tuple(null.shape)}: bring "
                "both to one length."
            )
        return ops.where(ops.reshape(chosen, (-1,) + (1,) * (len(value.shape) - 1)), null, value)
