"""`forward`: embeds, runs the layers, reads out. Everything else in jmi is built on it."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi.captures.capture import Capture, Plan
from jmi.captures.output import Output, wrap
from jmi.checks import check_model
from jmi.engine.layers import layer_of, run_layers, segments
from jmi.engine.memory import Memory, grown, named, written
from jmi.engine.programs import compiled
from jmi.engine.run import Run, plan_run
from jmi.engine.tap import LiveTap
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import Prompts
from jmi.model.tap import SILENT, Tap


def forward(
    arch: Architecture,
    params: Params,
    prompts: Prompts | jax.Array,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    *,
    start_at_layer: Any = None,
    carry: Any = None,
    stop_at_layer: Any = None,
    memory: bool | Memory = False,
    logits_at: Any = None,
    remat: bool = True,
) -> Output:
    """Run a model: a pure function, for your own jit, vmap, grad and shard_map.

    Args:
      arch: the architecture; hashable, so it can be a static argument of your jit.
      params: its parameters; floating dtype decides the dtype of the computation.
      prompts: tokens int32 ``[b, s]``, or `Prompts` with a mask or positions. Ids that are no tokens give NaN
        where they are traced, else an error.
      hooks: site name -> intervention, or sequence of interventions run in order.
      capture: site names and `Capture` objects to return.
      start_at_layer: run from this layer on ``carry`` instead of embedding the tokens; an int or a
        traced scalar, never recompiles.
      carry: what enters that layer, as ``out.carry`` of a run that stopped there: the residual stream
        ``[b, s, d_model]``, or for some architectures a dict with it.
      stop_at_layer: stop before this layer and return its input as ``out.carry`` (no logits).
      memory: True returns ``out.memory``, what the positions left behind for later ones. Given that of an
        earlier run, ``prompts`` go on where it ended. Interventions that act position by position
        (`jmi.hooks.reach`) then count from the start of the whole text; any other, captures and reducers see
        ``prompts`` alone. A text run in pieces is one run.
      logits_at: the position whose logits are wanted, an int (negative counts from the last real token)
        or int32 ``[b]``, one for each row: ``out.logits`` is then ``[b, vocab]``, and no other is computed.
        A traced one out of range gives NaN.
      remat: under reverse-mode gradients, recompute each layer instead of storing its insides:
        memory no longer grows with layers x sites, for the operations of one more forward pass.

    Returns:
      `Output`. Layers that did not run have NaN captures (integers -1).

    Raises:
      HookError, InterventionError: before any computation.
      ArgumentError: arguments that contradict each other, ids outside the vocabulary, or more tokens than the
        context holds.

    Matmuls use precision ``highest`` unless ``jax.default_matmul_precision`` is set.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> tokens = lm.encode("The capital of France is")
      >>> out = jmi.forward(lm.arch, lm.params, tokens, capture=["blocks.*.hook_resid_post"])
      >>> out.stack("hook_resid_post").shape == (lm.arch.n_layers, *tokens.shape, lm.arch.d_model)
      True
    """
    check_model(arch, params)
    run, layout = plan_run(
        arch,
        prompts,
        hooks,
        capture,
        start_at_layer=start_at_layer,
        carry=carry,
        stop_at_layer=stop_at_layer,
        memory=memory,
        logits_at=logits_at,
        remat=remat,
    )
    return finished(run, layout, *execute(run, params))


def finished(run: Run, layout: Plan, logits: Any, rows: tuple[Any, ...], carry: Any) -> Output:
    """`Output` of what a run gave, of which the captures of ``layout`` come first."""
    arch, split = run.static.arch, len(layout.groups)
    memory = None
    if len(rows) > split:
        left = rows[split:]
        if run.memory is None:
            memory = Memory(run.prompts, named(arch, left))
        else:
            room = grown(arch, run.memory, run.prompts.shape[1])
            memory = Memory(run.prompts, written(arch, room, left, run.first))
    mask = run.own.mask
    return wrap(layout, arch.n_layers, logits, rows[:split], carry=carry, memory=memory, mask=mask)


def execute(run: Run, params: Params) -> tuple[Any, tuple[Any, ...], Any]:
    """The traced part of a run: (logits, captured values in the order of its groups, final carry or None)."""
    static = run.static
    arch = static.arch
    with precise():
        context = context_of(run, params)
        if run.memory is not None:
            run = dataclasses.replace(run, memory=grown(arch, run.memory, run.prompts.shape[1]))
        outside = LiveTap(run, run.hooks, run.reducers)
        carry = run.carry
        if carry is None:
            carry = arch.embed(params, run.own, context, outside)
        else:
            _check_carry(carry, jax.eval_shape(lambda: arch.embed(params, run.own, context, SILENT)))
        carry = vary_like(carry, (params, run))
        carry, rows = run_layers(run, params["blocks"], carry, context)
        logits = None if static.stops else _logits(arch, params, carry, run.logits_at, outside)
        outside.finish(None)
    rows = {**rows, **outside.rows}
    return logits, tuple(rows[i] for i in range(len(static.groups))), carry if static.stops else None


def context_of(run: Run, params: Params) -> Any:
    """What every layer of a run reads besides its weights, of the positions that are run."""
    arch, length = run.static.arch, run.static.length
    context = arch.context(params, run.prompts) if run.context is None else run.context
    if length is None or run.memory is None:
        return context
    return arch.within(context, run.first, length)  # type: ignore[attr-defined]


def _logits(arch: Architecture, params: Params, carry: Any, at: Any, tap: Tap) -> jax.Array:
    """Logits of all positions, or ``[b, vocab]`` of one place of each row."""
    if at is None:
        return arch.unembed(params, carry, tap)

    def pick(x: jax.Array) -> jax.Array:
        index = counted(at, x.shape[1]).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1, mode="fill")

    return arch.unembed(params, jax.tree.map(pick, carry), SILENT)[:, 0]


def counted(at: Any, length: int) -> jax.Array:
    """Places ``[1 or b]`` counted from the start; out of range is ``length``."""
    index = jnp.asarray(at).reshape(-1)
    index = jnp.where(index < 0, index + length, index)
    return jnp.where(index < 0, length, index)


def last_layer(run: Run, params: Params, carry: Any) -> jax.Array:
    """Logits ``[b, vocab]`` of a run that stopped before its last layer, of which nothing else is wanted.

    Nobody looks into that layer: only the place of the wanted logits passes through it (`Narrowing`).
    """
    arch: Any = run.static.arch
    with precise():
        at = counted(run.logits_at, jax.tree.leaves(carry)[0].shape[1])
        context = arch.only(context_of(run, params), at)
        part = segments(arch, params["blocks"])[-1]
        own = layer_of(part.params, len(part.layers) - 1)
        blind = dataclasses.replace(run, static=dataclasses.replace(run.static, groups=()))
        tap = LiveTap(blind, {}, (), jnp.int32(arch.n_layers - 1))
        carry = arch.block(own, carry, context, jnp.int32(arch.n_layers - 1), tap)
        return _logits(arch, params, carry, 0, SILENT)


def _check_carry(carry: Any, wanted: Any) -> None:
    described = functools.partial(jax.tree.map, lambda x: (jnp.shape(x), jnp.result_type(x).name))
    given, needed = described(carry), described(wanted)
    if given != needed:
        raise ArgumentError(f"carry= is {given}; this model carries {needed} into a layer")


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Full float32 products (the default on recent GPUs and TPUs is less), unless the user chose."""
    if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield


@compiled()
def run_compiled(run: Run, params: Params) -> tuple[Any, tuple[Any, ...], Any]:
    """`execute`, compiled once per structure and shapes of a run."""
    return execute(run, params)
