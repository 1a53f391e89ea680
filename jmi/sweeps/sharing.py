"""What the cells of a sweep share with one base run, and the program that runs the rest of them.

A cell differs from the base run only from its first edited layer on, and only from its first edited
position on. It starts there, on what entered that layer in the base run, and later positions read the
keys and values that earlier ones had in the base run. Where logits of one position are wanted and nobody
looks into the last layer, only that position passes through it. Everything else is the base run's own
result, so a readout sees whole outputs and cannot tell.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture, Plan, as_list
from jmi.captures.output import Output, wrap
from jmi.checks import as_arrays
from jmi.engine.forward import Static, execute, plan_run
from jmi.engine.past import past_captures
from jmi.model.architecture import Continuable
from jmi.model.sites import part_of, table_of
from jmi.programs import compiled

Readout = Callable[[Output], Any]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The static part of a sweep.

    Attributes:
      static: of the base run, with the captures of the user first and what the cells reuse behind.
      kept: per capture of the user, its layers, or None outside the blocks.
      readout: structure of the function that reads each cell out; its arrays are data.
      kinds: hash of ``readout``, which sees classes that the comparison of structures overlooks.
      models: whether params have a leading axis of models.
    """

    static: Static
    kept: tuple[tuple[int, ...] | None, ...]
    readout: Any
    kinds: int
    models: bool

    @property
    def of_base(self) -> "Fixed":
        """What the base run depends on: not on how cells are read out."""
        return dataclasses.replace(self, readout=None, kinds=0)


@dataclasses.dataclass(frozen=True)
class Base:
    """The base run.

    Attributes:
      logits: ``[b, s, vocab]``, or ``[b, vocab]``.
      rows: what the user captures.
      carries: what entered each layer and the readout, ``[n_layers + 1, ...]``.
      past: keys and values ``[n_layers, b, s, g, k]``; empty for a model that cannot reuse them.
    """

    logits: jax.Array
    rows: tuple[jax.Array, ...]
    carries: Any
    past: tuple[jax.Array, ...]


jax.tree_util.register_dataclass(Base, ["logits", "rows", "carries", "past"], [])


def plan_base(
    arch: Any,
    tokens: Any,
    hooks: Any,
    capture: Sequence[str | Capture],
    readout: Any,
    models: bool,
    **run: Any,
) -> tuple[Fixed, tuple[Any, ...]]:
    """Validate the base run; its static part and its data."""
    reused = past_captures(arch).values()
    static, data, layout = plan_run(arch, tokens, hooks, [*as_list(capture), *reused], **run)
    static = dataclasses.replace(static, entering=True)
    kept = layout.layers[: len(layout.layers) - len(reused)]
    return Fixed(static, kept, readout, hash(readout), models), data


@compiled(static=0)
def run_base(fixed: Fixed, params: Any, data: tuple[Any, ...]) -> Base:
    """The base run of one model, or of each of several."""

    def one(params: Any) -> Base:
        logits, rows, carries = execute(fixed.static, params, *data)
        split = len(fixed.kept)
        return Base(logits, rows[:split], carries, rows[split:])

    return jax.vmap(one)(params) if fixed.models else one(params)


def run_cells(
    fixed: Fixed,
    first: int,
    embeds: bool,
    narrow: bool,
    structure: Any,
    params: Any,
    base: Base,
    data: tuple[Any, ...],
    reading: Sequence[Any],
    start: Any,
    layers: Any,
    shared: Sequence[Any],
    swept: Sequence[Any],
) -> Any:
    """Readouts ``[cells, ...]`` (or ``[models, cells, ...]``) of one chunk.

    Args:
      first: the position from which the cells are run; static.
      embeds: whether they begin with the embedding, at no layer; static.
      narrow: whether nothing but the wanted logits is needed of the last layer; static.
      structure: puts hooks together, as `Cells.hooks`; static.
      reading: arrays of the readout.
      start: the layer they begin at.
      layers: bool ``[hooks, n_layers]``, in which layers each hook acts.
      shared, swept: arrays of the hooks; the first swept one holds the indices of the cells, which may
        differ in their layers only.
    """
    readout = jax.tree.unflatten(fixed.readout, reading)

    def cell(params: Any, base: Base, swept: Sequence[Any]) -> Any:
        hooks = structure(layers, shared, swept[1:])
        out = _cell(fixed, first, embeds, narrow, params, base, data, start, hooks)
        return as_arrays("the readout", readout(out))

    run = jax.vmap(cell, in_axes=(None, None, 0))
    return (
        jax.vmap(run, in_axes=(0, 0, None))(params, base, swept) if fixed.models else run(params, base, swept)
    )


def _cell(
    fixed: Fixed,
    first: int,
    embeds: bool,
    narrow: bool,
    params: Any,
    base: Base,
    data: tuple[Any, ...],
    start: Any,
    hooks: Any,
) -> Output:
    """The whole output of one cell, of which only what differs from the base run is computed."""
    arch = fixed.static.arch
    inputs, base_hooks, reducers, _, _, logits_at = data
    hooks = {point: (*base_hooks.get(point, ()), *hooks.get(point, ())) for point in {**base_hooks, **hooks}}
    if not embeds:
        hooks = {point: hs for point, hs in hooks.items() if part_of(arch, point) != "embed"}
    # What lies before the blocks is the base run's; the cells do not pass through it.
    groups = fixed.static.groups[: len(fixed.kept)]
    own = [i for i, g in enumerate(groups) if embeds or part_of(arch, g.point) != "embed"]
    static = dataclasses.replace(
        fixed.static,
        groups=tuple(groups[i] for i in own),
        first=first,
        narrow=narrow,
        entering=False,
        structure=0,
    )
    pick = functools.partial(jax.lax.dynamic_index_in_dim, index=start, keepdims=False)
    carry = None if embeds else jax.tree.map(lambda x: pick(x)[:, first:], base.carries)
    if logits_at is not None:
        length = jnp.shape(inputs[0])[1]
        logits_at = jnp.where(logits_at < 0, logits_at + length, logits_at) - first
    context = None
    if first:
        context = cast(Continuable, arch).after(arch.context(params, *inputs), first, base.past)
    logits, rows, _ = execute(
        static,
        params,
        inputs,
        hooks,
        tuple(reducers[i] for i in own),
        carry,
        None if embeds else (start, None),
        logits_at,
        context,
    )
    if first and logits_at is None:
        logits = jnp.concatenate([base.logits[:, :first], logits], axis=1)
    whole = list(base.rows)
    for i, row in zip(own, rows, strict=True):
        whole[i] = (
            row if embeds else _filled(arch, groups[i].point, fixed.kept[i], base.rows[i], row, first, start)
        )
    plan = Plan(groups, (), fixed.kept)
    return wrap(plan, arch.n_layers, logits, tuple(whole), None, inputs[1])


def _filled(
    arch: Any, point: str, kept: Any, base: jax.Array, row: jax.Array, first: int, start: Any
) -> jax.Array:
    """A capture of a cell, with the base run's where the cell was not run."""
    axis = table_of(arch)[point].axis("pos", "query")
    if first and axis is not None:
        axis += kept is not None
        before = jax.lax.slice_in_dim(base, 0, first, axis=axis)
        row = jnp.concatenate([before, row], axis=axis)
    if kept is None:
        return row
    ran = np.asarray(kept, np.int32) >= start
    return jnp.where(ran.reshape(-1, *[1] * (row.ndim - 1)), row, base)
