"""The layer loop: scans the blocks, hands each a tap and stores what the captures ask for.

Like layers run as one scan; where kinds of layers differ, scans follow each other, one for each run of like
ones. A site wanted in every layer leaves the scan as a stacked output; a site wanted in few layers goes into
a carried buffer of just those rows (a stacked output sliced afterwards would still be allocated whole).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmi.captures.capture import CARRY
from jmi.engine.run import Run
from jmi.engine.tap import LiveTap, has
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.hooks.layers import arrays_by_layer, of_layer
from jmi.model.architecture import Params, runs_of, stack_name
from jmi.model.sites import slots, table_of

Rows = dict[int, Any]
"""What was captured, by the number of the capture."""


class Segment(NamedTuple):
    """Layers of one kind that follow each other, and their parameters: stacked, or a list."""

    layers: range
    params: Any


def segments(arch: Any, blocks: Any) -> list[Segment]:
    """The blocks of a model in runs of like layers; ArgumentError for those of another depth."""
    n_layers = arch.n_layers
    if isinstance(blocks, (list, tuple)):
        _check_depth({len(blocks)}, n_layers)
        return [Segment(span, blocks[span.start : span.stop]) for span in runs_of(arch)]
    spans = runs_of(arch)
    stacks = [blocks] if len(spans) == 1 else [blocks.get(stack_name(span)) for span in spans]
    for span, stack in zip(spans, stacks, strict=True):
        _check_depth({jnp.shape(w)[0] for w in jax.tree.leaves(stack)}, len(span))
    return [Segment(span, stack) for span, stack in zip(spans, stacks, strict=True)]


def _check_depth(sizes: set[int], n_layers: int) -> None:
    if sizes != {n_layers}:
        raise ArgumentError(
            f"params['blocks'] has {sorted(sizes)} layers where the architecture has {n_layers}"
        )


def run_layers(run: Run, blocks: Any, carry: Any, context: Any) -> tuple[Any, Rows]:
    """Run the blocks: the carry they end with, and the captured layers of each group, stacked."""
    parts = segments(run.static.arch, blocks)
    buffers = {
        i: _buffer(run, i, next(part for part in parts if _has(run, i, part)), carry, context)
        for i, group in enumerate(run.static.groups)
        if group.count is not None and not _is_stacked(run, i, parts)
    }
    stacked: dict[int, list[Any]] = {}
    for part in parts:
        carry, buffers, rows = _run_segment(run, part, carry, context, buffers)
        for i, values in rows.items():
            stacked.setdefault(i, []).append(values)
    joint = {i: jax.tree.map(_joined, *values) for i, values in stacked.items()}
    return carry, {**buffers, **joint}


def _is_stacked(run: Run, capture: int, parts: list[Segment]) -> bool:
    """Whether a capture keeps every layer of the segments in which its point is."""
    group = run.static.groups[capture]
    return group.whole and all(_covers(run, group.point, p) or not _has(run, capture, p) for p in parts)


def _covers(run: Run, point: str, part: Segment) -> bool:
    """Whether every layer of ``part`` has a point."""
    site = table_of(run.static.arch).get(point)
    return site is None or set(part.layers) <= set(site.layers or ())


def _joined(*stacks: jax.Array) -> jax.Array:
    return stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)


def _has(run: Run, capture: int, part: Segment) -> bool:
    """Whether a layer of ``part`` has the point of a capture."""
    group = run.static.groups[capture]
    return group.point == CARRY or has(table_of(run.static.arch)[group.point], part.layers)


def _buffer(run: Run, capture: int, part: Segment, carry: Any, context: Any) -> Any:
    """Room for the layers that a capture keeps."""
    count = run.static.groups[capture].count
    assert count is not None

    def row(params: Any, carry: Any) -> Any:
        own = [x[0] for x in _own_arrays(run, part)]
        first = layer_of(params, 0)
        layer = jnp.int32(part.layers.start)
        return _block(run, part, first, carry, context, layer, own=own)[1].rows[capture]

    shapes = jax.eval_shape(row, part.params, carry)
    return jax.tree.map(lambda x: vary_like(_nothing((count, *x.shape), x.dtype), carry), shapes)


def _block(
    run: Run, part: Segment, params: Params, carry: Any, context: Any, layer: Any, *, own: list[Any]
) -> tuple[Any, LiveTap]:
    """One layer, with the tap that was in it; ``own`` are its rows of what differs by layer."""
    rows: Iterator[Any] = iter(own)
    arch = run.static.arch

    def own_of(point: str, trees: Any) -> Any:
        site = table_of(arch).get(point)
        if site is not None and not has(site, part.layers):
            return trees
        every = slots(range(arch.n_layers) if site is None else site.layers or (), arch.n_layers)
        return of_layer(trees, rows if _covers(run, point, part) else None, every, layer)

    hooks = {point: own_of(point, given) for point, given in run.hooks.items()}
    reducers = [
        (where, own_of(group.point, reduce))
        for group, (where, reduce) in zip(run.static.groups, run.reducers, strict=True)
    ]
    tap = LiveTap(run, hooks, reducers, layer)
    tap.entered(carry)
    carry = run.static.arch.block(params, carry, context, layer, tap)
    tap.finish(part.layers)
    return carry, tap


def _own_arrays(run: Run, part: Segment) -> list[jax.Array]:
    """Arrays with a row for each layer, cut to those of ``part``, as `_block` takes them apart."""
    table, found = table_of(run.static.arch), []
    reducers = zip(run.static.groups, run.reducers, strict=True)
    for point, trees in [*run.hooks.items(), *((group.point, reduce) for group, (_, reduce) in reducers)]:
        if not _covers(run, point, part):
            continue
        layers = table[point].layers if point in table else range(run.static.arch.n_layers)
        rows = [i for i, layer in enumerate(layers or ()) if layer in part.layers]
        whole = len(rows) == len(layers or ())
        found += [x if whole else x[rows[0] : rows[-1] + 1] for x in arrays_by_layer(trees) if rows]
    return found


def _run_segment(run: Run, part: Segment, carry: Any, context: Any, buffers: Rows) -> tuple[Any, Rows, Rows]:
    """The carry, the buffers, and what every layer has of the captures that keep all of them."""
    groups = run.static.groups
    stacked = [
        i for i, g in enumerate(groups) if g.count is not None and i not in buffers and _has(run, i, part)
    ]
    written = [i for i in buffers if _has(run, i, part)]

    def layer(params: Params, state: Any, index: Any, own: list[Any]) -> Any:
        carry, buffers = state
        carry, tap = _block(run, part, params, carry, context, index, own=own)
        new = {i: _write(buffers[i], run.reducers[i][0], index, tap.rows[i]) for i in written}
        return (carry, new), [tap.rows[i] for i in stacked]

    own = _own_arrays(run, part)
    state = (carry, {i: buffers[i] for i in written})
    (carry, new), rows = _loop(run, part, layer, state, own)
    return carry, {**buffers, **new}, dict(zip(stacked, rows, strict=True))


def _loop(
    run: Run, part: Segment, layer: Callable[..., Any], state: Any, own: list[jax.Array]
) -> tuple[Any, Any]:
    """Scan ``layer`` over stacked blocks, or walk over listed ones; the run's span limits what runs."""
    blocks, span = part.params, run.span
    listed = isinstance(blocks, (list, tuple))

    def step(params: Params, state: Any, index: Any, own: list[Any]) -> Any:
        if span is None:
            return layer(params, state, index, own)

        def running(state: Any) -> Any:
            # Weights are picked inside the branch: a layer that does not run costs nothing.
            picked = params if listed else layer_of(blocks, index - part.layers.start)
            return layer(picked, state, index, own)

        _, rows = jax.eval_shape(running, state)

        def skipping(state: Any) -> Any:
            return state, jax.tree.map(lambda r: vary_like(_nothing(r.shape, r.dtype), state), rows)

        start, stop = span
        here = jnp.asarray(start) <= index
        return jax.lax.cond(
            here if stop is None else here & (index < jnp.asarray(stop)), running, skipping, state
        )

    if run.static.remat:
        # Around the branch, not inside: the weights would else be stored once per layer.
        step = jax.checkpoint(step, prevent_cse=listed)
    if not listed:
        index = jnp.arange(part.layers.start, part.layers.stop, dtype=jnp.int32)
        body = lambda state, xs: step(xs[1], state, xs[0], xs[2])  # noqa: E731
        return jax.lax.scan(body, state, (index, blocks if span is None else None, own))
    rows = []
    # A bound that is no array is known while tracing: what comes after it need not be compiled. One layer
    # always is, for the structure of its rows.
    known = span[1] if span is not None and isinstance(span[1], int) else part.layers.stop
    for i, params in enumerate(blocks[: max(1, known - part.layers.start)]):
        state, row = step(params, state, jnp.int32(part.layers[i]), [x[i] for x in own])
        rows.append(row)
    return state, jax.tree.map(lambda *r: jnp.stack(r), *rows)


