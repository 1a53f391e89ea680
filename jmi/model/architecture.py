"""The protocol a model fulfils, and the Tap it calls at each of its points.

An architecture knows its mathematics and the names of its points; it knows nothing of hooks, jit,
sweeps or files. The engine drives it and hands it a `Tap`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jmi.captures.capture import Group, reduced
from jmi.engine.varying import vary_like
from jmi.errors import HookError
from jmi.hooks.interventions import apply
from jmi.hooks.layers import At
from jmi.model.sites import Site

Params = Any
"""A pytree of arrays. ``params["blocks"]`` is stacked on a leading ``layers`` axis, or a list of
per-layer pytrees; both give the same results."""


class Architecture(Protocol):
    """A frozen, hashable value (its configuration) with pure methods.

    ``context`` is what every layer reads besides its own weights: positions, masks, rotary tables,
    per-layer scalars. ``carry`` is what flows from layer to layer: the residual stream, and
    whatever else an architecture hands on. ``layer`` is the layer's index, possibly traced.
    """

    @property
    def n_layers(self) -> int: ...

    def __hash__(self) -> int: ...

    def sites(self) -> Mapping[str, Site]:
        """Every point of the model, in execution order."""
        ...

    def context(
        self, params: Params, tokens: jax.Array, mask: jax.Array | None, positions: jax.Array | None
    ) -> Any: ...

    def embed(self, params: Params, tokens: jax.Array, context: Any, tap: "Tap") -> Any: ...

    def block(self, layer_params: Params, carry: Any, context: Any, layer: Any, tap: "Tap") -> Any: ...

    def readout(self, params: Params, carry: Any, tap: "Tap") -> jax.Array: ...


@runtime_checkable
class Continuable(Protocol):
    """The part of an architecture that can run some positions alone: what they read of others is known."""

    @property
    def past_points(self) -> tuple[str, ...]:
        """Points inside the layers whose values at earlier positions are all that later ones read."""
        ...

    def after(self, context: Any, first: Any, past: Any) -> Any:
        """``context`` of a run of tokens from ``first`` on; ``past`` has the values of all positions,
        of which those before ``first`` are read."""
        ...

    def check_continued(self, length: int) -> None:
        """Raise ConfigError where what is known of the first positions differs in a run of ``length``."""
        ...

    def only(self, context: Any, at: jax.Array) -> Any:
        """``context`` of a block that reads all it is given and returns position ``at`` of each row."""
        ...


@dataclasses.dataclass
class Tap:
    """What an architecture calls at a point: ``value = tap("attn.hook_pattern", value)``.

    Lives for one trace of one layer (or of the embedding or the readout): it runs the hooks of the
    point and keeps what the captures ask for in ``rows``. Where only the positions from ``first`` on are
    run (`jmi.sweeps.sharing`), hooks still see tensors of all positions, captures keep those that are run.
    ``mask`` is that of the run, which hooks and reducers find in their `Site`.
    """

    sites: Mapping[str, Site]
    hooks: Mapping[str, tuple[Any, ...]]
    groups: tuple[Group, ...]
    data: tuple[tuple[Any, Any], ...]
    layer: Any = None
    first: int = 0
    mask: Any = None
    rows: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    seen: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """The value that flows onward from the point ``name`` (without ``blocks.i.``)."""
        point = self._point(name)
        self.seen.add(point)
        if not self.wants(name):
            return value
        site = self._site(point)
        self._record(point, "before", value, site)
        for hook in self.hooks.get(point, ()):
            value = self._acted(hook, value, site)
        self._record(point, "after", value, site)
        return value

    def _acted(self, hook: Any, value: jax.Array, site: Site) -> jax.Array:
        axis = site.axis("pos", "query")
        if not self.first or axis is None:
            return apply(hook, value, site)

        def on_all(hook: Any, value: jax.Array) -> jax.Array:
            before = [(self.first if i == axis else 0, 0) for i in range(value.ndim)]
            acted = apply(hook, jnp.pad(value, before), site)
            return jax.lax.slice_in_dim(acted, self.first, None, axis=axis)

        if isinstance(hook, At):
            return hook.where_chosen(functools.partial(on_all, hook.hook), value, site)
        return on_all(hook, value)

    def at_step(self, name: str, value: jax.Array, step: Any, length: int) -> jax.Array:
        """As a call, for a point whose positions are computed one by one; records nothing (`passed`).

        Args:
          value: of position ``step``, without the position axis.
          length: number of positions. A hook sees ``value`` at each of them, and its result at
            ``step`` flows onward.
        """
        point = self._point(name)
        self.seen.add(point)
        site = self._site(point)
        axis = site.axis("pos") or 0

        def act(hook: Any, value: jax.Array) -> jax.Array:
            shape = (*value.shape[:axis], length, *value.shape[axis:])
            spread = jnp.broadcast_to(jnp.expand_dims(value, axis), shape)
            return jax.lax.dynamic_index_in_dim(apply(hook, spread, site), step, axis, keepdims=False)

        for hook in self.hooks.get(point, ()):
            value = hook.where_chosen(functools.partial(act, hook.hook), value, site)
        return value

    def passed(self, name: str, arrived: jax.Array, onward: jax.Array) -> None:
        """Record a point whose hooks have run: its values of all positions before and after them."""
        point = self._point(name)
        self.seen.add(point)
        site = self._site(point)
        self._record(point, "before", arrived, site)
        self._record(point, "after", onward, site)

    @classmethod
    def silent(cls) -> "Tap":
        """A tap whose points nobody can ask for: a part of a model that exposes nothing."""
        return cls({}, {}, (), ())

    def where_wanted(
        self, names: tuple[str, ...], full: Callable[["Tap"], jax.Array], lean: Callable[[], jax.Array]
    ) -> jax.Array:
        """``full(tap)`` in the layers where this run hooks or captures one of ``names``, else ``lean()``.

        Both compute one value; ``full`` also passes through the points, with the tap it is given.
        Layers that nobody looks into do not pay for tensors that only a hook or capture needs.
        """
        self.seen.update(self._point(name) for name in names)
        if not any(self.wants(name) for name in names):
            return lean()
        here = self._wanted_here({self._point(name) for name in names})
        if here is None:
            return full(self)

        def looked_into() -> tuple[jax.Array, dict[int, jax.Array]]:
            inner = dataclasses.replace(self, rows={})
            return full(inner), inner.rows

        _, rows = jax.eval_shape(looked_into)

        def passed() -> tuple[jax.Array, dict[int, jax.Array]]:
            value = lean()
            # Never read: no capture keeps this layer.
            return value, {i: vary_like(jnp.zeros(row.shape, row.dtype), value) for i, row in rows.items()}

        value, rows = jax.lax.cond(here, looked_into, passed)
        self.rows.update(rows)
        return value

    def _wanted_here(self, points: set[str]) -> jax.Array | None:
        """Whether this layer is among those wanted at ``points``; None when every layer surely is."""
        groups = [(group, slots) for group, (slots, _) in zip(self.groups, self.data, strict=True)]
        captured = [(group, slots) for group, slots in groups if group.point in points]
        if self.layer is None or any(group.whole for group, _ in captured):
            return None
        hooked = [jnp.asarray(hook.layers) for point in points for hook in self.hooks.get(point, ())]
        masks = [*hooked, *(jnp.asarray(slots) >= 0 for _, slots in captured)]
        return jnp.stack(masks)[:, self.layer].any()

    def wants(self, name: str) -> bool:
        """Whether this run hooks or captures the point: what nobody wants need not be computed."""
        return self.hooked(name) or self.captured(name)

    def hooked(self, name: str) -> bool:
        """Whether this run hooks the point."""
        return self._point(name) in self.hooks

    def captured(self, name: str) -> bool:
        """Whether this run captures the point."""
        return any(group.point == self._point(name) for group in self.groups)

    def finish(self) -> None:
        """Raise HookError for a wanted point of this part that is listed but was not passed through."""
        wanted = {*self.hooks, *(group.point for group in self.groups)}
        missed = {p for p in wanted if p.startswith("blocks.") == (self.layer is not None)} - self.seen
        if missed:
            raise HookError(f"{', '.join(sorted(missed))}: listed by the model but never reached")

    def _point(self, name: str) -> str:
        return name if self.layer is None else f"blocks.*.{name}"

    def _site(self, point: str) -> Site:
        return dataclasses.replace(self.sites[point], layer=self.layer, mask=self.mask)

    def _record(self, point: str, when: str, value: jax.Array, site: Site) -> None:
        for i, group in enumerate(self.groups):
            if group.point == point and group.when == when:
                self.rows[i] = self._reduced(group, *self.data[i], value, site)

    def _reduced(self, group: Group, slots: Any, reduce: Any, value: jax.Array, site: Site) -> jax.Array:
        if reduce is None:
            return value
        if group.count is None or group.whole:
            return reduced(reduce, value, site)
        # A reducer may be dear (a dictionary): it runs in the layers that are kept.
        row = jax.eval_shape(lambda: reduced(reduce, value, site))
        nothing = vary_like(jnp.zeros(row.shape, row.dtype), value)
        return jax.lax.cond(
            jnp.asarray(slots)[self.layer] >= 0, lambda v: reduce(v, site), lambda v: nothing, value
        )
