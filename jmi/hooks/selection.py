"""Selectors: which batch rows, positions, heads and units of a tensor an intervention touches.

A selector is an index (negative counts from the end), a list of indices, or a boolean mask over
the axis. Indices and masks are data, so changing them never recompiles; going from one index to
several changes a shape and does. A traced index out of range selects nothing.

In a padded batch an index of a position, query or key names a real token of each row: 0 is its first and
-1 its last, on whichever side the padding is. A boolean mask chooses places of the padded axis. Attention
to padding is never edited, whatever is selected.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, shown
from jmi.errors import InterventionError
from jmi.model import padding
from jmi.model.sites import Site

AXES_OF = {
    "rows": ("batch",),
    "positions": ("pos", "query"),
    "heads": ("head", "kv_head"),
    "queries": ("query",),
    "keys": ("key",),
}
"""Selector name -> the site axes it can mean, first match wins; ``units`` are those of the last axis."""

NO_UNITS = ("batch", "pos", "query", "key", "head", "kv_head", "one")
"""Axes that have no units, though they may come last."""

TOKENS = ("positions", "queries", "keys")
"""Selectors that name tokens."""


def axis_mask(selector: Any, size: int, mask: Any = None) -> jax.Array:
    """Boolean mask ``[size]`` of a selector; ``[b, size]`` from per-row indices ``[b, n]``, or given the
    ``mask`` of real tokens, which indices then name."""
    selector = jnp.asarray(selector)
    if selector.dtype == bool:
        return selector
    return padding.named(selector, size, mask).any(-2)


def lowest(selector: Any, size: int, cells: bool = False, mask: Any = None) -> np.ndarray:
    """The lowest place that a selector (not traced) chooses; 0 when it is None, ``size`` when none.

    Args:
      cells: the first axis is one of cells, each with an answer of its own.
      mask: of real tokens, which indices name: the lowest place over all rows.
    """
    if selector is None:
        return np.zeros((), int)
    values = np.asarray(selector)
    if values.dtype == bool:
        chosen = np.where(values, np.arange(size), size)
    elif mask is not None:
        ahead, behind = padding.first_places(mask)
        chosen = np.where(values < 0, behind[values % size], ahead[values % size])
    else:
        chosen = np.where(values < 0, values + size, values)
    return chosen.reshape(*chosen.shape[: int(cells)], -1).min(-1, initial=size)


def site_mask(selectors: dict[str, Any], site: Site, shape: tuple[int, ...]) -> jax.Array | None:
    """Mask broadcastable to ``shape``: True where every selector that is given agrees."""
    mask = None
    if site.mask is not None and "key" in site.axes:
        # Padding holds no value to attend to, whatever a hook would write there.
        where = [n if axis in ("batch", "key") else 1 for axis, n in zip(site.axes, shape, strict=True)]
        mask = jnp.asarray(site.mask).reshape(where)
    for name, selector in selectors.items():
        if selector is None:
            continue
        axis = _axis(name, site)
        part = axis_mask(selector, shape[axis], site.mask if name in TOKENS else None)
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
        if selector is None:
            continue
        if isinstance(selector, jax.core.Tracer):
            if not (selector.dtype == bool or jnp.issubdtype(selector.dtype, jnp.integer)):
                raise InterventionError(
                    f"{site.point}: {name}= must be integers or booleans, got {selector.dtype}"
                )
            continue
        axis = _axis(name, site)
        size, values = shape[axis], np.asarray(as_array(name, selector))
        if values.dtype == bool:
            if values.shape[-1:] != (size,) or values.ndim > 2:
                raise InterventionError(
                    f"{site.point}: {name}= is a mask of shape {values.shape}, but the "
                    f"{site.axes[axis]} axis has {size} entries"
                )
        elif not np.issubdtype(values.dtype, np.integer):
            raise InterventionError(
                f"{site.point}: {name}= must be integers or booleans, got {shown(selector)}"
            )
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
        known = site.mask is not None and not isinstance(site.mask, jax.core.Tracer)
        if name in TOKENS and known and values.dtype != bool:
            _check_tokens(name, values, selectors.get("rows"), site)


def _check_tokens(name: str, index: np.ndarray, rows: Any, site: Site) -> None:
    """Raise InterventionError for a token that one of the chosen ``rows`` does not have."""
    count = np.asarray(site.mask).sum(-1)
    if isinstance(rows, jax.core.Tracer):  # For all that is known, the longest is chosen alone.
        count, rows = np.full_like(count, count.max()), None
    chosen = np.ones(len(count), bool)
    if rows is not None:
        given = np.asarray(rows)
        chosen = given if given.dtype == bool else np.isin(np.arange(len(count)), given % len(count))
    index = np.broadcast_to(index, (len(count), index.shape[-1] if index.ndim else 1))
    absent = ((index < -count[:, None]) | (index >= count[:, None])) & chosen[:, None]
    if absent.any():
        row, which = np.argwhere(absent)[0]
        raise InterventionError(
            f"{site.point}: {name}={index[row, which]} names no token of row {row}, which has {count[row]} "
            f"beside its padding; name one that it has, or choose others with rows="
        )


def axis_of(name: str, site: Site) -> int | None:
    """The axis of a site that a selector means, if it has one."""
    if name != "units":
        return site.axis(*AXES_OF[name])
    return None if site.axes[-1] in NO_UNITS else len(site.axes) - 1


def _axis(name: str, site: Site) -> int:
    axis = axis_of(name, site)
    if axis is None:
        raise InterventionError(
            f"{site.point}: {name}= has no meaning here; its axes are {', '.join(site.axes)}"
        )
    return axis


@tree.dataclass
class Selective:
    """Base of interventions that touch a chosen part of a tensor; nothing chosen means all of it.

    Attributes:
      rows: batch rows.
      positions: token positions (query positions on an attention pattern), real tokens of a padded row.
      heads: attention heads (key/value heads on ``hook_k`` and ``hook_v``).
      units: entries of the last axis: neurons, residual dimensions, experts.
    """

    rows: Any = dataclasses.field(default=None, kw_only=True)
    positions: Any = dataclasses.field(default=None, kw_only=True)
    heads: Any = dataclasses.field(default=None, kw_only=True)
    units: Any = dataclasses.field(default=None, kw_only=True)

    def _selectors(self) -> dict[str, Any]:
        return {"rows": self.rows, "positions": self.positions, "heads": self.heads, "units": self.units}

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors that do not fit a tensor of ``shape`` at ``site``."""
        check_selectors(self._selectors(), site, shape)

    def select(self, new: jax.Array, value: jax.Array, site: Site) -> jax.Array:
        """``new`` where selected, ``value`` elsewhere."""
        mask = site_mask(self._selectors(), site, value.shape)
        return new if mask is None else jnp.where(mask, new, value)
