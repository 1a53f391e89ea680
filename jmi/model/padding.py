"""Where the real tokens of padded rows stand. A position names a real token; arrays keep the padded axis.

The p-th real token of a row stands at one of its *places*; a negative p counts from the row's last real
token. Axis letters: b batch, s places of the padded axis, n positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import as_array, shown
from jmi.errors import ArgumentError


def numbers(mask: Any) -> jax.Array:
    """Which real token of its row stands at each place, int32 ``[b, s]``; at padding s, which no row has."""
    mask = jnp.asarray(mask)
    return jnp.where(mask, jnp.cumsum(mask, -1, dtype=jnp.int32) - 1, mask.shape[-1])


def named(index: Any, size: int, mask: Any = None) -> jax.Array:
    """Bool ``[(b,) n, size]``: where each of ``index`` ``[n]`` or ``[b, n]`` stands; without mask, places."""
    index = jnp.asarray(index)
    if mask is None:
        index = jnp.where(index < 0, index + size, index)
        index = index[None] if index.ndim == 0 else index
        every = jnp.expand_dims(jnp.arange(size, dtype=index.dtype), range(index.ndim))
        return index[..., None] == every
    index = _counted(index, mask)
    return (index[..., None] == numbers(mask).astype(index.dtype)[:, None]) & jnp.asarray(mask)[:, None]


def places(index: Any, mask: Any) -> jax.Array:
    """Places int32 ``[b, n]`` of the tokens ``index``, ``[n]`` or ``[b, n]``; s where a row has none such."""
    mask = jnp.asarray(mask)
    index = _counted(jnp.asarray(index), mask)
    seen = jnp.cumsum(mask, -1, dtype=index.dtype)
    # As many places as lie before the token have seen no more than the tokens before it.
    found = (seen[:, None] <= index[..., None]).sum(-1, dtype=jnp.int32)
    return jnp.where(index < 0, mask.shape[-1], found)


def place_of(index: Any, mask: Any) -> jax.Array:
    """Place int32 ``[b]`` of one token of each row, ``index`` being one or ``[b]``; s where it has none."""
    return places(jnp.asarray(index).reshape(-1, 1), mask)[:, 0]


def _counted(index: jax.Array, mask: Any) -> jax.Array:
    """``index`` ``[b, n]`` counted from the first real token of each row; negative where there is none."""
    index = index if index.ndim == 2 else index.reshape(1, -1)
    count = jnp.asarray(mask).sum(-1, keepdims=True, dtype=index.dtype)
    return jnp.where(index < 0, index + count, jnp.broadcast_to(index, (count.shape[0], index.shape[1])))


def take(x: jax.Array, index: Any, axis: int, batch: int = 0, fill: Any = None) -> jax.Array:
    """``x`` at the places ``index`` ``[b, n]`` of ``axis``; NaN, or ``fill``, where it has none."""
    shape = [1] * x.ndim
    shape[batch], shape[axis] = index.shape
    return jnp.take_along_axis(x, jnp.asarray(index).reshape(shape), axis, mode="fill", fill_value=fill)


def first_places(mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """The lowest place over rows of each position 0 to s - 1, and of -s to -1; s where no row has it."""
    mask = np.asarray(mask)
    size, count = mask.shape[-1], mask.sum(-1, keepdims=True)
    order = np.argsort(~mask, axis=-1, kind="stable")
    every = np.arange(size)[None]
    ahead = np.where(every < count, order, size)
    number = every - size + count
    behind = np.where(number >= 0, np.take_along_axis(order, np.maximum(number, 0), -1), size)
    return ahead.min(0), behind.min(0)


def check_token(name: str, index: Any, shape: tuple[int, int], mask: Any) -> Any:
    """``index`` as int32, found to be a token of every row of ``shape`` (batch, pos), as far as is known.

    Raises:
      ArgumentError: it is no integer, nor one for each row, or a row has no such token.
    """
    if isinstance(index, jax.core.Tracer):
        return index
    given = np.asarray(as_array(name, index))
    if not np.issubdtype(given.dtype, np.integer) or given.shape not in ((), shape[:1]):
        raise ArgumentError(
            f"{name}={shown(index)}: use one position, or one for each of the {shape[0]} rows"
        )
    if given.min() < -shape[1] or given.max() >= shape[1]:
        raise ArgumentError(
            f"{name}={shown(index)}: there are {shape[1]} positions ({-shape[1]} to {shape[1] - 1})"
        )
    if mask is not None and not isinstance(mask, jax.core.Tracer):
        count = np.asarray(mask).sum(-1)
        absent = np.flatnonzero((given < -count) | (given >= count))
        if absent.size:
            row = absent[0]
            raise ArgumentError(
                f"{name}={shown(index)}: row {row} has {count[row]} tokens beside its padding, not that"
            )
    return given.astype(np.int32)
