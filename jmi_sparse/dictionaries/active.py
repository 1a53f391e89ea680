"""Features kept sparse: the ids and values of those that are active, and no others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jmi.checks import whole_number
from jmi.numerics import wide
from jmi_sparse.dictionaries.activations import largest

EMPTY = -1
"""The id of a place that holds no feature; its value is 0."""


class Sparse(NamedTuple):
    """Active features, the largest first, in a fixed number of places.

    Attributes:
      ids: int32 ``[..., capacity]``; -1 where fewer are active, with value 0.
      values: ``[..., capacity]``.
      overflowed: bool ``[...]``: more were active, and the smallest of them are left out.
    """

    ids: jax.Array
    values: jax.Array
    overflowed: jax.Array


def sparse(features: jax.Array, capacity: int) -> Sparse:
    """The ``capacity`` largest of dense features ``[..., features]``, by magnitude.

    Of equal ones the lower id is taken.
    """
    capacity = whole_number("capacity", capacity, 1)
    places = min(capacity, features.shape[-1])
    ids, values = largest(features, places, by_magnitude=True)
    active = (features != 0).sum(-1)
    return padded(ids, values, active > places, capacity)


def padded(ids: jax.Array, values: jax.Array, overflowed: jax.Array, capacity: int) -> Sparse:
    """``capacity`` places, those without a feature marked."""
    ids = jnp.where(values != 0, ids.astype(jnp.int32), EMPTY)
    room = [(0, 0)] * (ids.ndim - 1) + [(0, capacity - ids.shape[-1])]
    return Sparse(jnp.pad(ids, room, constant_values=EMPTY), jnp.pad(values, room), overflowed)


def written(ids: jax.Array, values: jax.Array, rows: jax.Array) -> jax.Array:
    """The sum of ``values`` times the ``rows`` ``[features, d]`` of their ``ids``, both ``[..., places]``.

    One place after the other: all rows at once would be ``places`` times as large as the sum.
    """
    lead, d = ids.shape[:-1], rows.shape[-1]
    ids, values = ids.reshape(-1, ids.shape[-1]), values.reshape(-1, values.shape[-1])

    dtype = wide(rows.dtype)

    def add(total: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        at, value = place
        return total + value[:, None] * rows[at].astype(dtype), None

    # Of no feature the value is 0, whatever row its id names.
    total, _ = lax.scan(add, jnp.zeros((len(ids), d), dtype), (ids.T, values.T.astype(dtype)))
    return total.astype(rows.dtype).reshape(*lead, d)
