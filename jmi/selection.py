"""Selectors: which batch rows, positions, heads and units of a tensor an intervention touches.

A selector is an index (negative counts from the end), a list of indices, or a boolean mask over
the axis. Indices and masks are data, so changing them never recompiles; going from one index to
several changes a shape and does. A traced index out of range selects nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jmi import pytrees
from jmi.errors import InterventionError
from jmi.sites import Site

AXES_OF = {
    "rows": ("batch",),
    "positions": ("pos", "query"),
    "heads": ("head", "kv_head"),
    "units": ("d_model", "d_head", "d_mlp", "expert", "vocab", "d_value"),
    "queries": ("query",),
    "keys": ("key",),
}
"""Selector name -> the site axes it can mean, first match wins."""


def axis_mask(selector: Any, size: int) -> jax.Array:
    """Boolean mask ``[size]`` (or ``[b, size]`` from per-row indices ``[b, n]``) of a selector."""
    selector = jnp.asarray(selector)
    if selector.dtype == bool:
        return selector
    index = jnp.where(selector < 0, selector + size, selector)
    if index.ndim == 0:
        index = index[None]
    every = jnp.expand_dims(jnp.arange(size, dtype=index.dtype), range(index.ndim))
    return (index[..., None] == every).any(-2)


def lowest(selector: Any, size: int, cells: bool = False) -> np.ndarray:
    """The lowest index that a selector (not traced) chooses; 0 when it is None, ``size`` when none.

    Args:
      cells: the first axis is one of cells, each with an answer of its own.
    """
    if selector is None:
        return np.zeros((), int)
    values = np.asarray(selector)
    if values.dtype == bool:
        chosen = np.where(values, np.arange(size), size)
    else:
        chosen = np.where(values < 0, values + size, values)
    return chosen.reshape(*chosen.shape[: int(cells)], -1).min(-1, initial=size)


def site_mask(selectors: dict[str, Any], site: Site, shape: tuple[int, ...]) -> jax.Array | None:
    """Mask broadcastable to ``shape``: True where every selector that is given agrees."""
    mask = None
    for name, selector in selectors.items():
        if selector is None:
            continue
        axis = _axis(name, site)
        part = axis_mask(selector, shape[axis])
        where = [1] * len(shape)
        where[axis] = shape[axis]
        if part.ndim == 2:
            where[0] = shape[0]
        part = part.reshape(where)
        mask = part if mask is None else mask & part
    return mask


def check_selectors(selectors: dict[str, Any], site: Site, shape: tuple[int, ...]) -> None:
    """Raise InterventionError for a selector that this site cannot have or that is out of range."""
    for name, selector in selectors.items():
        if selector is None or isinstance(selector, jax.core.Tracer):
            continue
        axis = _axis(name, site)
        size, values = shape[axis], np.asarray(selector)
        if values.dtype == bool:
            if values.shape[-1:] != (size,) or values.ndim > 2:
                raise InterventionError(
                    f"{site.point}: {name}= is a mask of shape {values.shape}, but the "
                    f"{site.axes[axis]} axis has {size} entries"
                )
        elif not np.issubdtype(values.dtype, np.integer):
            raise InterventionError(f"{site.point}: {name}= must be integers or booleans, got {selector!r}")
        elif values.size and (values.min() < -size or values.max() >= size):
            raise InterventionError(
                f"{site.point}: {name}={values.tolist()} is out of range; the {site.axes[axis]} axis "
                f"has {size} entries (use {-size} to {size - 1})"
            )
        if (values.ndim == 2 and values.shape[0] != shape[0]) or values.ndim > 2:
            raise InterventionError(
                f"{site.point}: {name}= of shape {values.shape}; give a list, or one row for each of "
                f"the {shape[0]} batch rows"
            )


def _axis(name: str, site: Site) -> int:
    axis = site.axis(*AXES_OF[name])
    if axis is None:
        raise InterventionError(
            f"{site.point}: {name}= has no meaning here; its axes are {', '.join(site.axes)}"
        )
    return axis


@pytrees.dataclass
class Selective:
    """Base of interventions that touch a chosen part of a tensor; nothing chosen means all of it.

    Attributes:
      rows: batch rows.
      positions: token positions (query positions on an attention pattern).
      heads: attention heads (key/value heads on ``hook_k`` and ``hook_v``).
      units: entries of the last axis: neurons, residual dimensions, experts.
    """

    rows: Any = struct.field(default=None, kw_only=True)
    positions: Any = struct.field(default=None, kw_only=True)
    heads: Any = struct.field(default=None, kw_only=True)
    units: Any = struct.field(default=None, kw_only=True)

    def _selectors(self) -> dict[str, Any]:
        return {"rows": self.rows, "positions": self.positions, "heads": self.heads, "units": self.units}

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors that do not fit a tensor of ``shape`` at ``site``."""
        check_selectors(self._selectors(), site, shape)

    def select(self, new: jax.Array, value: jax.Array, site: Site) -> jax.Array:
        """``new`` where selected, ``value`` elsewhere."""
        mask = site_mask(self._selectors(), site, value.shape)
        return new if mask is None else jnp.where(mask, new, value)
