"""What every layer of the decoder reads besides its weights: positions, masks, rotary tables, the past.

Axis letters: b batch, s/t sequence (t keys), g key/value heads, k head width, l layers, r rotary embeddings,
f rotary frequencies.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.model.inputs import Prompts
from jmi_models.decoder.rope import Rope

_NO_POSITION = 2**30
"""Beyond the end of any table."""


@tree.dataclass
class Context:
    """What every layer reads besides its weights.

    Attributes:
      positions: ``[1 or b, s]``, real tokens counted from 0.
      key_mask: ``[b, s]``, True at real tokens; None when all are.
      tables: cosine and sine ``[r, 1 or b, s, f]`` of each distinct rotary embedding, or None. All of
        these are of all tokens.
      first: the first token that is run, data.
      length: how many tokens are run, where these are not all; else None. Static.
      only: int32 ``[1 or b]``, where among the tokens that are run the one stands whose output is
        wanted; None when every output is.
    """

    positions: jax.Array
    key_mask: jax.Array | None
    tables: tuple[jax.Array, jax.Array] | None = None
    first: Any = 0
    only: jax.Array | None = None
    length: int | None = tree.static(default=None)

    def wanted(self, x: jax.Array) -> jax.Array:
        """Of ``x`` ``[1 or b, s, ...]``, made of the tokens that are run, what belongs to wanted outputs."""
        if self.only is None:
            return x
        index = self.only.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1, mode="fill")

    def places(self, length: int) -> jax.Array:
        """Where the ``length`` tokens that are run stand among all, int32 ``[1, s]``."""
        return (self.first + jnp.arange(length, dtype=jnp.int32))[None]

    def of_run(self, x: jax.Array) -> jax.Array:
        """Of ``x`` ``[1 or b, s, ...]``, made of all tokens, those that are run."""
        if self.length is None:
            return x
        return jax.lax.dynamic_slice_in_dim(x, self.first, self.length, axis=1)


def context_of(
    ropes: tuple[Rope | None, ...],
    prompts: Prompts,
    dtype: Any,
) -> Context:
    """Positions, masks and rotary tables of a run."""
    mask, positions = prompts.mask, prompts.positions
    if positions is None and mask is not None:
        positions = jnp.maximum(jnp.cumsum(jnp.asarray(mask, jnp.int32), -1) - 1, 0)
    elif positions is None:
        positions = jnp.arange(prompts.shape[1], dtype=jnp.int32)[None]
    elif mask is not None:
        positions = jnp.where(mask, positions, 0)  # What stands at padding is no position.
    positions = jnp.asarray(positions)
    distinct = _distinct(ropes)
    if not any(distinct):
        return Context(positions, mask)
    tables = [rope.tables(positions, dtype) if rope else None for rope in distinct]
    cos, sin = next(table for table in tables if table)
    # A layer without rotary turns by no angle.
    still = jnp.ones_like(cos), jnp.zeros_like(sin)
    pairs = [still if table is None else table for table in tables]
    return Context(positions, mask, (jnp.stack([c for c, _ in pairs]), jnp.stack([s for _, s in pairs])))


def looked_up(positions: jax.Array) -> jax.Array:
    """Given ``positions`` for a table, which may begin with other rows: negative ones find none."""
    return jnp.where(positions < 0, _NO_POSITION, positions)


def _distinct(ropes: tuple[Rope | None, ...]) -> tuple[Rope | None, ...]:
    return tuple(dict.fromkeys(ropes))


def of_layer(values: tuple[Any, ...], layer: Any) -> Any:
    """The value of a layer; a single value stands for every layer."""
    return values[0] if len(set(values)) == 1 else jnp.asarray(values, jnp.int32)[layer]


def tables_of(ropes: tuple[Rope | None, ...], context: Context, layer: Any) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine ``[1 or b, s, f]`` of a layer, of all tokens."""
    assert context.tables is not None
    distinct = _distinct(ropes)
    index = of_layer(tuple(distinct.index(rope) for rope in ropes), layer)
    cos, sin = context.tables
    return cos[index], sin[index]
