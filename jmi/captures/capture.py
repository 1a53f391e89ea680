"""Captures: which values a run returns, and what is kept of each.

A capture is a name or a `Capture`. Its reducer runs inside the layer, so only the reduced array is
ever stored. Layers are stored one after another on one axis, in layer order.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, no_number_in, several, shown
from jmi.errors import HookError, InterventionError
from jmi.hooks.masked import seen
from jmi.hooks.resolve import as_data
from jmi.hooks.selection import check_selectors
from jmi.model import padding
from jmi.model.sites import HasSites, Site, find, table_of
from jmi.numerics import wide

Reducer = Callable[[jax.Array, Site], jax.Array]


@dataclasses.dataclass(frozen=True)
class Capture:
    """What to return from a site.

    Attributes:
      name: site name or pattern.
      when: "after" the interventions there (what flows onward), or "before" them (what arrived).
      reduce: pure ``(value, site) -> array`` that runs in the layer; a pytree callable keeps its
        arrays as data, a plain function is static and retraces for each new object.
      label: the key in the output; by default the name, plus ``@before``.
    """

    name: str
    when: Literal["after", "before"] = "after"
    reduce: Reducer | None = None
    label: str | None = None


@tree.dataclass
class Select:
    """Reducer: one position and/or one head (data), its axis dropped.

    The position is that of a real token of each row, where rows are padded. A traced index out of range
    gives NaN.
    """

    position: Any = None
    head: Any = None

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for an index that is not one in-range integer of an axis here."""
        picks = {"positions": self.position, "heads": self.head}
        check_selectors(picks, site, shape)
        for name, index in picks.items():
            if getattr(index, "ndim", np.ndim(index)) or isinstance(index, bool):
                raise InterventionError(f"{site.point}: Select takes one index for {name}, got {index!r}")

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        position, axis = self.position, site.axis("pos", "query")
        if position is not None and site.mask is not None and axis is not None:
            index = padding.place_of(position, site.mask)[:, None]
            # Kept as an axis until the head's, which may stand before or behind it, is found.
            value, position = padding.take(value, index, axis), 0
        picks = [(position, axis), (self.head, site.axis("head", "kv_head"))]
        for index, axis in sorted((p for p in picks if p[0] is not None), key=lambda p: -(p[1] or 0)):
            where = (slice(None),) * (axis or 0)
            value = value.at[(*where, jnp.asarray(index))].get(mode="fill", fill_value=jnp.nan)
        return value


@tree.dataclass
class Positions:
    """Reducer: the tokens ``index`` ``[p]``, or ``[b, p]`` with those of each row; ``[b, p, ...]``."""

    index: Any

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for an index out of range."""
        check_selectors({"positions": self.index}, site, shape)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        index = jnp.asarray(self.index)
        if site.mask is not None:
            return padding.take(value, padding.places(index, site.mask), 1)
        return padding.take(value, jnp.broadcast_to(index, (value.shape[0], index.shape[-1])), 1)


@tree.dataclass
class Dot:
    """Reducer: inner products with ``vectors`` ([d] or [n, d]) over the last axis, at least float32.

    Of attention scores, over the keys that a query sees.
    """

    vectors: Any

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for vectors that do not lie in the last axis."""
        given = as_array("vectors", self.vectors).shape
        if len(given) not in (1, 2) or given[-1] != shape[-1]:
            raise InterventionError(
                f"{site.point}: Dot has vectors {list(given)}; give [{shape[-1]}] or [n, {shape[-1]}]"
            )

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        dtype = wide(value.dtype)
        return seen(value, site).astype(dtype) @ jnp.asarray(self.vectors).astype(dtype).T


@tree.dataclass
class Norm:
    """Reducer: Euclidean length of the last axis, at least float32; of scores, over the keys a query sees."""

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return jnp.linalg.norm(seen(value, site).astype(wide(value.dtype)), axis=-1)


@tree.dataclass
class IsFinite:
    """Reducer: True when every entry is finite. Over ``blocks.*`` it finds the layer of a NaN."""

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        return jnp.isfinite(value).all()


@dataclasses.dataclass(frozen=True)
class Group:
    """Static part of one stored capture: everything but which layers and the reducer's arrays.

    ``count`` is the number of layers kept, None outside the blocks. ``whole`` means every layer. ``axis`` is
    that of positions in what is kept of one layer, None where there is none or a reducer may have moved it.
    """

    label: str
    point: str
    when: str
    count: int | None
    whole: bool
    axis: int | None = None


