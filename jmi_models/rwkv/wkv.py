"""The recurrences of RWKV-6 and RWKV-7: a matrix for each head, rewritten at every token.

Axis letters: b batch, s sequence, q queries, h heads, k key channels, v value channels. A state is
``[b, h, k, v]``. Both versions are one recurrence. With ``S`` the state, at every token

    S <- diag(decay) S + add (remove^T S) + write key^T value

where RWKV-6 has no ``add`` and ``remove``. RWKV-7 reads ``y = receptance S`` afterwards. RWKV-6 reads
before, and the token itself through ``bonus`` in place of its write. Everything is in at least float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Edit = Callable[[jax.Array, jax.Array], jax.Array]
"""``(state, step) -> state``: what hooks make of the state after a token."""


class Inputs(NamedTuple):
    """What the recurrence reads, in at least float32.

    Attributes:
      receptance, key, decay: ``[b, s, h, k]``; the decay is a factor in (0, 1).
      value: ``[b, s, h, v]``.
      write: ``[b, s, h]``, how much of each token is written: 1, or 0 for one that leaves no trace.
      remove, add: ``[b, s, h, k]`` of RWKV-7, else None.
      bonus: ``[h, k]`` of RWKV-6, else None.
    """

    receptance: jax.Array
    key: jax.Array
    decay: jax.Array
    value: jax.Array
    write: jax.Array
    remove: jax.Array | None = None
    add: jax.Array | None = None
    bonus: jax.Array | None = None


class Outputs(NamedTuple):
    """``y`` ``[b, s, h, v]``, the final state, and per token the states before and after edits, or None."""

    y: jax.Array
    state: jax.Array
    arrived: jax.Array | None
    states: jax.Array | None


def scan(x: Inputs, state: jax.Array, edit: Edit | None = None, keep: bool = False) -> Outputs:
    """One token after another, from ``state``.

    Args:
      edit: applied to the state after every token.
      keep: return the state after every token, too.
    """

    def step(S: jax.Array, xs: tuple[Inputs, jax.Array]) -> tuple[jax.Array, Any]:
        t, index = xs
        written = (t.write[..., None] * t.key)[..., None] * t.value[..., None, :]
        if x.bonus is not None:
            y = _row(t.receptance, S) + _own(t, x.bonus)[..., None] * t.value
        S = t.decay[..., None] * S + _rank_one(t, S) + written
        arrived = S if keep else None
        S = S if edit is None else edit(S, index)
        if x.bonus is None:
            y = _row(t.receptance, S)
        return S, (y, arrived, S if keep else None)

    # Time first: a step then reads one contiguous row of each input.
    by_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), x._replace(bonus=None))
    steps = jnp.arange(x.key.shape[1], dtype=jnp.int32)
    state, rows = jax.lax.scan(step, state, (by_time, steps))
    y, arrived, states = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), rows)
    return Outputs(y, state, arrived, states)


def _row(row: jax.Array, S: jax.Array) -> jax.Array:
    """``row S``. As a dot: on CPU the loop that XLA makes of a product and a sum is 20 times slower."""
    return jnp.einsum("bhk,bhkv->bhv", row, S)


def _own(t: Inputs, bonus: jax.Array) -> jax.Array:
    """How much RWKV-6 reads of the token itself, ``[b, h]``."""
    return (t.receptance * bonus[None] * t.key).sum(-1)


def _rank_one(t: Inputs, S: jax.Array) -> jax.Array | float:
    if t.remove is None or t.add is None:
        return 0.0
    return t.add[..., None] * _row(t.remove, S)[..., None, :]


def attention(x: Inputs) -> jax.Array:
    """How much of each earlier token's value ``y`` holds: ``[b, h, query, key]``, lower-triangular.

    From a zero state ``attention @ value`` is ``y``, exactly. Each receptance is carried backwards in
    time through the transposed recurrence, all queries at once, and met with the key of every token.
    """
    n = x.key.shape[1]
    queries = jnp.arange(n, dtype=jnp.int32)

    def step(rows: jax.Array, xs: tuple[Inputs, jax.Array]) -> tuple[jax.Array, jax.Array]:
        t, j = xs
        own, later = (queries == j)[None, :, None], (queries > j)[None, :, None]
        seen = (own | later)[..., None]
        rows = jnp.where(own[..., None], x.receptance, rows)
        weight = jnp.einsum("bqhk,bhk->bqh", rows, t.key) * t.write[:, None]
        if x.bonus is not None:
            weight = jnp.where(own, _own(t, x.bonus)[:, None], weight)
            seen = later[..., None]
        back = rows * t.decay[:, None]
        if t.remove is not None and t.add is not None:
            back = back + jnp.einsum("bqhk,bhk->bqh", rows, t.add)[..., None] * t.remove[:, None]
        return jnp.where(seen, back, rows), jnp.where(own | later, weight, 0)

    by_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), x._replace(bonus=None))
    _, weights = jax.lax.scan(step, jnp.zeros_like(x.receptance), (by_time, queries), reverse=True)
    return jnp.transpose(weights, (1, 3, 2, 0))
