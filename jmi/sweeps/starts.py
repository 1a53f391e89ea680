"""Where the cells of a sweep first differ from its base run: at which layer, and at which position."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jmi.hooks.attention import Edges
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.selection import Selective, lowest
from jmi.model.sites import HasSites, Site, part_of, table_of


def first_layers(arch: HasSites, points: Sequence[str], masks: np.ndarray) -> np.ndarray:
    """Per cell, the first layer of its ``masks`` [cells, hooks, n_layers]."""
    if any(part_of(arch, point) == "embed" for point in points):
        return np.full(len(masks), -1)
    acted = np.any(masks, axis=1)
    return np.where(np.any(acted, axis=1), np.argmax(acted, axis=1), arch.n_layers)


def bare(hook: Any) -> Any:
    """The intervention inside `At` and `PerLayer`."""
    hook = hook.hook if isinstance(hook, At) else hook
    return hook.hook if isinstance(hook, PerLayer) else hook


def first_positions(
    arch: HasSites,
    hooks: dict[str, Any],
    swept: dict[str, Any],
    count: int,
    shape: tuple[int, int],
    mask: Any,
) -> np.ndarray:
    """Per cell, the first place at which a hook acts; ``swept`` tells which arrays have cells."""
    first = np.full(count, shape[1])
    for point, site in table_of(arch).items():
        for hook, flags in zip(hooks.get(point, ()), swept.get(point, ()), strict=True):
            first = np.minimum(first, _position_of(bare(hook), bare(flags), site, shape[1], mask))
    return first


def _position_of(hook: Any, swept: Any, site: Site, length: int, mask: Any) -> Any:
    """One place, or one for each cell."""
    if site.axis("pos", "query") is None:
        return 0
    if isinstance(hook, Edges):
        if hook.mask is not None:
            return 0
        edges = None if hook.edges is None else np.asarray(hook.edges)[..., 0]
        # A query sees a key only from behind or beside it.
        each = ((hook.queries, swept.queries), (hook.keys, swept.keys), (edges, swept.edges))
        return functools.reduce(np.maximum, [lowest(x, length, bool(flag), mask) for x, flag in each])
    if not isinstance(hook, Selective):
        return 0
    return lowest(hook.positions, length, bool(swept.positions), mask)
