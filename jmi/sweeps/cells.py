"""The cells of a sweep: one hooks dict for each, all of one structure, checked before anything runs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.errors import HookError
from jmi.hooks.grid import Grid, Swept
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.resolve import Hooks, Placed, as_data, as_sequence, named, placed
from jmi.model.sites import HasSites
from jmi.sweeps.every_cell import check_cells
from jmi.sweeps.starts import first_layers, first_positions


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
    grids = list(dict.fromkeys(x.grid for x in leaves if isinstance(x, Swept)))
    if len(grids) != 1:
        raise HookError(
            f"the hooks have values of {len(grids)} grids, {grids}: name all axes in one jmi.Grid"
            if grids
            else "the hooks are the same in every cell: put values of a jmi.Grid into them, such as "
            "jmi.At(grid['layer'], ...)"
        )
    return grids[0]


def cells_of(arch: HasSites, hooks: Hooks, grid: Grid, shape: tuple[int, int], mask: Any = None) -> Cells:
    """Check the hooks of every cell, as `jmi.prepare` does, and take them apart.

    Args:
      hooks: values of ``grid`` in it differ between cells; all other arrays are the same in each.

    Raises:
      HookError, InterventionError: as `jmi.prepare`, for any cell.
    """
    host = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, dict(named(hooks)))
    given = {name: tuple(map(as_data, as_sequence(one))) for name, one in host.items()}
    if any(map(_holds_swept, jax.tree.leaves(given, is_leaf=_holds_swept))):
        raise HookError(
            "a value of a Grid stands inside a list: look up whole lists with grid.take(name, table)"
        )
    leaves, structure = jax.tree.flatten(given)

    def cell(pick: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        one = [pick(x.values) if isinstance(x, Swept) else x for x in leaves]
        return jax.tree.unflatten(structure, one)

    local = check_cells(arch, cell, len(grid), shape, mask)
    there = dict(sorted(placed(arch, given).items()))  # In the order in which a pytree has them.
    masks = [_acting(one, arch.n_layers) for ones in there.values() for one in ones if one.layers is not None]
    layers = np.zeros((len(grid), len(masks), arch.n_layers), bool)
    for i, mask_of_cells in enumerate(masks):
        layers[:, i] = mask_of_cells
    inner = {point: tuple(_without_layers(one.hook) for one in ones) for point, ones in there.items()}
    arrays = jax.tree.leaves(inner)
    return Cells(
        Structure(tree.structure_of(inner), tuple(isinstance(x, Swept) for x in arrays)),
        grid,
        layers,
        [np.asarray(x) for x in arrays if not isinstance(x, Swept)],
        [x.values for x in arrays if isinstance(x, Swept)],
        first_layers(arch, list(inner), layers),
        first_positions(arch, inner, len(grid), shape, mask) if local else np.zeros(len(grid), int),
    )


def _holds_swept(x: Any) -> bool:
    return isinstance(x, list) and any(isinstance(each, Swept) for each in x)


def _without_layers(hook: Any) -> Any:
    return hook.hook if isinstance(hook, At) else hook


def _acting(one: Placed, n_layers: int) -> np.ndarray:
    """Bool ``[cells, n_layers]``, or ``[1, n_layers]``: where it acts, all cells being known to be right."""
    chosen = _by_cell(one.hook.layers if isinstance(one.hook, At) else one.layers)
    masks = chosen
    if chosen.dtype != bool:
        masks = np.zeros((len(chosen), n_layers), bool)
        np.put_along_axis(masks, chosen.reshape(len(chosen), -1) % n_layers, True, axis=1)
    hook = _without_layers(one.hook)
    if isinstance(hook, PerLayer) and hook.slots is not None:
        masks = masks & (_by_cell(hook.slots) >= 0)
    return masks


def _by_cell(x: Any) -> np.ndarray:
    """Values ``[cells, ...]``, or ``[1, ...]`` of what all cells share."""
    return x.values if isinstance(x, Swept) else np.asarray(x)[None]


def _in_blocks(point: str) -> bool:
    return point.startswith("blocks.")