@dataclasses.dataclass
class Plan:
    """A validated list of captures: static groups, their data, and the layers each one keeps."""

    groups: tuple[Group, ...]
    data: tuple[tuple[Any, Reducer | None], ...]
    layers: tuple[tuple[int, ...] | None, ...]


def as_list(capture: str | Capture | Sequence[str | Capture]) -> list[str | Capture]:
    """``capture`` as given by a user, one or several."""
    given = [capture] if isinstance(capture, (str, Capture)) else several("capture", capture, "names")
    for one in given:
        spec = one if isinstance(one, Capture) else Capture(one)
        if not isinstance(spec.name, str) or not isinstance(spec.label, (str, NoneType)):
            raise HookError(f"capture= takes names and jmi.Capture(name, ...); got {shown(spec.name)}")
    return given


def plan(arch: HasSites, capture: Sequence[str | Capture], shape: tuple[int, int], mask: Any = None) -> Plan:
    """Validate ``capture`` for inputs of ``shape`` (batch, pos) and group it by site.

    Names of one point share one buffer. With a ``mask``, positions are checked against real tokens.

    Raises:
      HookError: an unknown name, or one label used for two different things.
      InterventionError: a reducer that does not fit its site.
    """
    merged: dict[str, tuple[str, str, Reducer | None, set[int] | None]] = {}
    for given in as_list(capture):
        spec = Capture(given) if isinstance(given, str) else given
        if not isinstance(spec.when, str) or spec.when not in ("after", "before"):
            raise HookError(f"{spec.name}: when={shown(spec.when)}; use 'after' or 'before'")
        _check_reducer(spec)
        for site, layers in find(arch, spec.name):
            site = site if mask is None else dataclasses.replace(site, mask=mask)
            if hasattr(spec.reduce, "check"):
                spec.reduce.check(site, site.shape(*shape))  # type: ignore[union-attr]
            label = spec.label or site.point + ("@before" if spec.when == "before" else "")
            point, when, reduce, known = merged.setdefault(
                label, (site.point, spec.when, spec.reduce, None if layers is None else set())
            )
            if (point, when) != (site.point, spec.when) or reduce is not spec.reduce:
                raise HookError(f"{spec.name}: two different captures under '{label}'; give each a label=")
            if known is not None and layers is not None:
                known.update(layers)
    return _build(arch, merged)


def reduced(reduce: Reducer, value: jax.Array, site: Site) -> jax.Array:
    """What a reducer makes of ``value``; InterventionError where that is no array."""
    out = reduce(value, site)
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        raise InterventionError(f"{site.point}: the reducer returned {shown(out)}; it must return an array")
    return out


def _check_reducer(spec: Capture) -> None:
    if spec.reduce is None:
        return
    wrong = no_number_in(spec.reduce)
    if wrong is not None or isinstance(spec.reduce, type) or not callable(spec.reduce):
        what = shown(spec.reduce) if wrong is None else f"{type(spec.reduce).__name__} with {shown(wrong[0])}"
        raise InterventionError(
            f"{spec.name}: reduce= is {what}; give a function (value, site) -> array, such as jmi.Norm()"
        )


def _build(arch: HasSites, merged: dict[str, tuple[str, str, Reducer | None, set[int] | None]]) -> Plan:
    groups, data, kept, n_layers = [], [], [], arch.n_layers
    for label, (point, when, reduce, known) in merged.items():
        layers = None if known is None else tuple(sorted(known))
        count = None if layers is None else len(layers)
        axis = table_of(arch)[point].axis("pos", "query") if reduce is None else None
        groups.append(Group(label, point, when, count, count == n_layers, axis))
        slots = None if layers is None else _slots(layers, n_layers)
        data.append((slots, None if reduce is None else as_data(reduce)))
        kept.append(layers)
    return Plan(tuple(groups), tuple(data), tuple(kept))


def _slots(layers: tuple[int, ...], n_layers: int) -> np.ndarray:
    """Row of each layer, or -1: ``int32[n_layers]``."""
    slots = np.full(n_layers, -1, np.int32)
    slots[list(layers)] = np.arange(len(layers))
    return slots
