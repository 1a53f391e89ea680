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
from jmi.checks import as_array, choice, flag, several, shown, whole_number
from jmi.errors import ArgumentError, HookError
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.selection import AXES_OF
from jmi.interp.patching.measure import Prompts
from jmi.model import padding
from jmi.model.sites import Site
from jmi.sweeps.grid import Grid

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
      present: bool ``[*axes, b]``, where a row has the position that is visited; None where all have.
    """

    site: Site
    grid: Grid
    axes: Mapping[str, np.ndarray]
    layers: Any
    selectors: Mapping[str, Any]
    present: np.ndarray | None = None

    def seen(self, results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Results ``[*axes, b]``, NaN in rows that lack the position visited: nothing was done to them."""
        if self.present is None:
            return dict(results)
        return {name: np.where(self.present, x, np.nan) for name, x in results.items()}

    def hooks(self, hook: Any) -> dict[str, Any]:
        """Hooks of a sweep in which ``hook`` acts in the layers of each cell; its arrays are per layer."""
        return {self.site.point: hook if self.layers is None else At(self.layers, PerLayer(hook))}


def places_of(
    site: Site,
    prompts: Prompts,
    over: Sequence[str] | None,
    chosen: Mapping[str, Any],
    window: int,
    centred: bool,
) -> Places:
    """Check what was asked for and lay out its cells.

    Args:
      over: axes to sweep; None for layer and position, as far as the site has them.
      chosen: axis -> values, None for all; of positions as many as the longest row has tokens.

    Raises:
      ArgumentError: an axis that the site lacks, or no axis to sweep.
      HookError: a layer that does not exist.
    """
    has = ["layer"] * (site.n_layers is not None)
    has += [axis for axis, name in SELECTORS.items() if site.axis(*AXES_OF[name]) is not None]
    window, centred = whole_number("window", window), flag("centred", centred)
    usual = [axis for axis in ("layer", "position") if axis in has]
    over = usual if over is None else [choice("over", axis, has) for axis in several("over", over, "axes")]
    asked = {*over, *(axis for axis, values in chosen.items() if values is not None)}
    if not over or len(set(over)) < len(over) or not asked <= set(has):
        raise ArgumentError(
            f"{site.point} has the axes {', '.join(has)}; over={tuple(over)} must name one or more of them, "
            f"each once{''.join(f'; it has no {axis}' for axis in sorted(asked - set(has)))}"
        )
    longest = int(counts(prompts).max())
    shape = prompts.tokens.shape[0], longest
    every = {axis: _values(site, axis, chosen.get(axis), shape) for axis in has}
    cells = Grid(**{axis: np.arange(every[axis].shape[-1]) for axis in over})
    axes = {axis: every[axis] if every[axis].ndim == 1 else cells.axes[axis] for axis in over}
    selectors: dict[str, Any] = {}
    for axis, name in SELECTORS.items():
        if axis in over:
            selectors[name] = cells.take(axis, _moving(every[axis], site.n_layers))
        elif chosen.get(axis) is not None:
            selectors[name] = _per_layer(every[axis], site.n_layers)
    present = None
    if "position" in over and chosen.get("position") is None and counts(prompts).min() < longest:
        rows = np.arange(longest)[:, None] < counts(prompts)
        selectors["rows"] = cells.take("position", _moving(rows.T, site.n_layers)[..., 0])
        present = rows.reshape([longest if axis == "position" else 1 for axis in over] + [-1])
    masks: Any = None
    if site.n_layers is not None:
        masks = _masks(every["layer"], site.n_layers, window, centred)
        masks = cells.take("layer", masks) if "layer" in over else masks.any(0)
    return Places(site, cells, axes, masks, selectors, present)


