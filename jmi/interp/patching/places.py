"""Places: which layers, positions, heads and units an experiment visits, one by one or together.

Axis letters: b batch, s sequence, l layers, n values of an axis.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi.checks import as_array, choice, several, shown, whole_number
from jmi.errors import ArgumentError, HookError
from jmi.hooks.grid import Grid
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.selection import axis_of, check_selectors
from jmi.model import padding
from jmi.model.inputs import Prompts
from jmi.model.sites import HasSites, Site

SELECTORS = {"position": "positions", "head": "heads", "unit": "units"}
"""Axis -> the selector that chooses along it."""


@dataclasses.dataclass(frozen=True)
class Places:
    """The cells of an experiment at one site.

    Attributes:
      site: where.
      grid: of the cells.
      axes: axis -> its values; for positions that differ by row, their number.
      layers: bool ``[n_layers]``, the same in every cell or of a grid; None outside the blocks.
      selectors: of an intervention, likewise.
      present: bool ``[*axes, b]``, where a row has the position that is visited; None where all have.
    """

    site: Site
    grid: Grid
    axes: Mapping[str, np.ndarray]
    layers: Any
    selectors: Mapping[str, Any]
    present: np.ndarray | None = None

    def seen(self, results: Any) -> Any:
        """Results ``[*axes, b]``, NaN in rows that lack the position visited: nothing was done to them."""
        present = self.present
        if present is None:
            return results
        return jax.tree.map(lambda x: np.where(present, x, np.nan), results)

    def hooks(self, hook: Any) -> dict[str, Any]:
        """Hooks of a sweep in which ``hook`` acts in the layers of each cell; its arrays are per layer."""
        return {self.site.point: hook if self.layers is None else At(self.layers, PerLayer(hook))}


def places_of(
    arch: HasSites,
    site: Site,
    prompts: Prompts,
    over: Sequence[str] | None,
    at: Mapping[str, Any],
    *,
    window: Any = 1,
    seeds: np.ndarray | None = None,
) -> Places:
    """Check what was asked for and lay out its cells.

    Args:
      over: axes to sweep; None for layer and position, as far as the site has them.
      at: axis -> values, None for all; of positions as many as the longest row has tokens.
      window: how many layers are taken together, or how many before and after each.
      seeds: an axis "seed" in front of the others.

    Raises:
      ArgumentError: an axis that the site lacks, or no axis to sweep.
      HookError: a layer that does not exist, or does not have the site.
    """
    has = ["layer"] * (site.layers is not None)
    has += [axis for axis, name in SELECTORS.items() if axis_of(name, site) is not None]
    usual = [axis for axis in ("layer", "position") if axis in has]
    over = usual if over is None else [choice("over", axis, has) for axis in several("over", over, "axes")]
    asked = {*over, *(axis for axis, values in at.items() if values is not None)}
    if not over or len(set(over)) < len(over) or not asked <= set(has):
        raise ArgumentError(
            f"{site.point} has the axes {', '.join(has)}; over={tuple(over)} must name one or more of them, "
            f"each once{''.join(f'; it has no {axis}' for axis in sorted(asked - set(has)))}"
        )
    longest = int(counts(prompts).max())
    shape = prompts.shape[0], longest
    every = {axis: _values(arch, site, axis, at.get(axis), shape) for axis in has}
    first = {} if seeds is None else {"seed": seeds}
    cells = Grid(**first, **{axis: np.arange(every[axis].shape[-1]) for axis in over})
    axes = {axis: every[axis] if every[axis].ndim == 1 else cells.axes[axis] for axis in over}
    selectors: dict[str, Any] = {}
    for axis, name in SELECTORS.items():
        if axis in over:
            selectors[name] = cells.take(axis, _moving(every[axis], site.n_layers))
        elif at.get(axis) is not None:
            selectors[name] = _per_layer(every[axis], site.n_layers)
    present = None
    if "position" in over and at.get("position") is None and counts(prompts).min() < longest:
        rows = np.arange(longest)[:, None] < counts(prompts)
        selectors["rows"] = cells.take("position", _moving(rows.T, site.n_layers)[..., 0])
        present = rows.reshape([longest if axis == "position" else 1 for axis in cells.axes] + [-1])
    masks: Any = None
    if site.layers is not None:
        masks = _masks(every["layer"], site.layers, arch.n_layers, window_of(window))
        masks = cells.take("layer", masks) if "layer" in over else masks.any(0)
    return Places(site, cells, {**first, **axes}, masks, selectors, present)


def checked_at(at: Any) -> dict[str, Any]:
    """``at``, found to be a dict of axes."""
    if at is None:
        return {}
    if not isinstance(at, Mapping):
        raise ArgumentError(
            f"at={shown(at)}: give a dict of axes, such as {{'position': -1, 'head': [0, 3]}}"
        )
    return {choice("at", axis, ("layer", *SELECTORS)): values for axis, values in at.items()}


def window_of(window: Any) -> tuple[int, int]:
    """How many layers before and after each one are taken with it, of their number or of these two."""
    if not isinstance(window, (tuple, list)):
        return 0, whole_number("window", window) - 1
    if len(window) != 2:
        raise ArgumentError(f"window={shown(window)}: give a number of layers, or (before, after)")
    return whole_number("window", window[0], 0), whole_number("window", window[1], 0)


def _values(arch: HasSites, site: Site, axis: str, given: Any, shape: tuple[int, int]) -> np.ndarray:
    """Values of an axis, ``[n]``, or positions ``[b, n]``."""
    if axis == "layer":
        return _layers(arch, site, given)
    size = site.shape(*shape)[axis_of(SELECTORS[axis], site) or 0]
    given_array = None if given is None else np.asarray(as_array(SELECTORS[axis], given))
    values = np.arange(size) if given_array is None else np.atleast_1d(given_array)
    per_row = values.ndim == 2 and axis == "position" and len(values) == shape[0]
    if (values.ndim != 1 and not per_row) or not np.issubdtype(values.dtype, np.integer) or not values.size:
        rows = f", or [{shape[0]}, n], a list for each row" if axis == "position" else ""
        raise ArgumentError(f"at: {SELECTORS[axis]} {shown(given)}: give one or more indices in a row{rows}")
    check_selectors({SELECTORS[axis]: values}, site, site.shape(*shape))
    return values


def _layers(arch: HasSites, site: Site, given: Any) -> np.ndarray:
    n, has = arch.n_layers, site.layers or ()
    values = np.asarray(has) if given is None else np.atleast_1d(np.asarray(as_array("layers", given)))
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not values.size:
        raise ArgumentError(f"at: layers {shown(given)}: give one or more layers in a row")
    if values.min() < -n or values.max() >= n:
        raise HookError(f"at: layers {values.tolist()}: this model has layers 0 to {n - 1}")
    if not np.isin(values % n, has).all():
        raise HookError(f"at: layers {values.tolist()}: {site.point} is in layers {list(has)} alone")
    return values % n


def _moving(values: np.ndarray, n_layers: int | None) -> np.ndarray:
    """Selectors of a swept axis: one index each ``[n]``, or one for each row ``[n, (l,) b, 1]``."""
    if values.ndim == 1:
        return values
    rows = values.T[..., None]
    return rows if n_layers is None else np.repeat(rows[:, None], n_layers, axis=1)


def _per_layer(values: np.ndarray, n_layers: int | None) -> np.ndarray:
    return values if n_layers is None else np.repeat(values[None], n_layers, axis=0)


def _masks(layers: np.ndarray, has: Sequence[int], n_layers: int, window: tuple[int, int]) -> np.ndarray:
    """Layers patched together for each of ``layers``, bool ``[n, n_layers]``."""
    before, after = window
    every, each = np.arange(n_layers)[None], layers[:, None]
    return (each - before <= every) & (every <= each + after) & np.isin(every, has)


def lined_up(
    site: Site, base: Prompts, source: Prompts | None, size: int, pairs: tuple[Any, Any] | None = None
) -> np.ndarray | None:
    """Which token of the source each place of the base gets, int ``[b or 1, s]``; None where all are alike.

    Args:
      base: whose run is changed.
      source: whose activations are put there, of one row or b; None for those of no prompt in particular.
      size: how many tokens the activations have, 1 if they are one for all places.
      pairs: positions of base and source that correspond, ``[n]`` or ``[b, n]`` each; a place in none of
        them gets ``size``, which no source has.

    Raises:
      ArgumentError: prompts of different lengths, not aligned, or an alignment of other rows.
    """
    if pairs is not None:
        return _paired(site, base, source, size, pairs)
    if not site.token_axes():
        return None
    if size == 1 and source is None:
        return np.zeros((1, base.shape[1]), int)
    own = counts(base)
    theirs = np.full_like(own, size) if source is None else counts(source)
    unlike = own > theirs if source is None and base.mask is not None else own != theirs
    if unlike.any():
        row = int(unlike.argmax())
        rows = f" in row {row}" if len(own) > 1 else ""
        raise ArgumentError(
            f"the changed prompt has {own[row]} positions and the other {_of_row(theirs, row)}{rows}: say "
            "which correspond, with at={'position': jmi.align.align_tokens(clean, corrupted)}, or align_spans"
        )
    if base.mask is None:
        return None
    mask = np.asarray(base.mask)
    return np.where(mask, mask.cumsum(-1) - 1, 0)  # Nobody reads padding, but it must be finite.


def _of_row(count: np.ndarray, row: int) -> int:
    return int(count[row if len(count) > 1 else 0])


def placed(values: jax.Array, site: Site, at: Any, lead: int) -> jax.Array:
    """Activations, real tokens first, at the places of the base that `lined_up` says; NaN where it says none.

    Args:
      values: ``[n, t, ...]`` with the axes of the site, after ``lead`` others.
    """
    for axis in site.token_axes() if at is not None else ():
        values = padding.take(values, at, axis + lead, lead)
    return values


def _paired(
    site: Site, base: Prompts, source: Prompts | None, size: int, pairs: tuple[Any, Any]
) -> np.ndarray:
    own, other = (np.asarray(side) for side in pairs)
    if site.axis("pos") is None or own.shape != other.shape or own.ndim not in (1, 2):
        raise ArgumentError(f"{site.point}: an Alignment pairs positions, [n] or [b, n] on both sides")
    theirs = np.array([size]) if source is None else counts(source)
    rows = 1 if own.ndim == 1 and base.mask is None and len(theirs) == 1 else base.shape[0]
    write = _counted("the changed prompt", own, counts(base)[:rows], rows)
    read = _counted("the other prompt", other, theirs, rows)
    if base.mask is not None:
        order = np.argsort(~np.asarray(base.mask), axis=-1, kind="stable")
        write = np.take_along_axis(order, write, -1)
    at = np.full((rows, base.shape[1]), size)
    np.put_along_axis(at, write, read, -1)
    return at


def _counted(name: str, index: np.ndarray, count: np.ndarray, rows: int) -> np.ndarray:
    """Tokens ``[rows, n]`` counted from the first."""
    index = np.broadcast_to(index, (rows, index.shape[-1]))
    absent = (index < -count[:, None]) | (index >= count[:, None])
    if absent.any():
        size = np.broadcast_to(count, rows)[absent.any(1)][0]
        raise ArgumentError(f"at: {name} has {size} positions, the Alignment names {index.tolist()}")
    return np.where(index < 0, index + count[:, None], index)


def counts(prompts: Prompts) -> np.ndarray:
    """Number of real tokens of each row, ``[b]``."""
    rows, length = prompts.shape
    return np.full(rows, length) if prompts.mask is None else np.asarray(prompts.mask).sum(-1)
