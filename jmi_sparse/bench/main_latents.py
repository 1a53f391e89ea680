"""Main latents: those that stand for a concept, found by sparse probes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jmi.checks import real_number, whole_number
from jmi.engine.forward import precise
from jmi_sparse.bench.examples import balanced, checked, classes, labelled, split
from jmi_sparse.bench.probes import lasso
from jmi_sparse.bench.sparse_probing import first_few


class MainLatents(NamedTuple):
    """The latents that stand for each concept.

    Attributes:
      ids: int32 ``[tasks, most]``, the strongest first, -1 after the last.
      f1: ``[tasks, most]``, on the test examples, of the probes on the first 1, 2, ... latents.
    """

    ids: jax.Array
    f1: jax.Array


@precise()
def main_latents(
    features: Any,
    labels: Any,
    train: Any,
    *,
    most: int = 10,
    jump: float = 0.03,
    l1: float = 0.01,
    l2: float = 1.0,
) -> MainLatents:
    """The latents that stand for each concept: the first of a ranking, for as long as one more helps.

    Latents are ranked by their weight in a logistic regression on all of them with an L1 penalty (`lasso`);
    only positive weights count. The first k are read by a probe (`fit_probe`), for each k up to ``most``. The
    first latent is a main one, and each next one, as long as it raises F1 on the test examples by more than
    ``jump``: such concepts are split over several latents.

    Args:
      features: ``[n, features]``, in units of the length of their decoder rows (`Dictionary.fold_norms`).
      labels, train: as of `absorption`.
      most: largest number of main latents.
      jump: what F1 must rise by.
      l1: penalty of the ranking, on the scale of features.
      l2: penalty of the probes on the first k.

    Returns:
      Without an id in a task where no latent has a positive weight; F1 is NaN where a fit did not converge.

    Raises:
      ArgumentError: as `absorption`.

    Example:
      >>> import numpy as np
      >>> concept = np.arange(40) % 4 == 0
      >>> features = np.stack([np.ones(40), concept, np.arange(40) % 3 == 0], axis=1)
      >>> main_latents(features, concept[None], np.arange(40) < 20, most=2).ids.tolist()
      [[1, -1]]
    """
    train, features = checked(train, features=features)
    labels = labelled(labels, train)
    most = whole_number("most", most, 1)
    jump = real_number("jump", jump)
    l1, l2 = real_number("l1", l1, above=0), real_number("l2", l2, above=0)
    weights = lasso(features, labels, train, l1)
    highest, ids = lax.top_k(weights, min(most, features.shape[1]))
    f1 = _f1_by_count(features, labels, train, ids, highest, l2)
    helps = (f1[:, 1:] > f1[:, :-1] + jump) & (highest[:, 1:] > 0)
    kept = jnp.cumprod(jnp.concatenate([highest[:, :1] > 0, helps], axis=1), axis=1) > 0
    room = [(0, 0), (0, most - ids.shape[1])]
    ids = jnp.where(kept, ids.astype(jnp.int32), -1)
    return MainLatents(jnp.pad(ids, room, constant_values=-1), jnp.pad(f1, room, mode="edge"))


@jax.jit
def _f1_by_count(
    features: jax.Array,
    labels: jax.Array,
    train: jax.Array,
    ids: jax.Array,
    highest: jax.Array,
    l2: Any,
) -> jax.Array:
    """F1 ``[tasks, places]`` of probes on the first 1, 2, ... of ``ids``."""

    def one(task: tuple[jax.Array, ...]) -> jax.Array:
        y, ids, highest = task
        fit = balanced(split(classes(y), train)[0], features.dtype)
        chosen = jnp.where((highest > 0)[None], features[:, ids], 0)
        chosen = jnp.where(jnp.isnan(highest)[None], jnp.nan, chosen)
        return f1_of(first_few(chosen, y, fit, l2, 1 + jnp.arange(len(ids))), y[None], ~train[None])

    return lax.map(one, (labels, ids, highest))


def f1_of(logits: jax.Array, y: jax.Array, among: jax.Array) -> jax.Array:
    """``2 TP / (2 TP + FP + FN)`` ``[...]`` of ``logits`` ``[..., n]``; 0 without a true one, NaN of NaN."""
    said, true = (logits > 0) & among, y & among
    both = (said & true).sum(-1).astype(logits.dtype)
    either = (said.sum(-1) + true.sum(-1)).astype(logits.dtype)
    return jnp.where(jnp.isnan(logits).any(-1), jnp.nan, 2 * both / jnp.maximum(either, 1))
