"""Patched runs of a small model, written by hand: plain numpy says what is put where."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi import metrics
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree

CORRUPTED = np.random.default_rng(0).integers(0, 29, (2, 5)).astype(np.int32)
CLEAN = np.random.default_rng(1).integers(0, 29, (2, 5)).astype(np.int32)
MEASURES = {"diff": metrics.LogitDiff([3, 5], 7), "rank": metrics.Rank([1, 2])}


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        arch = tiny(n_layers=3)
        return jmi.LanguageModel(arch, lively(arch, jnp.float64), name="tiny")


@jmi.tree.dataclass
class Write:
    values: Any
    mask: Any

    def __call__(self, value: jax.Array, site: Any) -> jax.Array:
        return jnp.where(self.mask, self.values, value)


def by_hand(
    lm: jmi.LanguageModel, tokens: Any, point: str, put: Any, layers: Any, **where: Any
) -> np.ndarray:
    """Logits ``[b, vocab]`` of a run in which plain numpy wrote ``put`` at ``where`` of some layers."""
    site = lm.arch.sites()[point]
    axes = {
        "row": "batch",
        "position": "pos" if "pos" in site.axes else "query",
        "head": "head" if "head" in site.axes else "kv_head",
        "unit": site.axes[-1],
    }
    index = [np.arange(n) for n in site.shape(*tokens.shape)]
    for axis, chosen in where.items():
        index[site.axes.index(axes[axis])] = np.atleast_1d(chosen)
    value = np.asarray(lm.run(tokens, capture=[point]).stack(point.removeprefix("blocks.*.")))
    mask = np.zeros(value.shape[1:], bool)
    mask[np.ix_(*index)] = True

    hooks = {point.replace("*", str(i)): Write(put[i], mask) for i in layers}
    return np.asarray(lm.run(tokens, hooks).logits[:, -1])


def diff(logits: np.ndarray) -> np.ndarray:
    return logits[[0, 1], [3, 5]] - logits[:, 7]


def captured(lm: jmi.LanguageModel, tokens: Any, point: str) -> np.ndarray:
    return np.asarray(lm.run(tokens, capture=[point]).captures[point])


# Differences of logits, which are about 1 in size or larger.
same = functools.partial(assert_agree, scale=1.0)
