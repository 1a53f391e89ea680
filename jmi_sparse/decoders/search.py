"""Features found by the direction in which their decoder rows write."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmi.checks import flag, real_array, shown, whole_number
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.decoders.rows import decoders_of, unit
from jmi_sparse.formats.reading.decoders import Decoders


class Found(NamedTuple):
    """Features of several layers, the best first.

    Attributes:
      layers, ids: int32 ``[..., k]``; -1 where there are fewer features than k.
      scores: ``[..., k]``; -inf there.
    """

    layers: Any
    ids: Any
    scores: Any


def search_decoders(
    dictionaries: Any, directions: Any, *, target: int | None = None, k: int = 20, cosine: bool = True
) -> Found:
    """The features whose decoder rows point most along each direction.

    Each matrix is read once for all directions, one layer after the other, and only the ``k`` best leave the
    device. What a row points at is not what a feature does: later layers transform it, and it may be active
    nowhere.

    Source: candle-mi, ``score_features_by_decoder_projection``.

    Args:
      dictionaries: anything that has decoder rows, in memory or on disk; see `inject`.
      directions: ``[n, d]`` or ``[d]``, such as rows of the embedding or columns of the unembedding.
      target: the layer that is written; features of all layers that write into it compete. By default each
        layer's own; of per-layer dictionaries that is every feature.
      cosine: divide by both norms, so that long rows have no advantage.

    Returns:
      `Found`, ``[n, k]`` or ``[k]``.

    Raises:
      ArgumentError: directions of another width, or a layer into which nothing writes.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(4)
      >>> sae = jmi_sparse.Dictionary(eye, eye, jnp.zeros(4), jmi_sparse.ReLU(), jnp.zeros(4))
      >>> found = jmi_sparse.search_decoders({"blocks.3.hook_resid_post": sae}, eye[2], k=1)
      >>> int(found.layers[0]), int(found.ids[0]), float(found.scores[0])
      (3, 2, 1.0)
    """
    decoders, cosine, k = decoders_of(dictionaries), flag("cosine", cosine), whole_number("k", k, 1)
    given = jnp.asarray(real_array("directions", directions)).astype(decoders.dtype)
    if given.ndim not in (1, 2) or given.shape[-1] != decoders.d_out:
        raise ArgumentError(
            f"directions={shown(directions)}: give [n, {decoders.d_out}] or [{decoders.d_out}]"
        )
    wanted = given[None] if given.ndim == 1 else given
    if cosine:
        wanted = unit(wanted)
    best = Found(
        jnp.full((len(wanted), k), -1, jnp.int32),
        jnp.full((len(wanted), k), -1, jnp.int32),
        jnp.full((len(wanted), k), -jnp.inf, wanted.dtype),
    )
    for layer, at in _sources(decoders, target):
        best = _better(best, wanted, jnp.asarray(decoders.matrix(layer, at)), np.int32(layer), cosine)
    found = jax.tree.map(np.asarray, best)
    return Found(*(x[0] for x in found)) if given.ndim == 1 else found


def _sources(decoders: Decoders, target: int | None) -> list[tuple[int, int]]:
    """Layers that are read, each with the one that is written."""
    if target is None:
        return [(layer, layer) for layer in decoders.layers if layer in decoders.targets[layer]]
    target = whole_number("target", target, 0)
    found = [(layer, target) for layer in decoders.layers if target in decoders.targets[layer]]
    if not found:
        raise ArgumentError(f"target={target}: no feature writes into this layer")
    return found


@functools.partial(jax.jit, static_argnames="cosine")
@precise()
def _better(best: Found, directions: jax.Array, rows: jax.Array, layer: Any, cosine: bool) -> Found:
    """The best of those found so far and the rows ``[features, d]`` of one more layer."""
    k = best.ids.shape[-1]
    scores = directions @ (unit(rows) if cosine else rows).T
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
    values, ids = lax.top_k(scores, min(k, len(rows)))
    layers = jnp.full(ids.shape, layer, jnp.int32)
    pairs = zip(best, (layers, ids.astype(jnp.int32), values), strict=True)
    every = Found(*(jnp.concatenate(pair, axis=-1) for pair in pairs))
    _, order = lax.top_k(every.scores, k)
    return Found(*(jnp.take_along_axis(x, order, axis=-1) for x in every))


class Row(NamedTuple):
    """A feature's decoder row: the layer it is of, its id, the layer it writes in, and its score."""

    layer: int
    id: int
    target: int
    score: float


def best_rows(
    dictionaries: Any,
    direction: Any,
    *,
    targets: Sequence[int] | None = None,
    k: int = 20,
    cosine: bool = True,
) -> list[Row]:
    """The features one of whose rows points most along a direction ``[d]``, each once, the best first.

    `search_decoders` for each layer that is written: of a cross-layer transcoder, that layer counts for a
    feature in which it writes most along the direction.

    Args:
      targets: the layers that are written; by default all.

    Raises:
      ArgumentError: as `search_decoders`; several directions.

    Example:
      >>> import jax.numpy as jnp, jmi_sparse
      >>> eye = jnp.eye(4)
      >>> sae = jmi_sparse.Dictionary(eye, eye, jnp.zeros(4), jmi_sparse.ReLU(), jnp.zeros(4))
      >>> jmi_sparse.best_rows({"blocks.3.hook_resid_post": sae}, eye[2], k=1)
      [Row(layer=3, id=2, target=3, score=1.0)]
    """
    decoders = decoders_of(dictionaries)
    if np.ndim(real_array("direction", direction)) != 1:
        raise ArgumentError(f"direction={shown(direction)}: give one, [{decoders.d_out}]")
    if targets is not None and (isinstance(targets, str) or not isinstance(targets, Sequence)):
        raise ArgumentError(f"targets={shown(targets)}: give layers, [3, 4]")
    every = sorted({target for each in decoders.targets.values() for target in each})
    best: dict[tuple[int, int], Row] = {}
    for target in every if targets is None else targets:
        found = search_decoders(decoders, direction, target=target, k=k, cosine=cosine)
        for layer, feature, score in zip(*found, strict=True):
            row = Row(int(layer), int(feature), int(target), float(score))
            known = best.get(row[:2])
            if feature >= 0 and (known is None or row.score > known.score):
                best[row[:2]] = row
    return sorted(best.values(), key=lambda row: -row.score)[:k]
