"""The layer loop: scans the blocks, hands each a Tap and stores what the captures ask for.

A site wanted in every layer leaves the scan as a stacked output; a site wanted in few layers goes
into a carried buffer of just those rows (a stacked output sliced afterwards would still be
allocated whole).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmi.captures.capture import Group
from jmi.engine.varying import vary_like
from jmi.errors import ConfigError
from jmi.hooks.layers import PerLayer
from jmi.model.architecture import Architecture, Params, Tap
from jmi.model.sites import table_of


def run_layers(
    arch: Architecture,
    groups: tuple[Group, ...],
    remat: bool,
    blocks: Any,
    carry: Any,
    context: Any,
    hooks: dict[str, tuple[Any, ...]],
    data: tuple[tuple[Any, Any], ...],
    span: tuple[Any, Any] | None,
    first: int = 0,
    entering: bool = False,
    mask: Any = None,
) -> tuple[Any, dict[int, jax.Array], Any]:
    """Run the blocks.

    Args:
      first: positions before this one are not run (`jmi.sweeps.sharing`).
      entering: whether to return what enters each layer.
      mask: of real tokens, for hooks and reducers.

    Returns:
      The carry, the captured layers of each group, stacked, and what entered each layer, stacked, or None.
    """
    _check_layers(blocks, arch.n_layers)
    stacked = [i for i, g in enumerate(groups) if g.whole]
    sparse = {i: g.count for i, g in enumerate(groups) if g.count is not None and not g.whole}

    def layer(layer_params: Params, state: Any, index: Any, own: list[Any]) -> Any:
        entered, buffers = state
        tap = Tap(table_of(arch), _with_own(hooks, own), groups, data, index, first, mask)
        carry = arch.block(layer_params, entered, context, index, tap)
        tap.finish()
        buffers = tuple(
            _write(buffer, data[i][0], index, tap.rows[i]) for i, buffer in zip(sparse, buffers, strict=True)
        )
        return (carry, buffers), (tuple(tap.rows[i] for i in stacked), entered if entering else None)

    own = _own_arrays(hooks)

    def rows_of_layer(blocks: Any, carry: Any) -> tuple[Any, ...]:
        first_hooks = _with_own(hooks, [x[0] for x in own])
        tap = Tap(table_of(arch), first_hooks, groups, data, jnp.int32(0), first, mask)
        arch.block(layer_of(blocks, 0), carry, context, jnp.int32(0), tap)
        tap.finish()
        return tuple(tap.rows[i] for i in sparse)

    shapes = jax.eval_shape(rows_of_layer, blocks, carry) if sparse else ()
    buffers = tuple(
        vary_like(_nothing((count, *row.shape), row.dtype), carry)
        for count, row in zip(sparse.values(), shapes, strict=True)
    )
    state, (ys, entered) = _loop(arch.n_layers, remat, layer, blocks, (carry, buffers), span, own)
    carry, buffers = state
    return carry, dict(zip([*sparse, *stacked], [*buffers, *ys], strict=True)), entered


def _own_arrays(hooks: Any) -> list[jax.Array]:
    """Arrays ``[layers, ...]`` of which each layer gets its own row, in one order.

    They are inputs of the scan, so that their gradients are its outputs: picked inside the body, each
    layer's gradient would be added to a buffer of all layers.
    """
    found = [hook for hook in jax.tree.leaves(hooks, is_leaf=_is_per_layer) if _is_per_layer(hook)]
    return [x for hook in found for x in jax.tree.leaves(hook.hook) if jnp.ndim(x)]


def _with_own(hooks: Any, own: list[Any]) -> Any:
    """``hooks`` in one layer, given its rows of the arrays above."""
    rows = iter(own)

    def unwrapped(hook: Any) -> Any:
        if not _is_per_layer(hook):
            return hook
        return jax.tree.map(lambda x: next(rows) if jnp.ndim(x) else x, hook.hook)

    return jax.tree.map(unwrapped, hooks, is_leaf=_is_per_layer)


def _is_per_layer(hook: Any) -> bool:
    return isinstance(hook, PerLayer)


def _loop(
    n_layers: int,
    remat: bool,
    layer: Callable[..., Any],
    blocks: Any,
    state: Any,
    span: Any,
    own: list[jax.Array],
) -> tuple[Any, Any]:
    """Scan ``layer`` over stacked blocks, or walk over listed ones; ``span`` limits what runs."""
    listed = isinstance(blocks, (list, tuple))

    def step(layer_params: Params, state: Any, index: Any, own: list[Any]) -> Any:
        if span is None:
            return layer(layer_params, state, index, own)

        def run(state: Any) -> Any:
            # Weights are picked inside the branch: a layer that does not run costs nothing.
            return layer(layer_params if listed else layer_of(blocks, index), state, index, own)

        _, rows = jax.eval_shape(run, state)

        def skip(state: Any) -> Any:
            return state, jax.tree.map(lambda r: _skipped(r, state), rows)

        start, stop = span
        here = jnp.asarray(start) <= index
        return jax.lax.cond(here if stop is None else here & (index < jnp.asarray(stop)), run, skip, state)

    if remat:
        # Around the branch, not inside: the weights would else be stored once per layer.
        step = jax.checkpoint(step, prevent_cse=listed)
    if not listed:
        index = jnp.arange(n_layers, dtype=jnp.int32)
        body = lambda state, xs: step(xs[1], state, xs[0], xs[2])  # noqa: E731
        return jax.lax.scan(body, state, (index, blocks if span is None else None, own))
    rows = []
    # A bound that is no array is known while tracing: what lies behind it need not be compiled. One layer
    # always is, for the structure of its rows.
    known = span[1] if span is not None and isinstance(span[1], int) else n_layers
    for i, layer_params in enumerate(blocks[: max(1, known)]):
        state, row = step(layer_params, state, jnp.int32(i), [x[i] for x in own])
        rows.append(row)
    return state, jax.tree.map(lambda *r: jnp.stack(r), *rows)


def over_layers(function: Callable[..., Any], blocks: Any, *stacked: Any) -> Any:
    """``function`` of parameters and arrays of one layer after another, stacked; blocks stacked or listed."""
    if not isinstance(blocks, (list, tuple)):
        return jax.lax.map(lambda xs: function(*xs), (blocks, *stacked))
    rows = [function(p, *jax.tree.map(lambda x, i=i: x[i], stacked)) for i, p in enumerate(blocks)]
    return jax.tree.map(lambda *row: jnp.stack(row), *rows)


def _check_layers(blocks: Any, n_layers: int) -> None:
    listed = isinstance(blocks, (list, tuple))
    sizes = {len(blocks)} if listed else {jnp.shape(w)[0] for w in jax.tree.leaves(blocks)}
    if sizes != {n_layers}:
        raise ConfigError(f"params['blocks'] has {sorted(sizes)} layers; the architecture has {n_layers}")


def layer_of(blocks: Any, index: Any) -> Params:
    """Parameters of one layer; blocks stacked or listed."""
    if isinstance(blocks, (list, tuple)):
        return blocks[index]
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), blocks)


def _write(buffer: jax.Array, slots: Any, index: Any, row: jax.Array) -> jax.Array:
    """``buffer`` with ``row`` in the slot of this layer; unchanged when the layer has none."""
    slot = jax.lax.dynamic_index_in_dim(jnp.asarray(slots), index, keepdims=False)
    place = jnp.maximum(slot, 0)
    old = jax.lax.dynamic_index_in_dim(buffer, place, keepdims=False)
    # Only one row is read and written, whatever the number of captured layers.
    return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(slot >= 0, row, old), place, 0)


def _nothing(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Content of a capture whose layer never ran: NaN where the dtype has it, else zero."""
    return jnp.full(shape, jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def _skipped(row: Any, state: Any) -> jax.Array:
    return vary_like(_nothing(row.shape, row.dtype), state)
