"""What the cells of a sweep share with a base run, and the program that runs the rest of them.

A cell differs from its base run only from its first edited layer on, and only from its first edited position
on. It starts there, on what entered that layer in the base run, and later positions read the keys and values
that earlier ones had in the base run. Where logits of one position are wanted and nobody looks into the last
layer, only that position passes through it. Everything else is the base run's own result, so a metric sees
whole outputs and cannot tell.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import CARRY, Capture, Group, Plan, plan
from jmi.captures.output import Output, wrap
from jmi.checks import as_arrays
from jmi.engine.forward import execute, last_layer
from jmi.engine.memory import leaving, named, only_caches
from jmi.engine.programs import compiled, warn_of_retraces
from jmi.engine.run import Run, plan_run
from jmi.model.sites import part_of, table_of
from jmi.tree import Structure


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The static part of a sweep.

    Attributes:
      groups: captures of the user.
      kept: per capture, its layers, or None outside the blocks.
      metric: structure of the function that reads each cell out; its arrays are data.
      models: whether params have a leading axis of models.
    """

    groups: tuple[Group, ...]
    kept: tuple[tuple[int, ...] | None, ...]
    metric: Structure
    models: bool


@dataclasses.dataclass(frozen=True)
class Base:
    """A base run.

    Attributes:
      logits: ``[b, s, vocab]``, or ``[b, vocab]``.
      rows: what the user captures.
      carries: what entered each layer, ``[n_layers, ...]``.
      memory: keys and values of all positions; None for a model that cannot reuse them.
    """

    logits: jax.Array
    rows: tuple[Any, ...]
    carries: Any
    memory: dict[str, Any] | None


jax.tree_util.register_dataclass(Base, ["logits", "rows", "carries", "memory"], [])


def plan_base(
    arch: Any, prompts: Any, hooks: Any, capture: Sequence[str | Capture], logits_at: Any
) -> tuple[Run, Plan]:
    """Validate a base run: its captures are the user's, whose plan is returned, then what cells reuse."""
    run, layout = plan_run(arch, prompts, hooks, capture, logits_at=logits_at)
    reused = [Capture(CARRY), *(leaving(arch) if only_caches(arch) else [])]
    kept = layout + plan(arch, reused, prompts.shape)
    static = dataclasses.replace(run.static, groups=kept.groups)
    return dataclasses.replace(run, reducers=kept.data, static=static), layout


@compiled(static=0)
def run_base(models: bool, run: Run, params: Any) -> Base:
    """The base run of one model, or of each of several."""

    def one(params: Any) -> Base:
        arch = run.static.arch
        logits, rows, _ = execute(run, params)
        split = next(i for i, group in enumerate(run.static.groups) if group.label == CARRY)
        left = rows[split + 1 :]
        return Base(logits, rows[:split], rows[split], named(arch, left) if left else None)

    return jax.vmap(one)(params) if models else one(params)


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """Which part of a cell is run; static.

    Attributes:
      first: the position it begins at.
      embeds: whether it begins with the embedding, at no layer.
      narrow: whether nothing but the wanted logits is needed of the last layer.
    """

    first: int
    embeds: bool
    narrow: bool


class Given(NamedTuple):
    """What the cells of a chunk have in common, arrays.

    Attributes:
      run: of the base.
      reading: arrays of the metric.
      start: the layer they begin at.
      layers: bool ``[hooks, n_layers]``, in which layers each hook acts.
      shared: arrays of the hooks.
    """

    params: Any
    base: Base
    run: Run
    reading: Sequence[Any]
    start: Any
    layers: Any
    shared: Sequence[Any]


def run_cells(fixed: Fixed, part: Part, structure: Any, given: Given, swept: Sequence[Any]) -> Any:
    """Metrics ``[cells, ...]`` (or ``[models, cells, ...]``) of one chunk.

    Args:
      structure: puts hooks together, as `Cells.hooks`; static.
      swept: arrays of the hooks that differ between cells; the first one holds the indices of the cells,
        which may differ in their layers only.
    """
    metric = jax.tree.unflatten(fixed.metric.tree, given.reading)

    def cell(params: Any, base: Base, swept: Sequence[Any]) -> Any:
        hooks = structure(given.layers, given.shared, swept[1:])
        warn_of_retraces((metric, hooks))
        out = _cell(fixed, part, params, base, given.run, start=given.start, hooks=hooks)
        return as_arrays("the metric", metric(out))

    cells = jax.vmap(cell, in_axes=(None, None, 0))
    if fixed.models:
        return jax.vmap(cells, in_axes=(0, 0, None))(given.params, given.base, swept)
    return cells(given.params, given.base, swept)


def _cell(fixed: Fixed, part: Part, params: Any, base: Base, run: Run, *, start: Any, hooks: Any) -> Output:
    """The whole output of one cell, of which only what differs from the base run is computed."""
    arch, first = run.static.arch, part.first
    hooks = {
        point: (*run.hooks.get(point, ()), *hooks.get(point, ()))
        for point in {**run.hooks, **hooks}
        if part.embeds or part_of(arch, point) != "embed"
    }
    # What lies before the blocks is the base run's; the cells do not pass through it.
    own = [i for i, g in enumerate(fixed.groups) if part.embeds or part_of(arch, g.point) != "embed"]
    length = run.prompts.shape[1]
    at = run.logits_at
    if at is not None:
        at = jnp.where(jnp.asarray(at) < 0, at + length, at) - first
    pick = functools.partial(jax.lax.dynamic_index_in_dim, index=start, keepdims=False)
    stop = arch.n_layers - 1 if part.narrow else None
    mine = dataclasses.replace(
        run,
        hooks=hooks,
        reducers=tuple(run.reducers[i] for i in own),
        carry=None if part.embeds else jax.tree.map(lambda x: pick(x)[:, first:], base.carries),
        span=None if part.embeds and stop is None else (0 if part.embeds else start, stop),
        logits_at=at,
        memory=base.memory if first else None,
        first=first,
        static=dataclasses.replace(
            run.static,
            groups=tuple(fixed.groups[i] for i in own),
            stops=part.narrow,
            length=length - first if first else None,
        ),
    )
    logits, rows, carry = execute(mine, params)
    if part.narrow:
        logits = last_layer(mine, params, carry)
    if first and at is None:
        logits = jnp.concatenate([base.logits[:, :first], logits], axis=1)
    whole = list(base.rows)
    for i, row in zip(own, rows, strict=True):
        fill = functools.partial(
            _filled, arch, fixed.groups[i].point, fixed.kept[i], first=first, start=start
        )
        whole[i] = row if part.embeds else jax.tree.map(fill, base.rows[i], row)
    layout = Plan(fixed.groups, (), fixed.kept)
    return wrap(layout, arch.n_layers, logits, whole, mask=run.prompts.mask)


def _filled(
    arch: Any, point: str, kept: Any, base: jax.Array, row: jax.Array, *, first: int, start: Any
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
