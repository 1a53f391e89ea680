"""Places: which layers, positions, heads and units an experiment visits, one by one or together.

Axis letters: b batch, s sequence, l layers, n values of an axis.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.align import Alignment
from jmi.errors import ConfigError, HookError
from jmi.grid import Grid
from jmi.interventions import At, PerLayer
from jmi.selection import AXES_OF
from jmi.sites import Site

SELECTORS = {"position": "positions", "head": "heads", "unit": "units"}
"""Axis -> the selector that chooses along it."""


@dataclasses.dataclass(frozen=True)
class Places:
    """The cells of an experiment at one site.

    Attributes:
      site: where.
      grid: of the cells.
      axes: swept axis -> its values; for positions that differ by row, their number.
      layers: bool ``[l]``, the same in every cell or of a grid; None outside the blocks.
      selectors: of an intervention, likewise.
    """

    site: Site
    grid: Grid
    axes: Mapping[str, np.ndarray]
    layers: Any
    selectors: Mapping[str, Any]

    def hooks(self, hook: Any) -> dict[str, Any]:
        """Hooks of a sweep in which ``hook`` acts in the layers of each cell; its arrays are per layer."""
        return {self.site.point: hook if self.layers is None else At(self.layers, PerLayer(hook))}


def places_of(
    site: Site,
    shape: tuple[int, int],
    over: Sequence[str] | None,
    chosen: Mapping[str, Any],
    window: int,
    centred: bool,
) -> Places:
    """Check what was asked for and lay out its cells.

    Args:
      shape: b, s.
      over: axes to sweep; None for layer and position, as far as the site has them.
      chosen: axis -> values, None for all.

    Raises:
      ConfigError: an axis that the site lacks, or no axis to sweep.
      HookError: a layer that does not exist.
    """
    has = ["layer"] * (site.n_layers is not None)
    has += [axis for axis, name in SELECTORS.items() if site.axis(*AXES_OF[name]) is not None]
    over = [axis for axis in ("layer", "position") if axis in has] if over is None else list(over)
    asked = {*over, *(axis for axis, values in chosen.items() if values is not None)}
    if not over or len(set(over)) < len(over) or not asked <= set(has):
        raise ConfigError(
            f"{site.point} has the axes {', '.join(has)}; over={tuple(over)} must name one or more of them, "
            f"each once{''.join(f'; it has no {axis}' for axis in sorted(asked - set(has)))}"
        )
    every = {axis: _values(site, axis, chosen.get(axis), shape) for axis in has}
    cells = Grid(**{axis: np.arange(every[axis].shape[-1]) for axis in over})
    axes = {axis: every[axis] if every[axis].ndim == 1 else cells.axes[axis] for axis in over}
    selectors: dict[str, Any] = {}
    for axis, name in SELECTORS.items():
        if axis in over:
            selectors[name] = cells.take(axis, _moving(every[axis], site.n_layers))
        elif chosen.get(axis) is not None:
            selectors[name] = _per_layer(every[axis], site.n_layers)
    masks: Any = None
    if site.n_layers is not None:
        masks = _masks(every["layer"], site.n_layers, window, centred)
        masks = cells.take("layer", masks) if "layer" in over else masks.any(0)
    return Places(site, cells, axes, masks, selectors)


def _values(site: Site, axis: str, given: Any, shape: tuple[int, int]) -> np.ndarray:
    """Values of an axis, ``[n]``, or positions ``[b, n]``."""
    if axis == "layer":
        n = site.n_layers or 0
        values = np.arange(n) if given is None else np.atleast_1d(np.asarray(given))
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not values.size:
            raise ConfigError(f"layers={given!r}: give one or more layers in a row")
        if values.min() < -n or values.max() >= n:
            raise HookError(f"layers={values.tolist()}: this model has layers 0 to {n - 1}")
        return values % n
    size = site.shape(*shape)[site.axis(*AXES_OF[SELECTORS[axis]]) or 0]
    values = np.arange(size) if given is None else np.atleast_1d(np.asarray(given))
    per_row = values.ndim == 2 and axis == "position" and len(values) == shape[0]
    if (values.ndim != 1 and not per_row) or not np.issubdtype(values.dtype, np.integer) or not values.size:
        rows = f", or [{shape[0]}, n], a list for each row" if axis == "position" else ""
        raise ConfigError(f"{SELECTORS[axis]}={given!r}: give one or more indices in a row{rows}")
    return values


def _moving(values: np.ndarray, n_layers: int | None) -> np.ndarray:
    """Selectors of a swept axis: one index each ``[n]``, or one for each row ``[n, (l,) b, 1]``."""
    if values.ndim == 1:
        return values
    rows = values.T[..., None]
    return rows if n_layers is None else np.repeat(rows[:, None], n_layers, axis=1)


def _per_layer(values: np.ndarray, n_layers: int | None) -> np.ndarray:
    return values if n_layers is None else np.repeat(values[None], n_layers, axis=0)


def _masks(layers: np.ndarray, n_layers: int, window: int, centred: bool) -> np.ndarray:
    """Layers patched together for each of ``layers``, bool ``[n, l]``."""
    if window < 1:
        raise ConfigError(f"window={window}: patch at least one layer")
    first = (layers - window // 2 if centred else layers)[:, None]
    every = np.arange(n_layers)[None]
    return (first <= every) & (every < first + window)


def placed(values: jax.Array, site: Site, positions: Any, length: int) -> jax.Array:
    """Activations of other prompts ``[l, n, t, ...]`` at the positions of the base, ``[l, n, s, ...]``.

    Where an `Alignment` pairs nothing they are NaN.

    Raises:
      ConfigError: prompts of different lengths, not aligned, or an alignment of other rows.
    """
    lead, pos = int(site.n_layers is not None), site.axis("pos")
    if not isinstance(positions, Alignment):
        axis = lead + (site.axis("pos", "query") or 0)
        if pos is not None and values.shape[axis] == 1:
            values = jnp.repeat(values, length, axis=axis)
        if values.shape[axis] not in (1, length):
            raise ConfigError(
                f"base has {length} positions and source {values.shape[axis]}: say which correspond, with "
                "positions=jmi.align.align_tokens(...) or align_spans(...)"
            )
        return values
    base, source = (np.asarray(side) for side in positions)
    if pos is None or base.shape != source.shape or base.ndim not in (1, 2):
        raise ConfigError(f"{site.point}: an Alignment pairs positions, [n] or [b, n] on both sides")
    for name, side, size in (("base", base, length), ("source", source, values.shape[lead + 1])):
        if side.min() < -size or side.max() >= size:
            raise ConfigError(f"positions=: {name} has {size} positions, the Alignment names {side.tolist()}")
    if base.ndim == 2:
        values = jnp.broadcast_to(values, (*values.shape[:lead], len(base), *values.shape[lead + 1 :]))
        rows: tuple[Any, ...] = (np.arange(len(base))[:, None],)
    else:
        rows = (slice(None),)
    before = (*(slice(None),) * lead, *rows)
    shape = (*values.shape[: lead + 1], length, *values.shape[lead + 2 :])
    return jnp.full(shape, jnp.nan, values.dtype).at[(*before, base)].set(values[(*before, source)])
