"""The tokens nearest to what each feature writes, feature after feature of whole dictionaries."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmi.checks import real_array, shown, whole_array, whole_number
from jmi.engine.forward import precise
from jmi.errors import ArgumentError
from jmi_sparse.decoders.rows import decoders_of, unit
from jmi_sparse.formats.reading.decoders import Decoders


class Nearest(NamedTuple):
    """The tokens nearest to each feature of one layer.

    Attributes:
      layer: that is read.
      features: int32 ``[n]``.
      tokens: int32 ``[n, k]``.
      cosines: ``[n, k]``, descending.
    """

    layer: int
    features: Any
    tokens: Any
    cosines: Any


def vocab_scan(
    dictionaries: Any,
    vocabulary: Any,
    *,
    layers: Sequence[int] | None = None,
    target: int | None = None,
    step: int = 1,
    k: int = 20,
    chunk: int = 4096,
) -> Iterator[Nearest]:
    """The tokens whose vectors point most along each feature's decoder row, layer after layer.

    A stream: of each layer the result comes as soon as it is there, and no more than ``chunk`` rows times the
    vocabulary are held.

    Source: candle-mi's ``vocab_scan``, which reads rows into the last layer and the embedding.

    Args:
      dictionaries: anything that has decoder rows, in memory or on disk; see `inject`.
      vocabulary: ``[vocab, d]``: the embedding, or the unembedding turned (``W_U.T``).
      layers: those to scan; by default all.
      target: of a cross-layer transcoder, the layer whose rows are taken; by default the last that a layer
        writes into.
      step: take each so many-th feature.
      chunk: features at a time.

    Raises:
      ArgumentError: a vocabulary of another width, or a layer that is not there.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> scan = jmi_sparse.vocab_scan({"blocks.2.hook_resid_post": sae}, lm.params["embed"]["W_E"], k=3)
      >>> next(scan).tokens.shape
      (512, 3)
    """
    decoders, k, chunk = decoders_of(dictionaries), whole_number("k", k, 1), whole_number("chunk", chunk, 1)
    words = jnp.asarray(real_array("vocabulary", vocabulary)).astype(decoders.dtype)
    if words.ndim != 2 or words.shape[1] != decoders.d_out or k > len(words):
        raise ArgumentError(
            f"vocabulary={shown(vocabulary)}: give [vocab, {decoders.d_out}], k tokens or more"
        )
    asked = decoders.layers if layers is None else tuple(np.asarray(whole_array("layers", layers)).tolist())
    if not set(asked) <= set(decoders.layers):
        raise ArgumentError(f"layers={shown(layers)}: there are decoders of {list(decoders.layers)}")
    ids = np.arange(0, decoders.n_features, whole_number("step", step, 1), dtype=np.int32)
    return _scanned(decoders, unit(words), asked, target, ids, k, chunk)


def _scanned(
    decoders: Decoders, words: jax.Array, layers: Any, target: int | None, ids: np.ndarray, k: int, chunk: int
) -> Iterator[Nearest]:
    for layer in layers:
        at = decoders.targets[layer][-1] if target is None else target
        tokens, cosines = [], []
        for first in range(0, len(ids), chunk):
            some = ids[first : first + chunk]
            # Filled up, so that the last chunk compiles nothing.
            rows = np.pad(decoders.rows(layer, some, at), ((0, chunk - len(some)), (0, 0)))
            values, found = _nearest(jnp.asarray(rows), words, k)
            tokens.append(np.asarray(found)[: len(some)])
            cosines.append(np.asarray(values)[: len(some)])
        yield Nearest(layer, ids, np.concatenate(tokens), np.concatenate(cosines))


@functools.partial(jax.jit, static_argnames="k")
@precise()
def _nearest(rows: jax.Array, words: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    values, ids = lax.top_k(unit(rows) @ words.T, k)
    return values, ids.astype(jnp.int32)
