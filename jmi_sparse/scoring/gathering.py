"""Examples of features, kept on the device in fixed memory while a corpus streams past.

Rows are cut into windows of ``c`` tokens, one after the other. The peak of a window is its largest activation
by magnitude.

Axis letters: b batch, s places, w windows of a batch, c tokens of a window, k features, m places for windows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.engine.programs import compiled
from jmi_sparse.scoring.places import encoded

BINS = 64
"""Of a histogram, from 0 to the next power of two above the largest magnitude."""

_LEAST = -100
"""The least such power."""

EMPTY = -1
"""The number of no window; the rank of one in which nothing is active."""


@tree.dataclass
class Kept:
    """The windows of highest rank, of each feature.

    Attributes:
      rank: ``[k, m]``, highest first; `EMPTY` for none.
      window: int32 ``[k, m]``, which window of the corpus.
      acts: float32 ``[k, m, c]``.
    """

    rank: jax.Array
    window: jax.Array
    acts: jax.Array

    @staticmethod
    def none(k: int, m: int, c: int, dtype: Any) -> "Kept":
        """Places without windows."""
        empty = jnp.full((k, m), EMPTY, jnp.int32)
        return Kept(empty.astype(dtype), empty, jnp.zeros((k, m, c), jnp.float32))

    def with_more(self, rank: jax.Array, window: jax.Array, acts: jax.Array) -> "Kept":
        """The highest of these and of ``rank`` ``[k, w]``, ``window`` ``[w]``, ``acts`` ``[k, w, c]``."""
        window = jnp.where(rank == EMPTY, EMPTY, jnp.broadcast_to(window[None], rank.shape))
        ranks, at = jax.lax.top_k(jnp.concatenate([self.rank, rank], 1), self.rank.shape[1])
        windows = jnp.take_along_axis(jnp.concatenate([self.window, window], 1), at, 1)
        every = jnp.concatenate([self.acts, acts], 1)
        return Kept(ranks, windows, jnp.take_along_axis(every, at[..., None], 1))


@tree.dataclass
class Gathered:
    """What is known of some features of one site, over the tokens so far.

    Attributes:
      top: windows by their peaks.
      sample: windows in which the feature is active, each as likely as any other: those to which a hash of
        the seed, the window and the feature gives the highest ranks.
      counts: int32 ``[k]``, tokens on which each is active.
      low, high: ``[k]``, least and largest activation; infinite where there is none.
      histogram: int32 ``[k, BINS]``, of magnitudes.
      exponent: int32 ``[k]``: the histogram ends at two to this power.
    """

    top: Kept
    sample: Kept
    counts: jax.Array
    low: jax.Array
    high: jax.Array
    histogram: jax.Array
    exponent: jax.Array

    @staticmethod
    def nothing(k: int, n: int, sample: int, c: int) -> "Gathered":
        """Before the first batch."""
        return Gathered(
            Kept.none(k, n, c, jnp.float32),
            Kept.none(k, sample, c, jnp.int32),
            jnp.zeros(k, jnp.int32),
            jnp.full(k, jnp.inf, jnp.float32),
            jnp.full(k, -jnp.inf, jnp.float32),
            jnp.zeros((k, BINS), jnp.int32),
            jnp.full(k, _LEAST, jnp.int32),
        )


@compiled()
def chosen(dictionary: Any, x: Any, ids: Any, counted: jax.Array) -> dict[int, jax.Array]:
    """Activations float32 ``[b, s, k]``, 0 at what does not count, by the places of the sites that are read.

    Args:
      ids: place among those sites -> ids ``[k]``.
    """
    features = encoded(dictionary, x)
    return {
        i: jnp.where(counted[..., None], features[i][..., own], 0).astype(jnp.float32)
        for i, own in ids.items()
    }


@compiled()
def gather(so_far: Gathered, acts: jax.Array, ids: jax.Array, windows: jax.Array, key: jax.Array) -> Gathered:
    """``so_far`` with a batch of activations ``[b, s, k]`` of ``ids``, whose ``windows`` are ``[w]``."""
    cut = _windows(acts, so_far.top.acts.shape[-1])
    peak = jnp.abs(cut).max(-1)
    flat = acts.reshape(-1, acts.shape[-1]).T
    active = flat != 0
    exponent = jnp.maximum(so_far.exponent, jnp.frexp(jnp.abs(flat).max(1))[1].astype(jnp.int32))
    return Gathered(
        so_far.top.with_more(jnp.where(peak > 0, peak, EMPTY), windows, cut),
        so_far.sample.with_more(jnp.where(peak > 0, _hash(key, ids, windows), EMPTY), windows, cut),
        so_far.counts + active.sum(1, dtype=jnp.int32),
        jnp.minimum(so_far.low, jnp.where(active, flat, jnp.inf).min(1)),
        jnp.maximum(so_far.high, jnp.where(active, flat, -jnp.inf).max(1)),
        _histogram(so_far, jnp.abs(flat), exponent),
        exponent,
    )


@compiled()
def both_active(acts: tuple[jax.Array, ...]) -> jax.Array:
    """Int32 ``[k, k]``: tokens on which both of two features are active, of all ``acts`` ``[b, s, k']``."""
    every = jnp.concatenate(acts, -1)
    active = (every.reshape(-1, every.shape[-1]) != 0).astype(jnp.float32)
    # Whole numbers up to 2^24 are exact in float32, whatever the products are made in.
    return (active.T @ active).astype(jnp.int32)


def _windows(acts: jax.Array, c: int) -> jax.Array:
    """``[b, s, k]`` as ``[k, w, c]``, each row filled up with zeros."""
    filled = jnp.pad(acts, ((0, 0), (0, -acts.shape[1] % c), (0, 0)))
    return jnp.moveaxis(filled.reshape(-1, c, acts.shape[2]), 2, 0)


def _hash(key: jax.Array, ids: jax.Array, windows: jax.Array) -> jax.Array:
    """Int32 ``[k, w]``, 0 or more: of each feature and window, whatever batch it comes in."""

    def one(feature: jax.Array, window: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, feature), window)
        return (jax.random.bits(own) >> 1).astype(jnp.int32)

    return jax.vmap(lambda feature: jax.vmap(lambda window: one(feature, window))(windows))(ids)


def _histogram(so_far: Gathered, magnitudes: jax.Array, exponent: jax.Array) -> jax.Array:
    """Counts with the bins that ``exponent`` gives, and those of ``magnitudes`` ``[k, n]`` added.

    Bins end at powers of two, so wider ones are made of whole narrower ones.
    """
    rows = jnp.arange(len(exponent))[:, None]
    wider = jnp.minimum(exponent - so_far.exponent, 31)[:, None]
    moved = jnp.arange(BINS, dtype=jnp.int32)[None] >> wider
    counts = jnp.zeros_like(so_far.histogram).at[rows, moved].add(so_far.histogram)
    place = jnp.floor(jnp.ldexp(magnitudes, -exponent[:, None]) * BINS).astype(jnp.int32)
    return counts.at[rows, place].add((magnitudes > 0).astype(jnp.int32))
