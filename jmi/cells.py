"""The cells of a sweep: one hooks dict for each, all of one structure, checked before anything runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi import pytrees
from jmi.attention_edits import Edges, Knockout, ScaleAttention, SetAttention
from jmi.errors import ConfigError, HookError
from jmi.hooks import Hooks, as_data, prepare
from jmi.interventions import Add, At, Patch, PerLayer, Project, Replace, Scale, Zero
from jmi.noise import Noise
from jmi.selection import Selective, lowest
from jmi.sites import HasSites, Site, part_of, table_of

_LOCAL = (Replace, Add, Scale, Zero, Patch, Project, Noise, Knockout, ScaleAttention, SetAttention)
"""Interventions whose result at a position is made of that position alone, or of its row of attention."""


@pytrees.dataclass
class Shared:
    """An array of a sweep's hooks that is the same in every cell: it has no sweep axis."""

    value: Any


class Grid:
    """Named axes of a sweep and every combination of their values, the last axis fastest.

    ``grid["layer"]`` is one value for each cell, to be put into hooks; ``grid.fold(results)`` gives
    results their axes back.

    Example:
      >>> import jmi
      >>> grid = jmi.Grid(layer=range(3), position=[0, 5])
      >>> grid["position"].tolist()
      [0, 5, 0, 5, 0, 5]
      >>> grid.fold(grid["layer"]).shape
      (3, 2)
    """

    def __init__(self, **axes: Any) -> None:
        self.axes = {name: np.asarray(values) for name, values in axes.items()}
        for name, values in self.axes.items():
            if values.ndim != 1 or not values.size:
                raise ConfigError(
                    f"Grid: {name}= needs one or more values in a row, got shape {values.shape}; for an "
                    f"axis of vectors, give indices and look the vectors up with grid[{name!r}]"
                )
        index = np.indices(self.shape).reshape(len(self.axes), -1)
        self._values = {n: v[i] for (n, v), i in zip(self.axes.items(), index, strict=True)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each axis."""
        return tuple(len(values) for values in self.axes.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            raise ConfigError(f"Grid has no axis {name!r}; it has {', '.join(self._values)}")
        return self._values[name]

    def fold(self, results: Any) -> Any:
        """Results ``[cells, ...]``, a pytree, as ``[*grid.shape, ...]``."""
        return jax.tree.map(lambda x: x.reshape(*self.shape, *x.shape[1:]), results)


@dataclasses.dataclass(frozen=True)
class Structure:
    """How the hooks of a cell are put together: the static part of a sweep's hooks.

    Attributes:
      tree: structure of the hooks without their layers.
      swept: for each leaf, whether it has a cell axis.
      kinds: hash of ``tree``, which sees classes that the comparison of structures overlooks.
    """

    tree: Any
    swept: tuple[bool, ...]
    kinds: int

    @property
    def points(self) -> list[str]:
        """Where the hooks act."""
        return list(jax.tree.unflatten(self.tree, self.swept))

    def hooks(self, layers: Any, shared: Sequence[Any], swept: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
        """Prepared hooks of one cell from its parts."""
        ours, theirs, masks = iter(shared), iter(swept), iter(layers)
        leaves = [next(theirs) if flag else next(ours) for flag in self.swept]
        return {
            point: tuple(At(next(masks), h) if _in_blocks(point) else h for h in sequence)
            for point, sequence in jax.tree.unflatten(self.tree, leaves).items()
        }


@dataclasses.dataclass(frozen=True)
class Cells:
    """Prepared hooks of every cell, taken apart.

    Attributes:
      structure: puts them together again.
      layers: bool ``[cells, hooks, n_layers]``: in which layers each block hook acts.
      shared: arrays that all cells share.
      swept: the other arrays, ``[cells, ...]``.
      first_layer: per cell, the first layer that differs from the base run; -1 when what enters the
        first layer does, ``n_layers`` when only the readout does.
      first_position: per cell, the first position at which anything differs.
    """

    structure: Structure
    layers: np.ndarray
    shared: list[Any]
    swept: list[np.ndarray]
    first_layer: np.ndarray
    first_position: np.ndarray

    def __len__(self) -> int:
        return len(self.first_layer)


def cells_of(arch: HasSites, hooks: Hooks, shape: tuple[int, int]) -> Cells:
    """Check the hooks of every cell, as `jmi.prepare` does, and take them apart.

    Args:
      hooks: every array in it has a leading axis of cells, but those in `Shared`; plain numbers and
        arrays without axes are the same in every cell.

    Raises:
      HookError: no array has a cell axis, or they differ in length.
      HookError, InterventionError: as `jmi.prepare`, for any cell.
    """
    given = {
        name: tuple(as_data(h) for h in (v if isinstance(v, (list, tuple)) else (v,)))
        for name, v in hooks.items()
    }
    leaves, structure = jax.tree.flatten(given, is_leaf=lambda x: isinstance(x, Shared))
    swept = [not isinstance(x, Shared) and np.ndim(x) > 0 for x in leaves]
    count = _count(given, leaves, swept)
    values = [x.value if isinstance(x, Shared) else np.asarray(x) for x in leaves]
    prepared = []
    for i in range(count):
        one = [x[i] if flag else x for x, flag in zip(values, swept, strict=True)]
        hooks = prepare(arch, jax.tree.unflatten(structure, one), shape)
        # In the order in which a pytree has them.
        prepared.append(dict(sorted(hooks.items())))
    return _taken_apart(arch, prepared, shape)


def _count(hooks: Mapping[str, Any], leaves: list[Any], swept: list[bool]) -> int:
    sizes = {len(x) for x, flag in zip(leaves, swept, strict=True) if flag}
    if not sizes:
        raise HookError("no array of the hooks has a sweep axis: give one value for each cell")
    if len(sizes) > 1:
        shapes = {
            name: [np.shape(x) for x in jax.tree.leaves(h, is_leaf=lambda x: isinstance(x, Shared))]
            for name, h in hooks.items()
        }
        raise HookError(
            f"arrays of the hooks have sweep axes of different lengths, {sorted(sizes)}: {shapes}. "
            "What is the same in every cell belongs in jmi.Shared(...)"
        )
    (count,) = sizes
    if not count:
        raise HookError("the sweep axis is empty: there is no cell to run")
    return count


def _taken_apart(arch: HasSites, prepared: list[dict[str, Any]], shape: tuple[int, int]) -> Cells:
    bare = [
        {point: tuple(h.hook if _in_blocks(point) else h for h in hs) for point, hs in p.items()}
        for p in prepared
    ]
    structures = {jax.tree.structure(tree) for tree in bare}
    assert len(structures) == 1, "slices of one pytree have one structure"
    columns = list(zip(*(jax.tree.leaves(tree) for tree in bare), strict=True))
    same = [all(x is column[0] for x in column) for column in columns]
    tree = structures.pop()
    masks = np.array([_masks(p) for p in prepared], bool).reshape(len(prepared), -1, arch.n_layers)
    local = is_local(prepared[0])
    return Cells(
        Structure(tree, tuple(not one for one in same), hash(tree)),
        masks,
        [column[0] for column, one in zip(columns, same, strict=True) if one],
        [_stacked(column) for column, one in zip(columns, same, strict=True) if not one],
        _first_layers(arch, list(prepared[0]), masks),
        np.array([_first_position(arch, p, shape) if local else 0 for p in prepared]),
    )


def _stacked(column: Sequence[Any]) -> np.ndarray:
    stack = np.stack([np.asarray(x) for x in column])
    return stack.astype(jax.dtypes.canonicalize_dtype(stack.dtype))


def _in_blocks(point: str) -> bool:
    return point.startswith("blocks.")


def _masks(prepared: Mapping[str, Any]) -> list[np.ndarray]:
    return [h.layers for point, hs in prepared.items() if _in_blocks(point) for h in hs]


def _first_layers(arch: HasSites, points: Sequence[str], masks: np.ndarray) -> np.ndarray:
    """Per cell, the first layer of its ``masks`` [cells, hooks, n_layers]."""
    if any(part_of(arch, point) == "embed" for point in points):
        return np.full(len(masks), -1)
    acted = np.any(masks, axis=1)
    return np.where(np.any(acted, axis=1), np.argmax(acted, axis=1), arch.n_layers)


def _bare(hook: Any) -> Any:
    """The intervention inside `At` and `PerLayer`."""
    hook = hook.hook if isinstance(hook, At) else hook
    return hook.hook if isinstance(hook, PerLayer) else hook


def is_local(prepared: Mapping[str, Any]) -> bool:
    """Whether no intervention carries anything from one position to another."""
    return all(type(_bare(h)) in _LOCAL for hs in prepared.values() for h in hs)


def _first_position(arch: HasSites, prepared: Mapping[str, Any], shape: tuple[int, int]) -> int:
    table = table_of(arch)
    places = [_position_of(_bare(h), table[point], shape) for point, hs in prepared.items() for h in hs]
    return min(places, default=shape[1])


def _position_of(hook: Any, site: Site, shape: tuple[int, int]) -> int:
    axis, length = site.axis("pos", "query"), shape[1]
    if axis is None:
        return 0
    if isinstance(hook, Edges):
        if hook.mask is not None:
            return 0
        queries, keys = lowest(hook.queries, length), lowest(hook.keys, length)
        pairs = 0 if hook.edges is None else lowest(np.asarray(hook.edges)[:, 0], length)
        # A query sees a key only from behind or beside it.
        return max(queries, keys, pairs)
    assert isinstance(hook, Selective)
    return lowest(hook.positions, length)
