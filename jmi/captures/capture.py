"""Captures: which values a run returns, and what is kept of each.

A capture is a name or a `Capture`. Its reducer runs inside the layer, so only the reduced array is
ever stored. Layers are stored one after another on one axis, in layer order.

Beside the points of the model there is `CARRY`: what enters each layer, a pytree.
"""

import dataclasses
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal

import jax

from jmi.checks import no_number_in, several, shown
from jmi.errors import HookError, InterventionError
from jmi.hooks.layers import having_rows
from jmi.hooks.resolve import as_data
from jmi.model.sites import HasSites, Site, find, slots, table_of

Reducer = Callable[[jax.Array, Site], Any]

CARRY = "blocks.*.carry"
"""Name of what enters each layer: for many models the residual stream, for others a dict with it."""


@dataclasses.dataclass(frozen=True)
class Capture:
    """What to return from a site.

    Attributes:
      name: site name or pattern.
      when: "after" the interventions there (what flows onward), or "before" them (what arrived).
      reduce: pure ``(value, site) -> pytree of arrays`` that runs in the layer; a pytree callable keeps its
        arrays as data (`PerLayer` gives each layer its own), a plain function is static and retraces for each
        new object.
      label: the key in the output; by default the name, plus ``@before``.
    """

    name: str
    when: Literal["after", "before"] = "after"
    reduce: Reducer | None = None
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Static part of one stored capture: everything but which layers and the reducer's arrays.

    ``count`` is the number of layers kept, None outside the blocks. ``whole`` means every layer that has the
    point. ``axis`` is that of positions in what is kept of one layer, None where there is none or a reducer
    may have moved it.
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

    def __add__(self, other: "Plan") -> "Plan":
        return Plan(self.groups + other.groups, self.data + other.data, self.layers + other.layers)


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
        for site, layers in _found(arch, spec.name):
            site = site if mask is None else dataclasses.replace(site, mask=mask)
            if hasattr(spec.reduce, "check"):
                spec.reduce.check(site, site.shape(*shape))  # type: ignore[union-attr]
            _check_rows(spec, arch, layers)
            label = spec.label or site.point + ("@before" if spec.when == "before" else "")
            point, when, reduce, known = merged.setdefault(
                label, (site.point, spec.when, spec.reduce, None if layers is None else set())
            )
            if (point, when) != (site.point, spec.when) or reduce is not spec.reduce:
                raise HookError(f"{spec.name}: two different captures under '{label}'; give each a label=")
            if known is not None and layers is not None:
                known.update(layers)
    return _build(arch, merged)


def reduced(reduce: Reducer, value: jax.Array, site: Site) -> Any:
    """What a reducer makes of ``value``; InterventionError where that is no pytree of arrays."""
    out = reduce(value, site)
    leaves = jax.tree.leaves(out)
    wrong = [x for x in leaves if not (hasattr(x, "shape") and hasattr(x, "dtype"))]
    if wrong or not leaves:
        shows = shown(wrong[0] if wrong else out)
        raise InterventionError(f"{site.point}: the reducer returned {shows}; it must return arrays")
    return out


def _found(arch: HasSites, name: str) -> tuple[tuple[Site, tuple[int, ...] | None], ...]:
    if name != CARRY:
        return find(arch, name)
    every = tuple(range(arch.n_layers))
    return ((Site(CARRY, ("batch", "pos"), (None, None), every, derived=True), every),)


def _check_reducer(spec: Capture) -> None:
    if spec.reduce is None:
        return
    wrong = no_number_in(spec.reduce)
    if wrong is not None or isinstance(spec.reduce, type) or not callable(spec.reduce):
        what = shown(spec.reduce) if wrong is None else f"{type(spec.reduce).__name__} with {shown(wrong[0])}"
        raise InterventionError(
            f"{spec.name}: reduce= is {what}; give a function (value, site) -> arrays, such as jmi.Norm()"
        )


def _check_rows(spec: Capture, arch: HasSites, layers: tuple[int, ...] | None) -> None:
    has = having_rows(spec.reduce, arch.n_layers)
    if has is None or isinstance(has, jax.core.Tracer) or layers is None:
        return
    lacking = [i for i in layers if not has[i]]
    if lacking:
        raise InterventionError(
            f"{spec.name}: PerLayer has no row for layers {lacking}; capture those that have one"
        )


def _build(arch: HasSites, merged: dict[str, tuple[str, str, Reducer | None, set[int] | None]]) -> Plan:
    groups, data, kept = [], [], []
    for label, (point, when, reduce, known) in merged.items():
        layers = None if known is None else tuple(sorted(known))
        count = None if layers is None else len(layers)
        site = table_of(arch).get(point)
        axis = site.axis("pos", "query") if site is not None and reduce is None else None
        groups.append(Group(label, point, when, count, count == (site or arch).n_layers, axis))
        rows = None if layers is None else slots(layers, arch.n_layers)
        data.append((rows, None if reduce is None else as_data(reduce)))
        kept.append(layers)
    return Plan(tuple(groups), tuple(data), tuple(kept))