def _values(site: Site, axis: str, given: Any, shape: tuple[int, int]) -> np.ndarray:
    """Values of an axis, ``[n]``, or positions ``[b, n]``."""
    if axis == "layer":
        n = site.n_layers or 0
        values = np.arange(n) if given is None else np.atleast_1d(np.asarray(as_array("layers", given)))
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not values.size:
            raise ArgumentError(f"layers={shown(given)}: give one or more layers in a row")
        if values.min() < -n or values.max() >= n:
            raise HookError(f"layers={values.tolist()}: this model has layers 0 to {n - 1}")
        return values % n
    size = site.shape(*shape)[site.axis(*AXES_OF[SELECTORS[axis]]) or 0]
    given_array = None if given is None else np.asarray(as_array(SELECTORS[axis], given))
    values = np.arange(size) if given_array is None else np.atleast_1d(given_array)
    per_row = values.ndim == 2 and axis == "position" and len(values) == shape[0]
    if (values.ndim != 1 and not per_row) or not np.issubdtype(values.dtype, np.integer) or not values.size:
        rows = f", or [{shape[0]}, n], a list for each row" if axis == "position" else ""
        raise ArgumentError(f"{SELECTORS[axis]}={shown(given)}: give one or more indices in a row{rows}")
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
    first = (layers - window // 2 if centred else layers)[:, None]
    every = np.arange(n_layers)[None]
    return (first <= every) & (every < first + window)


def placed(values: jax.Array, site: Site, positions: Any, base: Prompts, source: Prompts | None) -> jax.Array:
    """Activations ``[l, n, t, ...]``, t counting real tokens, at the places of the base, ``[l, n, s, ...]``.

    Where an `Alignment` pairs nothing they are NaN.

    Args:
      source: the prompts whose rows they are of, one or b; None for activations of no prompt in particular.

    Raises:
      ArgumentError: prompts of different lengths, not aligned, or an alignment of other rows.
    """
    lead = int(site.n_layers is not None)
    axes = [axis + lead for axis in site.token_axes()]
    if isinstance(positions, Alignment):
        return padding.take(values, _aligned(site, positions, base, source, values), axes[0], lead)
    if not axes:
        return values
    size, own = values.shape[axes[0]], counts(base)
    if size == 1 and source is None:  # One for all positions.
        return jnp.repeat(values, base.tokens.shape[1], axis=axes[0])
    theirs = np.full_like(own, size) if source is None else counts(source)
    unlike = own > theirs if source is None and base.mask is not None else own != theirs
    if unlike.any():
        row = int(unlike.argmax())
        rows = f" in row {row}" if len(own) > 1 else ""
        raise ArgumentError(
            f"base has {own[row]} positions and source {np.broadcast_to(theirs, own.shape)[row]}{rows}: say "
            "which correspond, with positions=jmi.align.align_tokens(...) or align_spans(...)"
        )
    if base.mask is not None:
        for axis in axes:
            values = padding.take(values, padding.numbers(base.mask), axis, lead, fill=0)
    return values


def _aligned(
    site: Site, positions: Alignment, base: Prompts, source: Prompts | None, values: jax.Array
) -> np.ndarray:
    """The token of the source that is put at each place of the base, ``[b or 1, s]``; t where none is."""
    lead = int(site.n_layers is not None)
    own, other = (np.asarray(side) for side in positions)
    if site.axis("pos") is None or own.shape != other.shape or own.ndim not in (1, 2):
        raise ArgumentError(f"{site.point}: an Alignment pairs positions, [n] or [b, n] on both sides")
    size = values.shape[lead + 1]
    theirs = np.array([size]) if source is None else counts(source)
    rows = 1 if own.ndim == 1 and base.mask is None and len(theirs) == 1 else base.tokens.shape[0]
    write = _counted("base", own, counts(base)[:rows], rows)
    read = _counted("source", other, theirs, rows)
    if base.mask is not None:
        order = np.argsort(~np.asarray(base.mask), axis=-1, kind="stable")
        write = np.take_along_axis(order, write, -1)
    at = np.full((rows, base.tokens.shape[1]), size)
    np.put_along_axis(at, write, read, -1)
    return at


def _counted(name: str, index: np.ndarray, count: np.ndarray, rows: int) -> np.ndarray:
    """Tokens ``[rows, n]`` counted from the first."""
    index = np.broadcast_to(index, (rows, index.shape[-1]))
    absent = (index < -count[:, None]) | (index >= count[:, None])
    if absent.any():
        size = np.broadcast_to(count, rows)[absent.any(1)][0]
        raise ArgumentError(f"positions=: {name} has {size} positions, the Alignment names {index.tolist()}")
    return np.where(index < 0, index + count[:, None], index)


def counts(prompts: Prompts) -> np.ndarray:
    """Number of real tokens of each row, ``[b]``."""
    rows, length = np.shape(prompts.tokens)
    return np.full(rows, length) if prompts.mask is None else np.asarray(prompts.mask).sum(-1)
