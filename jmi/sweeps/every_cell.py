"""What is asked of the hooks of every cell of a sweep before anything runs."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jmi.errors import HookError, InterventionError
from jmi.hooks.attention import Edges, Knockout, ScaleAttention, SetAttention
from jmi.hooks.freeze import Detach
from jmi.hooks.interventions import Add, Patch, Replace, Scale, Zero
from jmi.hooks.layers import At, having_rows
from jmi.hooks.noise import Noise
from jmi.hooks.projection import Project
from jmi.hooks.reach import says
from jmi.hooks.resolve import Hooks, prepare
from jmi.hooks.selection import Selective
from jmi.model.sites import HasSites, find, table_of
from jmi.sweeps.starts import bare

_OURS = (Add, Detach, Knockout, Noise, Patch, Project, Replace, Scale, ScaleAttention, SetAttention, Zero)

_BY_RANGE = {
    None,
    *(Selective.check, Patch.check, Edges.check),
    *(getattr(each, ask, None) for each in _OURS for ask in ("is_local", "is_causal")),
}
"""Checks and answers that hold for every cell if they do for the least and for the largest values of all."""


def check_cells(
    arch: HasSites, cell: Callable[..., Hooks], count: int, shape: tuple[int, int], mask: Any
) -> bool:
    """Raise what `jmi.prepare` raises for any cell; whether all hooks of all cells are local.

    Args:
      cell: makes hooks, given what to take of the values ``[cells, ...]`` that differ between cells.
    """
    first = cell(operator.itemgetter(0))
    asked = {
        getattr(type(bare(hook)), name, None)
        for hooks in first.values()
        for hook in hooks
        for name in ("check", "is_local", "is_causal")
    }

    def local(cells: Iterable[Hooks]) -> bool:
        # Each is checked, also those after one that is not local.
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
