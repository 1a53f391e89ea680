"""Weights as an axis of a sweep."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jmi.errors import ArgumentError
from jmi.lm import LanguageModel


@dataclasses.dataclass(frozen=True)
class Models:
    """A model with weights that have a leading axis, such as random initialisations by seed.

    `jmi.sweep` runs every cell in each of them, and its results have that axis first.

    Example:
      >>> import jax, jax.numpy as jnp, jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> several = [jmi_models.init(lm.arch, seed) for seed in range(3)]
      >>> models = jmi.Models(lm, jax.tree.map(lambda *x: jnp.stack(x), *several))
    """

    lm: LanguageModel
    params: Any


def check_stacked(one: Any, several: Any) -> None:
    """Raise ArgumentError where ``several`` are not weights like ``one`` with an axis of models in front."""
    structures = {jax.tree.structure(params) for params in (one, several)}
    before, shapes = ([np.shape(x) for x in jax.tree.leaves(params)] for params in (one, several))
    counts = {shape[0] if shape else 0 for shape in shapes}
    if (
        len(structures) != 1
        or len(counts) != 1
        or 0 in counts
        or shapes != [(*counts, *shape) for shape in before]
    ):
        raise ArgumentError(
            "jmi.Models: its params must be those of its model with one axis of models in front of each, as "
            "jax.tree.map(lambda *x: jnp.stack(x), *several) has it"
        )
