"""The cells of a sweep: one hooks dict for each, all of one structure, checked before anything runs."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jmi import tree
from jmi.errors import HookError, InterventionError
from jmi.hooks.attention import Edges, Knockout, ScaleAttention, SetAttention
from jmi.hooks.freeze import Detach
from jmi.hooks.grid import Grid, Swept
from jmi.hooks.interventions import Add, Patch, Replace, Scale, Zero
from jmi.hooks.layers import At, having_rows
from jmi.hooks.noise import Noise
from jmi.hooks.projection import Project
from jmi.hooks.reach import says
from jmi.hooks.resolve import Hooks, as_data, named, prepare
from jmi.hooks.selection import Selective
from jmi.model.sites import HasSites, find, table_of
from jmi.sweeps.starts import bare, first_layers, first_positions

_OURS = (Add, Detach, Knockout, Noise, Patch, Project, Replace, Scale, ScaleAttention, SetAttention, Zero)

_BY_RANGE = {
    None,
    *(Selective.check, Patch.check, Edges.check),
    *(getattr(each, ask, None) for each in _OURS for ask in ("is_local", "is_causal")),
}
"""Checks and answers that hold for every cell if they do for the least and for the largest values of all."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """How the hooks of a cell are put together: the static part of a sweep's hooks.

    Attributes:
      whole: structure of the hooks without their layers.
      swept: for each leaf, whether it has a cell axis.
    """

    whole: tree.Structure
    swept: tuple[bool, ...]

    @property
    def points(self) -> list[str]:
        """Where the hooks act."""
        return list(jax.tree.unflatten(self.whole.tree, self.swept))

    def hooks(self, layers: Any, shared: Sequence[Any], swept: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
        """Prepared hooks of one cell from its parts."""
        ours, theirs, masks = iter(shared), iter(swept), iter(layers)
        leaves = [next(theirs) if flag else next(ours) for flag in self.swept]
        return {
            point: tuple(At(next(masks), h) if _in_blocks(point) else h for h in sequence)
            for point, sequence in jax.tree.unflatten(self.whole.tree, leaves).items()
        }


@dataclasses.dataclass(frozen=True)
class Cells:
    """Prepared hooks of every cell, taken apart.

    Attributes:
      structure: puts them together again.
      grid: whose cells they are.
      layers: bool ``[cells, hooks, n_layers]``: in which layers each block hook acts.
      shared: arrays that all cells share.
      swept: the other arrays, ``[cells, ...]``.
      first_layer: per cell, the first layer that differs from the base run; -1 when what enters the
        first layer does, ``n_layers`` when only the unembedding does.
      first_position: per cell, the first position at which anything differs.
    """

    structure: Structure
    grid: Grid
    layers: np.ndarray
    shared: list[Any]
    swept: list[np.ndarray]
    first_layer: np.ndarray
    first_position: np.ndarray

    def __len__(self) -> int:
        return len(self.first_layer)


def grid_of(hooks: Hooks, base: Hooks | None = None) -> Grid:
    """The one grid whose values are in the hooks of cells and base; HookError for none, or two of them."""
    leaves = jax.tree.leaves((dict(named(hooks)), dict(named(base))))
    grids = {id(x.grid): x.grid for x in leaves if isinstance(x, Swept)}
    if len(grids) != 1:
        raise HookError(
            f"the hooks have values of {len(grids)} grids, {[*grids.values()]}: name all axes in one jmi.Grid"
            if grids
            else "the hooks are the same in every cell: put values of a jmi.Grid into them, such as "
            "jmi.At(grid['layer'], ...)"
        )
    return next(iter(grids.values()))


def cells_of(arch: HasSites, hooks: Hooks, grid: Grid, shape: tuple[int, int], mask: Any = None) -> Cells:
    """Check the hooks of every cell, as `jmi.prepare` does, and take them apart.

    Args:
      hooks: values of ``grid`` in it differ between cells; all other arrays are the same in each.

    Raises:
      HookError, InterventionError: as `jmi.prepare`, for any cell.
    """
    # In numpy from the start: `prepare` must find nothing left to convert, for it is matched by identity.
    host = jax.tree.map(_on_host, dict(named(hooks)))
    given = {
        name: tuple(as_data(h) for h in (v if isinstance(v, (list, tuple)) else (v,)))
        for name, v in host.items()
    }
    if any(map(_holds_swept, jax.tree.leaves(given, is_leaf=_holds_swept))):
        raise HookError(
            "a value of a Grid stands inside a list: look up whole lists with grid.take(name, table)"
        )
    leaves, structure = jax.tree.flatten(given)
    swept = [isinstance(x, Swept) for x in leaves]
    columns = [x.values if isinstance(x, Swept) else np.asarray(x) for x in leaves]

    def cell(pick: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        one = [pick(x) if flag else x for x, flag in zip(columns, swept, strict=True)]
        return jax.tree.unflatten(structure, one)

    local = _checked(arch, cell, len(grid), shape, mask)
    # Of the first cell, arrays: where one of them comes out again, there its column belongs.
    slices = [x[0, ...] if flag else x for x, flag in zip(columns, swept, strict=True)]
    column_of = {id(x): c for x, c, flag in zip(slices, columns, swept, strict=True) if flag}
    first = jax.tree.unflatten(structure, slices)
    return _taken_apart(arch, first, column_of, grid, local, shape=shape, mask=mask)


def _on_host(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) else x


def _holds_swept(x: Any) -> bool:
    return isinstance(x, list) and any(isinstance(each, Swept) for each in x)


def _checked(
    arch: HasSites, cell: Callable[..., Hooks], count: int, shape: tuple[int, int], mask: Any
) -> bool:
    """Raise what `jmi.prepare` raises for any cell; whether all hooks of all cells are local.

    Args:
      cell: makes hooks, given what to take of columns.
    """
    first = cell(operator.itemgetter(0))
    asked = {
        getattr(type(bare(hook)), name, None)
        for hooks in first.values()
        for hook in hooks
        for name in ("check", "is_local", "is_causal")
    }

    def local(cells: Iterable[Hooks]) -> bool:
        # Each is checked, also those behind one that is not local.
        answers = [all_say(arch, prepare(arch, each, shape, mask), "is_local") for each in cells]
        return all(answers)

    if asked <= _BY_RANGE and _in_every_layer(arch, first):
        extremes = [cell(functools.partial(extreme, axis=0)) for extreme in (np.min, np.max)]
        # Padded rows differ in length: the extremes tell of all cells if these choose the same rows.
        if mask is None or _rows(extremes[0]) == _rows(extremes[1]):
            with contextlib.suppress(HookError, InterventionError):
                return local(extremes)
    return local(cell(operator.itemgetter(i)) for i in range(count))


def _in_every_layer(arch: HasSites, hooks: Hooks) -> bool:
    """Whether every hook inside the blocks can act in any layer: the point and its own arrays are there."""
    whole = {site.n_layers in (None, arch.n_layers) for name in hooks for site, _ in find(arch, name)}
    inner = (h.hook if isinstance(h, At) else h for sequence in hooks.values() for h in sequence)
    return all(whole) and all(having_rows(hook, arch.n_layers) is None for hook in inner)


def _rows(hooks: Hooks) -> list[Any]:
    """The rows that each hook chooses."""
    chosen = [getattr(bare(hook), "rows", None) for sequence in hooks.values() for hook in sequence]
    return [None if rows is None else np.asarray(rows).tolist() for rows in chosen]


def all_say(
    arch: HasSites, prepared: Mapping[str, Sequence[Any]], question: Literal["is_local", "is_causal"]
) -> bool:
    """Whether every intervention says yes to ``question``."""
    table = table_of(arch)
    return all(says(hook, question, table[point]) for point, hooks in prepared.items() for hook in hooks)


def _taken_apart(
    arch: HasSites,
    first: Hooks,
    column_of: Mapping[int, np.ndarray],
    grid: Grid,
    local: bool,
    *,
    shape: tuple[int, int],
    mask: Any,
) -> Cells:
    """All cells from the first one; ``column_of`` gives by identity the values in all of its swept arrays."""
    masks: dict[int, np.ndarray] = {}
    count = len(grid)

    def marked(hook: Any) -> Any:
        """``hook`` with, for layers that differ between cells, a mask that is known again by identity."""
        if not isinstance(hook, At) or id(hook.layers) not in column_of:
            return hook
        every, has = (
            _layer_masks(column_of[id(hook.layers)], arch.n_layers),
            having_rows(hook.hook, arch.n_layers),
        )
        every = every if has is None else every & has
        mark = every.any(0)
        masks[id(mark)] = every
        return dataclasses.replace(hook, layers=mark)

    marked_hooks = {name: tuple(map(marked, hooks)) for name, hooks in first.items()}
    prepared = prepare(arch, marked_hooks, shape, mask)
    # In the order in which a pytree has them.
    in_order = {point: prepared[point] for point in sorted(prepared)}
    layers = np.zeros((count, 0, arch.n_layers), bool)
    for hook in (h for point, hs in in_order.items() if _in_blocks(point) for h in hs):
        every = masks.get(id(hook.layers), np.broadcast_to(hook.layers, (count, arch.n_layers)))
        layers = np.concatenate([layers, every[:, None]], axis=1)

    inner = {point: tuple(h.hook if _in_blocks(point) else h for h in hs) for point, hs in in_order.items()}
    leaves, treedef = jax.tree.flatten(inner)
    swept = [id(x) in column_of for x in leaves]
    of_layers = {id(hook.layers) for hooks in first.values() for hook in hooks if isinstance(hook, At)}
    assert set(column_of) <= {*map(id, leaves)} | of_layers, "a swept array was lost"
    values = [column_of.get(id(x), x) for x in leaves]
    first_position = np.zeros(count, int)
    if local:
        whole, flags = jax.tree.unflatten(treedef, values), jax.tree.unflatten(treedef, swept)
        first_position = first_positions(arch, whole, flags, count, shape, mask)
    return Cells(
        Structure(tree.structure_of(inner), tuple(swept)),
        grid,
        layers,
        [x for x, flag in zip(values, swept, strict=True) if not flag],
        [x for x, flag in zip(values, swept, strict=True) if flag],
        first_layers(arch, list(inner), layers),
        first_position,
    )


def _layer_masks(layers: np.ndarray, n_layers: int) -> np.ndarray:
    """``[cells, n_layers]`` of checked layers: ``[cells]``, ``[cells, n]``, or masks already."""
    if layers.dtype == bool:
        return layers
    masks = np.zeros((len(layers), n_layers), bool)
    np.put_along_axis(masks, layers.reshape(len(layers), -1) % n_layers, True, axis=1)
    return masks


def _in_blocks(point: str) -> bool:
    return point.startswith("blocks.")
