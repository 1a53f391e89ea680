"""The tap of a layer with modules in it (`jmi.rewire`): lets each act where it stands."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import HookError, InterventionError
from jmi.hooks.interventions import check_returned
from jmi.hooks.layers import picked
from jmi.model.sites import Site, slots, table_of
from jmi.model.tap import Tap


@dataclasses.dataclass(frozen=True)
class Wire:
    """Where a module stands; names without ``blocks.i.``."""

    reads: tuple[str, ...]
    writes: str
    layers: tuple[int, ...]
    module: int


@dataclasses.dataclass(frozen=True)
class Here:
    """What a module may use where it is called.

    Attributes:
      site: of what is written, with the layer, possibly traced.
      tap: ``tap(name, value)`` passes through a point of the module's own.
      params: of the layer.
    """

    site: Site
    tap: Tap
    params: Any


@dataclasses.dataclass
class WiredTap:
    """A `Tap` around that of the engine, for one trace of one layer.

    Attributes:
      tap: that of the engine.
      model: the architecture without modules.
      rows: for each module, the layers of its rows.
      modules: with the rows of all layers.
      carries: what each module carries; changed as they act.
      only: int32 ``[1 or b]``, where the one position stands whose output is wanted, or None.
      read: by point, what flowed onward from what modules read.
    """

    tap: Tap
    model: Any
    wires: tuple[Wire, ...]
    rows: Sequence[tuple[int, ...]]
    modules: Sequence[Any]
    layer: Any
    params: Any
    carries: list[Any]
    only: jax.Array | None = None
    read: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        return self._through(self.tap, name, value)

    def recall(self, name: str, value: jax.Array) -> jax.Array:
        return self._through(self.tap.recall, name, value)

    def _through(self, tap: Callable[[str, jax.Array], jax.Array], name: str, value: jax.Array) -> jax.Array:
        for wire in self.wires:
            if wire.writes == name and name not in wire.reads:
                value = self._acted(wire, value)
        value = tap(name, value)
        for wire in self.wires:
            if wire.writes == name and name in wire.reads:
                self.read[name] = value
                value = self._acted(wire, value)
        if any(name in wire.reads for wire in self.wires):
            self.read[name] = value
        return value

    def _acted(self, wire: Wire, value: jax.Array) -> jax.Array:
        """What is written, in the layers in which the module stands."""
        n_layers, module, carry = self.model.n_layers, self.modules[wire.module], self.carries[wire.module]
        given = [self._beside(self.read[name], value) for name in wire.reads]
        read = None if not given else given[0] if len(given) == 1 else tuple(given)
        site = dataclasses.replace(table_of(self.model)[f"blocks.*.{wire.writes}"], layer=self.layer)

        def act(tap: Tap) -> Any:
            here, own = Here(site, tap, self.params), module
            if module.per_layer:
                rows = slots(self.rows[wire.module], n_layers)
                own = dataclasses.replace(module, params=picked(module.params, rows, self.layer))
            return _checked(own(read, value, carry, here), value, carry, site)

        def leave() -> Any:
            return value, carry

        if len(wire.layers) == n_layers:
            value, self.carries[wire.module] = act(self.tap)
            return value
        here = jnp.asarray(np.isin(np.arange(n_layers), wire.layers))[self.layer]
        value, self.carries[wire.module] = self.tap.where(here, act, leave)
        return value

    def _beside(self, read: Any, written: jax.Array) -> Any:
        """``read``, of the one position that is written where it is of all."""
        if self.only is None or read.ndim < 3 or read.shape[1] == written.shape[1]:
            return read
        index = self.only.reshape(-1, *[1] * (read.ndim - 1))
        return jnp.take_along_axis(read, index, axis=1, mode="fill")

    def where(self, here: Any, full: Callable[[Tap], Any], lean: Callable[[], Any]) -> Any:
        return self.tap.where(here, full, lean)

    def where_wanted(
        self, names: tuple[str, ...], full: Callable[[Tap], jax.Array], lean: Callable[[], jax.Array]
    ) -> jax.Array:
        if any(map(self._stands_at, names)):
            # Modules act in the trace of the layer itself: what they carry may not leave a branch of it.
            return full(self)
        return self.tap.where_wanted(names, full, lean)

    def _stands_at(self, name: str) -> bool:
        return any(name == wire.writes or name in wire.reads for wire in self.wires)

    def wants(self, name: str) -> bool:
        return self.hooked(name) or self.captured(name)

    def hooked(self, name: str) -> bool:
        return self._stands_at(name) or self.tap.hooked(name)

    def captured(self, name: str) -> bool:
        return self.tap.captured(name)

    def at_step(self, name: str, value: jax.Array, step: Any, length: int) -> jax.Array:
        if self._stands_at(name):
            raise HookError(f"{name}: computed step by step; a module stands where all positions are at once")
        return self.tap.at_step(name, value, step, length)

    def passed(self, name: str, arrived: jax.Array, onward: jax.Array) -> None:
        self.tap.passed(name, arrived, onward)


def _checked(found: Any, value: jax.Array, carry: Any, site: Site) -> Any:
    """What a module returned, held to the shapes and dtypes of what it replaces."""
    if not isinstance(found, tuple) or len(found) != 2:
        raise InterventionError(
            f"{site.point}: a module returns two things, what is written and what is carried on; got "
            f"{type(found).__name__}"
        )
    check_returned("the module", found[0], value, site)
    given, got = (jax.tree.flatten(jax.tree.map(_kind, x)) for x in (carry, found[1]))
    if got != given:
        raise InterventionError(f"{site.point}: the module carries {got[0]} on; it was given {given[0]}")
    return found


def _kind(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
