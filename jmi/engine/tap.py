"""The engine's tap: runs the hooks of each point and keeps what the captures ask for."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi.captures.capture import CARRY, Group, reduced
from jmi.engine.run import Run
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError, HookError
from jmi.hooks.interventions import apply
from jmi.hooks.layers import At
from jmi.hooks.reach import says
from jmi.model.architecture import Cache, State
from jmi.model.sites import SCORES, Site, slots, table_of
from jmi.model.tap import Tap


@dataclasses.dataclass
class LiveTap:
    """A `Tap` for one trace of one layer, or of what lies outside the layers.

    Attributes:
      run: what it serves.
      hooks, reducers: those of the run, in a layer with its own rows of what differs by layer.
      layer: index of the layer; None outside the blocks.
      rows: what was captured, by the number of the capture.
      seen: points that were passed.
    """

    run: Run
    hooks: dict[str, tuple[Any, ...]]
    reducers: Sequence[tuple[Any, Any]]
    layer: Any = None
    rows: dict[int, Any] = dataclasses.field(default_factory=dict)
    seen: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        point = self._point(name)
        self.seen.add(point)
        if not self.wants(name):
            return value
        self._record(point, "before", value)
        for hook in self.hooks.get(point, ()):
            value = self._acted(hook, value, point)
        self._record(point, "after", value)
        return value

    def recall(self, name: str, value: jax.Array) -> jax.Array:
        part, held = self._remembered(name)
        if held is None:
            return self(name, value)
        if held.dtype != value.dtype:
            raise ArgumentError(
                f"memory: {name} is {held.dtype}, in this run {value.dtype}; give what a run of this model "
                f"left behind in {value.dtype}"
            )
        if isinstance(part, State):
            return self(name, held)
        axis = self._site(self._point(name)).axis("pos") or 1
        return jax.lax.dynamic_update_slice_in_dim(held, self(name, value), self.run.first, axis)

    def _remembered(self, name: str) -> tuple[Cache | State, Any]:
        """The part of the memory whose point this is, and what the run has of it in this layer."""
        point, arch = self._point(name), self.run.static.arch
        parts = arch.memory()  # type: ignore[attr-defined]
        for part, what in parts.items():
            if point == (what.point if isinstance(what, Cache) else what.enters):
                if self.run.memory is None:
                    return what, None
                rows = slots(self._site(point).layers or (), arch.n_layers)
                row = jnp.asarray(rows)[self.layer]
                return what, jax.lax.dynamic_index_in_dim(self.run.memory[part], row, keepdims=False)
        raise HookError(f"{point}: recalled by the model, which does not list it in memory()")

    def _acted(self, hook: Any, value: jax.Array, point: str) -> jax.Array:
        site, length = self._site(point), self.run.static.length
        axis = site.axis("pos", "query")
        if length is None or axis is None:
            return apply(hook, value, site)
        if not says(hook, "is_local", site):
            return apply(hook, value, self._narrowed(site))
        # It sees all positions, and so knows which of them these are; the others are not there.
        along = site.token_axes()
        shape = [self.run.prompts.shape[1] if i in along else n for i, n in enumerate(value.shape)]
        start = [jnp.int32(self.run.first if i == axis else 0) for i in range(value.ndim)]

        def on_all(hook: Any, value: jax.Array) -> jax.Array:
            absent = -jnp.inf if site.point == SCORES else 0
            whole = vary_like(jnp.full(shape, absent, value.dtype), value)
            whole = jax.lax.dynamic_update_slice(whole, value, start)
            return jax.lax.dynamic_slice(apply(hook, whole, site), start, value.shape)

        if isinstance(hook, At):
            return hook.where_chosen(functools.partial(on_all, hook.hook), value, site)
        return on_all(hook, value)

    def at_step(self, name: str, value: jax.Array, step: Any, length: int) -> jax.Array:
        point = self._point(name)
        self.seen.add(point)
        site = self._site(point)
        axis = site.axis("pos") or 0
        if self.run.static.length is not None:
            step, length = step + self.run.first, self.run.prompts.shape[1]

        def act(hook: Any, value: jax.Array) -> jax.Array:
            shape = (*value.shape[:axis], length, *value.shape[axis:])
            spread = jnp.broadcast_to(jnp.expand_dims(value, axis), shape)
            return jax.lax.dynamic_index_in_dim(apply(hook, spread, site), step, axis, keepdims=False)

        for hook in self.hooks.get(point, ()):
            value = hook.where_chosen(functools.partial(act, hook.hook), value, site)
        return value

    def passed(self, name: str, arrived: jax.Array, onward: jax.Array) -> None:
        point = self._point(name)
        self.seen.add(point)
        self._record(point, "before", arrived)
        self._record(point, "after", onward)

    def entered(self, carry: Any) -> None:
        """Record what enters this layer."""
        self._record(CARRY, "after", carry)

    def where_wanted(
        self, names: tuple[str, ...], full: Callable[[Tap], jax.Array], lean: Callable[[], jax.Array]
    ) -> jax.Array:
        self.seen.update(self._point(name) for name in names)
        if not any(self.wants(name) for name in names):
            return lean()
        here = self._wanted_here({self._point(name) for name in names})
        found: jax.Array = full(self) if here is None else self.where(here, full, lean)
        return found

    def where(self, here: Any, full: Callable[[Tap], Any], lean: Callable[[], Any]) -> Any:
        def taken() -> tuple[Any, dict[int, Any]]:
            # What is captured leaves the branch as its result; the points seen are known from the trace.
            inner = dataclasses.replace(self, rows={})
            return full(inner), inner.rows

        _, rows = jax.eval_shape(taken)

        def passed() -> tuple[Any, dict[int, Any]]:
            value = lean()
            # Never read where no capture keeps this layer; another module may have passed the same point.
            none = jax.tree.map(lambda row: vary_like(jnp.zeros(row.shape, row.dtype), value), rows)
            return value, {i: self.rows.get(i, row) for i, row in none.items()}

        value, rows = jax.lax.cond(here, taken, passed)
        self.rows.update(rows)
        return value

    def _wanted_here(self, points: set[str]) -> jax.Array | None:
        """Whether this layer is among those wanted at ``points``; None when every layer surely is."""
        captured = [
            (g, rows) for g, (rows, _) in zip(self._groups, self.reducers, strict=True) if g.point in points
        ]
        if self.layer is None or any(group.whole for group, _ in captured):
            return None
        hooked = [jnp.asarray(hook.layers) for point in points for hook in self.hooks.get(point, ())]
        masks = [*hooked, *(jnp.asarray(rows) >= 0 for _, rows in captured)]
        return jnp.stack(masks)[:, self.layer].any()

    def wants(self, name: str) -> bool:
        return self.hooked(name) or self.captured(name)

    def hooked(self, name: str) -> bool:
        return self._point(name) in self.hooks

    def captured(self, name: str) -> bool:
        return any(group.point == self._point(name) for group in self._groups)

    def finish(self, layers: range | None) -> None:
        """Raise HookError for a wanted point of these layers (None: outside of them) that was not passed."""
        table = table_of(self.run.static.arch)
        wanted = {*self.hooks, *(group.point for group in self._groups)} - {CARRY}
        missed = {point for point in wanted if has(table[point], layers)} - self.seen
        if missed:
            raise HookError(f"{', '.join(sorted(missed))}: listed by the model but never reached")

    @property
    def _groups(self) -> tuple[Group, ...]:
        return self.run.static.groups

    def _point(self, name: str) -> str:
        return name if self.layer is None else f"blocks.*.{name}"

    def _site(self, point: str) -> Site:
        site = table_of(self.run.static.arch).get(point) or Site(point, ("batch", "pos"), (None, None), ())
        return dataclasses.replace(site, layer=self.layer, mask=self.run.prompts.mask)

    def _narrowed(self, site: Site) -> Site:
        """``site`` with the mask of the positions that are run."""
        return site if self.run.static.length is None else dataclasses.replace(site, mask=self.run.own.mask)

    def _record(self, point: str, when: str, value: Any) -> None:
        for i, group in enumerate(self._groups):
            if group.point == point and group.when == when:
                self.rows[i] = self._reduced(
                    group, *self.reducers[i], value, self._narrowed(self._site(point))
                )

    def _reduced(self, group: Group, rows: Any, reduce: Any, value: Any, site: Site) -> Any:
        if reduce is None:
            return value
        if group.count is None or group.whole:
            return reduced(reduce, value, site)
        # A reducer may cost much (a dictionary): it runs in the layers that are kept.
        shapes = jax.eval_shape(lambda: reduced(reduce, value, site))
        nothing = jax.tree.map(lambda x: vary_like(jnp.zeros(x.shape, x.dtype), value), shapes)
        kept = jnp.asarray(rows)[self.layer] >= 0
        return jax.lax.cond(kept, lambda v: reduce(v, site), lambda v: nothing, value)


def has(site: Site, layers: range | None) -> bool:
    """Whether one of some layers has the point, or where there are none given, what lies outside of them."""
    if layers is None or site.layers is None:
        return layers is None and site.layers is None
    return any(layer in layers for layer in site.layers)