def one_layer(run: Run, params: Params, carry: Any, context: Any, layer: Any) -> Rows:
    """What a run captures in one layer that is run by itself; its hooks are the same in every layer."""
    part = Segment(range(run.static.arch.n_layers), None)
    return _block(run, part, params, carry, context, layer, own=[])[1].rows


def over_layers(arch: Any, function: Callable[..., Any], blocks: Any, *stacked: Any) -> Any:
    """``function`` of parameters and arrays of one layer after another, stacked."""
    found = []
    for part in segments(arch, blocks):
        own = jax.tree.map(lambda x, layers=part.layers: x[layers.start : layers.stop], stacked)
        if not isinstance(part.params, (list, tuple)):
            found.append(jax.lax.map(lambda xs: function(*xs), (part.params, *own)))
            continue
        rows = [function(p, *jax.tree.map(lambda x, i=i: x[i], own)) for i, p in enumerate(part.params)]
        found.append(jax.tree.map(lambda *row: jnp.stack(row), *rows))
    return jax.tree.map(_joined, *found)


def layer_of(blocks: Any, index: Any) -> Params:
    """Parameters of one layer; blocks stacked or listed."""
    if isinstance(blocks, (list, tuple)):
        return blocks[index]
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), blocks)


def _write(buffers: Any, slots: Any, index: Any, rows: Any) -> Any:
    """``buffers`` with ``rows`` in the slot of this layer; unchanged when the layer has none."""
    slot = jax.lax.dynamic_index_in_dim(jnp.asarray(slots), index, keepdims=False)
    place = jnp.maximum(slot, 0)

    def write(buffer: jax.Array, row: jax.Array) -> jax.Array:
        old = jax.lax.dynamic_index_in_dim(buffer, place, keepdims=False)
        # Only one row is read and written, whatever the number of captured layers.
        return jax.lax.dynamic_update_index_in_dim(buffer, jnp.where(slot >= 0, row, old), place, 0)

    return jax.tree.map(write, buffers, rows)


def _nothing(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Content of a capture whose layer never ran: NaN where the dtype has it, else -1, or False."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.full(shape, jnp.nan, dtype)
    return jnp.full(shape, -1 if jnp.issubdtype(dtype, jnp.signedinteger) else 0, dtype)
