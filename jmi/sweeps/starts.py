"""Where the cells of a sweep first differ from its base run: at which layer, and at which position."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jmi.hooks.attention import Edges
from jmi.hooks.grid import Swept
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
    arch: HasSites, hooks: dict[str, Any], count: int, shape: tuple[int, int], mask: Any
) -> np.ndarray:
    """Per cell, the first place at which a hook acts; values of the grid stand in ``hooks``."""
    first = np.full(count, shape[1])
    for point, site in table_of(arch).items():
        for hook in hooks.get(point, ()):
            first = np.minimum(first, _position_of(bare(hook), site, shape[1], mask))
    return first


def _position_of(hook: Any, site: Site, length: int, mask: Any) -> Any:
    """One place, or one for each cell."""
    if site.axis("pos", "query") is None:
        return 0
    if isinstance(hook, Edges):
        if hook.mask is not None:
            return 0
        # A query sees a key only from its own place or from a later one.
        chosen = (_lowest(hook.queries, length, mask), _lowest(hook.keys, length, mask))
        return np.maximum(np.maximum(*chosen), _lowest(hook.edges, length, mask, (..., 0)))
    if not isinstance(hook, Selective):
        return 0
    return _lowest(hook.positions, length, mask)


def _lowest(selector: Any, length: int, mask: Any, part: Any = ...) -> np.ndarray:
    """The lowest place that ``part`` of a selector chooses, for each cell where cells differ in it."""
    if isinstance(selector, Swept):
        return lowest(selector.values[part], length, cells=True, mask=mask)
    return lowest(None if selector is None else np.asarray(selector)[part], length, mask=mask)
