"""The engine: validates hooks and captures before tracing, then embeds, runs layers, reads out.

Everything else in jmi is built on `forward`; nothing else runs layers.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture, Group, Plan, as_list, plan
from jmi.captures.output import Output, wrap
from jmi.checks import check_model, flag
from jmi.engine.layers import layer_of, run_layers
from jmi.engine.recurrence import enter, leaving
from jmi.engine.varying import vary_like
from jmi.errors import ConfigError
from jmi.hooks.resolve import Hooks, prepare
from jmi.model.architecture import Architecture, Continuable, Params, Tap
from jmi.model.inputs import (
    as_tokens,
    check_arrays,
    check_logits_at,
    check_reached,
    check_tokens,
    layer_bound,
)
from jmi.model.padding import place_of
from jmi.model.sites import table_of
from jmi.programs import compiled


@dataclasses.dataclass(frozen=True)
class Static:
    """What a trace of a run depends on besides shapes.

    ``structure`` is the hash of the tree structures of hooks and reducers. The hash sees the classes
    of dataclass nodes, which the comparison of structures overlooks (`jmi.tree`). Sweeps run only the
    positions from ``first`` on, of the last layer only what ``logits_at`` needs where that is ``narrow``,
    and have their base run return what is ``entering`` each layer.
    """

    arch: Architecture
    groups: tuple[Group, ...]
    remat: bool
    stops: bool
    structure: int
    first: int = 0
    narrow: bool = False
    entering: bool = False


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
    state: Any = None,
    logits_at: Any = None,
    remat: bool = True,
) -> Output:
    """Run a model on tokens: a pure function, for your own jit, vmap, grad and shard_map.

    Args:
      arch: the architecture; hashable, so it can be a static argument of your jit.
      params: its parameters; floating dtype decides the dtype of the computation.
      tokens: int32 ``[b, s]``. Ids that are no tokens give NaN where they are traced, else an error.
      hooks: site name -> intervention, or sequence of interventions run in order.
      capture: site names and `Capture` objects to return.
      mask: bool ``[b, s]``, True at real tokens. Padding on either side changes nothing for them, and a
        position that is asked for, in hooks, reducers, ``logits_at`` or a metric, names the p-th real token
        of its row, counted from the end if negative. Arrays keep the padded axis, see `Output.at`.
      positions: int32 ``[b, s]``, from 0; by default real tokens are counted from 0.
      start_at_layer: run from this layer on ``carry`` instead of embedding the tokens; an int or a
        traced scalar, never recompiles.
      carry: what enters that layer, as ``out.carry`` of a run that stopped there: the residual stream
        ``[b, s, d_model]``, or for some architectures a dict with it.
      stop_at_layer: stop before this layer and return its input as ``out.carry`` (no logits).
      state: of a recurrent model, what an earlier run left behind (``out.state``), or
        ``arch.initial_state(batch)``; given one, the run returns its own. It is a dict whose arrays
        have the layers first. Prompts and their continuation run in pieces are one run.
      logits_at: the position whose logits are wanted, an int (negative counts from the last real token)
        or int32 ``[b]``, one for each row: ``out.logits`` is then ``[b, vocab]``, and no other is computed.
        A traced one out of range gives NaN.
      remat: under reverse-mode gradients, recompute each layer instead of storing its insides:
        memory no longer grows with layers x sites, for the operations of one more forward pass.

    Returns:
      `Output`. Layers that did not run have NaN captures.

    Raises:
      HookError, InterventionError: before any computation.
      ConfigError: arguments that contradict each other, ids outside the vocabulary, or more tokens than the
        context holds.

    Matmuls use precision ``highest`` unless ``jax.default_matmul_precision`` is set.
    """
    check_model(arch, params)
    static, data, layout = plan_run(
        arch,
        tokens,
        hooks,
        capture,
        mask=mask,
        positions=positions,
        start_at_layer=start_at_layer,
        carry=carry,
        stop_at_layer=stop_at_layer,
        state=state,
        logits_at=logits_at,
        remat=remat,
    )
    logits, arrays, carried = execute(static, params, *data)
    return wrap(layout, arch.n_layers, logits, arrays, carried, data[0][1])


def plan_run(
    arch: Architecture,
    tokens: Any,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    *,
    mask: Any = None,
    positions: Any = None,
    start_at_layer: Any = None,
    carry: Any = None,
    stop_at_layer: Any = None,
    state: Any = None,
    logits_at: Any = None,
    remat: bool = True,
) -> tuple[Static, tuple[Any, ...], Plan]:
    """Validate the arguments of a run (as `forward`): its static part, its data, its captures."""
    tokens, remat = as_tokens(tokens), flag("remat", remat)
    mask, positions = check_arrays(tokens, mask, positions, arch)
    check_tokens(arch, tokens)
    start = layer_bound(arch, "start_at_layer", start_at_layer)
    stop = layer_bound(arch, "stop_at_layer", stop_at_layer)
    if isinstance(start, np.int32) and isinstance(stop, np.int32) and start > stop:
        raise ConfigError(f"start_at_layer={start} lies behind stop_at_layer={stop}: nothing would run")
    if (start is None) != (carry is None):
        raise ConfigError("start_at_layer= and carry= go together: the layer, and what enters it")
    prepared = prepare(arch, hooks, tokens.shape, mask)
    if state is not None:
        if start is not None or stop is not None:
            raise ConfigError("state= needs a run through all layers: each has a part of it")
        prepared = enter(arch, state, prepared, tokens.shape)
        capture = [*as_list(capture), *leaving(arch)]
    layout = plan(arch, capture, tokens.shape, mask)
    if start is not None or stop is not None:
        check_reached(arch, prepared, layout, start, stop)
    if logits_at is not None:
        if stop is not None:
            raise ConfigError("logits_at= and stop_at_layer= exclude each other: a stopped run has no logits")
        points = {*prepared, *(group.point for group in layout.groups)}
        logits_at = check_logits_at(arch, logits_at, tokens.shape, points, mask)
        if mask is not None:
            logits_at = place_of(logits_at, mask)
    structure = hash(jax.tree.structure((prepared, layout.data)))
    static = Static(arch, layout.groups, remat, stop is not None, structure)
    span = None if start is None and stop is None else (0 if start is None else start, stop)
    data = ((tokens, mask, positions), prepared, layout.data, carry, span, logits_at)
    return static, data, layout


def execute(
    static: Static,
    params: Params,
    inputs: tuple[Any, Any, Any],
    hooks: dict[str, tuple[Any, ...]],
    data: tuple[tuple[Any, Any], ...],
    carry: Any,
    span: tuple[Any, Any] | None,
    logits_at: Any = None,
    context: Any = None,
) -> tuple[Any, tuple[jax.Array, ...], Any]:
    """The traced part of a run: (logits, captured arrays in group order, final carry or None).

    With ``static.entering`` the last is what enters every layer, and the readout, stacked. A given
    ``context`` stands for that of ``inputs``.
    """
    arch, tokens, first = static.arch, jnp.asarray(inputs[0]), static.first
    with precise():
        if context is None:
            context = arch.context(params, tokens, *inputs[1:])
        outside = Tap(table_of(arch), hooks, static.groups, data, first=first, mask=inputs[1])
        if carry is None:
            carry = arch.embed(params, tokens, context, outside)
        else:
            wanted = jax.eval_shape(lambda: arch.embed(params, tokens, context, Tap.silent()))
            _check_carry(carry, wanted, first)
        carry = vary_like(carry, (params, inputs, hooks, data, span))
        if static.narrow:
            span = (0 if span is None else span[0], arch.n_layers - 1)
        carry, rows, entered = run_layers(
            arch,
            static.groups,
            static.remat,
            params["blocks"],
            carry,
            context,
            hooks,
            data,
            span,
            first,
            static.entering,
            inputs[1],
        )
        if static.narrow:
            carry, logits_at = _last_layer(arch, params["blocks"], carry, context, logits_at), 0
        logits = None if static.stops else _logits(arch, params, carry, logits_at, outside)
        outside.finish()
    arrays = {**rows, **outside.rows}
    if static.entering:
        carry = jax.tree.map(lambda each, last: jnp.concatenate([each, last[None]]), entered, carry)
    return (
        logits,
        tuple(arrays[i] for i in range(len(static.groups))),
        carry if static.stops or static.entering else None,
    )


def _logits(arch: Architecture, params: Params, carry: Any, at: Any, tap: Tap) -> jax.Array:
    """Logits of all positions, or ``[b, vocab]`` of one place of each row."""
    if at is None:
        return arch.readout(params, carry, tap)

    def pick(x: jax.Array) -> jax.Array:
        index = _counted(at, x.shape[1]).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1, mode="fill")

    return arch.readout(params, jax.tree.map(pick, carry), Tap.silent())[:, 0]


def _counted(at: Any, length: int) -> jax.Array:
    """Places ``[1 or b]`` counted from the start; out of range is ``length``."""
    index = jnp.asarray(at).reshape(-1)
    index = jnp.where(index < 0, index + length, index)
    return jnp.where(index < 0, length, index)


def _last_layer(arch: Architecture, blocks: Any, carry: Any, context: Any, at: Any) -> Any:
    """What the last layer gives at one position of each row: nobody looks into it."""
    last = arch.n_layers - 1
    length = jax.tree.leaves(carry)[0].shape[1]
    context = cast(Continuable, arch).only(context, _counted(at, length))
    return arch.block(layer_of(blocks, last), carry, context, jnp.int32(last), Tap.silent())


def _check_carry(carry: Any, wanted: Any, first: int) -> None:
    def whole(x: Any) -> tuple[tuple[int, ...], str]:
        shape = jnp.shape(x)
        return (*shape[:1], *(n + first for n in shape[1:2]), *shape[2:]), jnp.result_type(x).name

    given = jax.tree.map(whole, carry)
    needed = jax.tree.map(lambda x: (x.shape, x.dtype.name), wanted)
    if given != needed:
        raise ConfigError(f"carry= is {given}; this model carries {needed} into a layer")


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Full float32 products (the default on recent GPUs and TPUs is less), unless the user chose."""
    if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


@compiled(static=0)
def run_compiled(static: Static, params: Params, *data: Any) -> tuple[Any, tuple[jax.Array, ...], Any]:
    """`execute`, compiled once per (static, shapes, structure of the hooks)."""
    return execute(static, params, *data)
