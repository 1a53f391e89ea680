"""The engine: the one place that runs layers.

It validates hooks and captures before tracing, scans the blocks, hands each a Tap and gathers what
the captures ask for. Everything else in jmi is built on `forward`.

How captures are stored: a site wanted in every layer leaves the scan as a stacked output; a site
wanted in few layers goes into a carried buffer of just those rows (a stacked output that is sliced
afterwards would still be allocated whole).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.architecture import Architecture, Params, Tap
from jmi.captures import Capture, Group, plan
from jmi.errors import ConfigError, HookError
from jmi.hooks import Hooks, prepare
from jmi.output import Output, wrap
from jmi.sites import table_of


@dataclasses.dataclass(frozen=True)
class Static:
    """What a trace of a run depends on besides shapes."""

    arch: Architecture
    groups: tuple[Group, ...]
    remat: bool
    stops: bool


def forward(
    arch: Architecture,
    params: Params,
    tokens: jax.Array,
    *,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    start_at_layer: Any = None,
    carry: Any = None,
    stop_at_layer: Any = None,
    remat: bool = True,
) -> Output:
    """Run a model on tokens: a pure function, for your own jit, vmap, grad and shard_map.

    Args:
      arch: the architecture; hashable, so it can be a static argument of your jit.
      params: its parameters; floating dtype decides the dtype of the computation.
      tokens: int32 ``[b, s]``.
      hooks: site name -> intervention, or sequence of interventions run in order.
      capture: site names and `Capture` objects to return.
      mask: bool ``[b, s]``, True at real tokens. Padding on either side changes nothing for them.
      positions: int32 ``[b, s]``; by default real tokens are counted from 0.
      start_at_layer: run from this layer on ``carry`` instead of embedding the tokens; an int or a
        traced scalar, never recompiles.
      carry: what enters that layer: the residual stream ``[b, s, d_model]``.
      stop_at_layer: stop before this layer and return its input as ``out.carry`` (no logits).
      remat: under reverse-mode gradients, recompute each layer instead of storing its insides:
        memory no longer grows with layers x sites, at about a third more time.

    Returns:
      `Output`. Layers that did not run have NaN captures.

    Raises:
      HookError, InterventionError: before any computation.
      ConfigError: arguments that contradict each other.

    Matmuls use precision ``highest`` unless ``jax.default_matmul_precision`` is set.
    """
    static, data, layout = plan_run(
        arch, tokens, hooks, capture, mask, positions, start_at_layer, carry, stop_at_layer, remat
    )
    return wrap(layout, arch.n_layers, *execute(static, params, *data))


def plan_run(
    arch: Architecture,
    tokens: Any,
    hooks: Hooks | None,
    capture: Sequence[str | Capture],
    mask: Any,
    positions: Any,
    start: Any,
    carry: Any,
    stop: Any,
    remat: bool,
) -> tuple[Static, tuple[Any, ...], Any]:
    """Validate the arguments of a run and split them into static, data and output layout."""
    _check_tokens(tokens, mask, positions)
    start, stop = _layer_bound(arch, "start_at_layer", start), _layer_bound(arch, "stop_at_layer", stop)
    if (start is None) != (carry is None):
        raise ConfigError("start_at_layer= and carry= go together: the layer, and what enters it")
    prepared = prepare(arch, hooks, tokens.shape)
    layout = plan(arch, capture)
    _check_reached(arch, prepared, layout, start, stop)
    static = Static(arch, layout.groups, remat, stop is not None)
    span = None if start is None and stop is None else (0 if start is None else start, stop)
    data = ((tokens, mask, positions), prepared, layout.data, carry, span)
    return static, data, layout


def execute(
    static: Static,
    params: Params,
    inputs: tuple[Any, Any, Any],
    hooks: dict[str, tuple[Any, ...]],
    data: tuple[tuple[Any, Any], ...],
    carry: Any,
    span: tuple[Any, Any] | None,
) -> tuple[Any, tuple[jax.Array, ...], Any]:
    """The traced part of a run: (logits, captured arrays in group order, final carry)."""
    arch, tokens = static.arch, jnp.asarray(inputs[0])
    with _precise():
        context = arch.context(params, tokens, *inputs[1:])
        outside = Tap(table_of(arch), hooks, static.groups, data)
        if carry is None:
            carry = arch.embed(params, tokens, context, outside)
        carry = _vary_like(carry, (params, inputs, hooks, data, span))
        carry, rows = _run_layers(static, params["blocks"], carry, context, hooks, data, span)
        logits = None if static.stops else arch.readout(params, carry, outside)
    arrays = {**rows, **outside.rows}
    return (
        logits,
        tuple(arrays[i] for i in range(len(static.groups))),
        carry if static.stops else None,
    )


def _run_layers(
    static: Static,
    blocks: Any,
    carry: Any,
    context: Any,
    hooks: dict[str, tuple[Any, ...]],
    data: tuple[tuple[Any, Any], ...],
    span: tuple[Any, Any] | None,
) -> tuple[Any, dict[int, jax.Array]]:
    """Run the blocks; returns the carry and the captured layers of each group, stacked."""
    arch = static.arch
    inside = {i: g for i, g in enumerate(static.groups) if g.count is not None}
    stacked = [i for i, g in inside.items() if g.whole]
    sparse = [i for i, g in inside.items() if not g.whole]

    def layer(layer_params: Params, state: Any, index: Any) -> Any:
        carry, buffers = state
        tap = Tap(table_of(arch), hooks, static.groups, data, index)
        carry = arch.block(layer_params, carry, context, index, tap)
        tap.finish()
        buffers = tuple(
            _write(buffer, data[i][0], index, tap.rows[i]) for i, buffer in zip(sparse, buffers, strict=True)
        )
        return (carry, buffers), tuple(tap.rows[i] for i in stacked)

    def rows_of_layer(blocks: Any, carry: Any) -> tuple[Any, ...]:
        tap = Tap(table_of(arch), hooks, static.groups, data, jnp.int32(0))
        arch.block(_layer_of(blocks, 0), carry, context, jnp.int32(0), tap)
        return tuple(tap.rows[i] for i in sparse)

    shapes = jax.eval_shape(rows_of_layer, blocks, carry) if sparse else ()
    buffers = tuple(
        _vary_like(_nothing((inside[i].count, *row.shape), row.dtype), (carry,))
        for i, row in zip(sparse, shapes, strict=True)
    )
    (carry, buffers), ys = _loop(static, layer, blocks, (carry, buffers), span)
    return carry, dict(zip([*sparse, *stacked], [*buffers, *ys], strict=True))


def _loop(static: Static, layer: Callable[..., Any], blocks: Any, state: Any, span: Any) -> Any:
    """Scan ``layer`` over stacked blocks, or walk over listed ones; ``span`` limits what runs."""
    n = static.arch.n_layers
    listed = isinstance(blocks, (list, tuple))
    if static.remat:
        layer = jax.checkpoint(layer, prevent_cse=listed)

    def step(state: Any, xs: Any) -> Any:
        index, layer_params = xs
        if span is None:
            return layer(layer_params, state, index)
        # Weights are picked inside the branch: a layer that does not run costs nothing.
        pick = lambda: layer_params if listed else _layer_of(blocks, index)  # noqa: E731
        run = lambda state: layer(pick(), state, index)  # noqa: E731
        _, ys = jax.eval_shape(run, state)
        skip = lambda state: (state, jax.tree.map(lambda y: _skipped(y, state), ys))  # noqa: E731
        start, stop = span
        here = jnp.asarray(start) <= index
        if stop is not None:
            here &= index < jnp.asarray(stop)
        return jax.lax.cond(here, run, skip, state)

    if listed:
        ys = []
        for i, layer_params in enumerate(blocks):
            state, y = step(state, (jnp.int32(i), layer_params))
            ys.append(y)
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *ys)
    index = jnp.arange(n, dtype=jnp.int32)
    return jax.lax.scan(step, state, (index, blocks if span is None else None))


def _layer_of(blocks: Any, index: Any) -> Params:
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
    return _vary_like(_nothing(row.shape, row.dtype), state)


def _vary_like(tree: Any, others: Any) -> Any:
    """Mark ``tree`` as device-varying along every manual mesh axis along which ``others`` vary.

    Inside shard_map the carry of a scan must have one type throughout, and hooks or tokens that
    differ per device make it vary from the first layer on.
    """
    axes = frozenset[str]().union(*map(_varying, jax.tree.leaves(others)))

    def vary(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree) if axes else tree


def _varying(x: Any) -> frozenset[str]:
    """Manual mesh axes along which ``x`` differs between devices; none outside shard_map."""
    return jax.typeof(x).manual_axis_type.varying if isinstance(x, jax.core.Tracer) else frozenset()


@contextlib.contextmanager
def _precise():  # type: ignore[no-untyped-def]
    """Full float32 products (the default on recent GPUs and TPUs is less), unless the user chose."""
    if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


@functools.partial(jax.jit, static_argnums=0)
def run_compiled(static: Static, params: Params, *data: Any) -> tuple[Any, tuple[jax.Array, ...], Any]:
    """`execute`, compiled once per (static, shapes, structure of the hooks)."""
    return execute(static, params, *data)


def _check_tokens(tokens: Any, mask: Any, positions: Any) -> None:
    if getattr(tokens, "ndim", 0) != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", type(tokens).__name__)
        raise ConfigError(f"tokens must be integers of shape [batch, pos]; got {dtype} {shape}")
    if tokens.shape[1] == 0:
        raise ConfigError("the prompt is empty: there is no token to run")
    for name, given in (("mask", mask), ("positions", positions)):
        if given is not None and given.shape != tokens.shape:
            raise ConfigError(f"{name}= has shape {given.shape}; it must be like tokens, {tokens.shape}")


def _layer_bound(arch: Architecture, name: str, layer: Any) -> Any:
    if layer is None or isinstance(layer, jax.Array):
        return layer
    if not 0 <= layer <= arch.n_layers:
        raise ConfigError(f"{name}={layer}: use 0 to {arch.n_layers}, this model has {arch.n_layers} layers")
    return np.int32(layer)


def _check_reached(arch: Architecture, hooks: dict[str, Any], layout: Any, start: Any, stop: Any) -> None:
    """Refuse hooks and captures that a partial run never reaches."""
    if start is None and stop is None:
        return
    order = list(table_of(arch))
    first_block = next(i for i, p in enumerate(order) if p.startswith("blocks."))
    wanted = [
        (point, np.flatnonzero(h.layers))
        for point, hs in hooks.items()
        for h in hs
        if point.startswith("blocks.") and isinstance(h.layers, np.ndarray)
    ]
    wanted += [
        (g.point, np.asarray(layers))
        for g, layers in zip(layout.groups, layout.layers, strict=True)
        if layers is not None and not g.whole
    ]
    outside = [p for p in (*hooks, *(g.point for g in layout.groups)) if not p.startswith("blocks.")]
    for point in outside:
        if order.index(point) < first_block and start is not None:
            raise HookError(f"{point}: not reached by a run that starts at a layer; drop it")
        if order.index(point) > first_block and stop is not None:
            raise HookError(f"{point}: not reached by a run that stops at a layer; drop it")
    low = 0 if start is None or isinstance(start, jax.Array) else int(start)
    high = arch.n_layers if stop is None or isinstance(stop, jax.Array) else int(stop)
    for point, layers in wanted:
        if len(layers) and len(layers) < arch.n_layers and not ((low <= layers) & (layers < high)).all():
            raise HookError(
                f"{point}: layers {layers.tolist()} are not all within the run, {low} to {high - 1}"
            )
