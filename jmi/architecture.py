"""The protocol a model fulfils, and the Tap it calls at each of its points.

An architecture knows its mathematics and the names of its points; it knows nothing of hooks, jit,
sweeps or files. The engine drives it and hands it a `Tap`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jmi.captures import Group
from jmi.errors import HookError
from jmi.interventions import apply
from jmi.sites import Site

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


@dataclasses.dataclass
class Tap:
    """What an architecture calls at a point: ``value = tap("attn.hook_pattern", value)``.

    Lives for one trace of one layer (or of the embedding or the readout): it runs the hooks of the
    point and keeps what the captures ask for in ``rows``.
    """

    sites: Mapping[str, Site]
    hooks: Mapping[str, tuple[Any, ...]]
    groups: tuple[Group, ...]
    data: tuple[tuple[Any, Any], ...]
    layer: Any = None
    rows: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    seen: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """The value that flows onward from the point ``name`` (without ``blocks.i.``)."""
        point = self._point(name)
        self.seen.add(point)
        if not self.wants(name):
            return value
        site = dataclasses.replace(self.sites[point], layer=self.layer)
        self._record(point, "before", value, site)
        for hook in self.hooks.get(point, ()):
            value = apply(hook, value, site)
        self._record(point, "after", value, site)
        return value

    def wants(self, name: str) -> bool:
        """Whether this run hooks or captures the point: what nobody wants need not be computed."""
        point = self._point(name)
        return point in self.hooks or any(group.point == point for group in self.groups)

    def finish(self) -> None:
        """Raise HookError for a wanted point that the block lists but did not pass through."""
        wanted = {*self.hooks, *(group.point for group in self.groups)}
        missed = {p for p in wanted if p.startswith("blocks.")} - self.seen
        if missed:
            raise HookError(f"{', '.join(sorted(missed))}: listed by the model but never reached")

    def _point(self, name: str) -> str:
        return name if self.layer is None else f"blocks.*.{name}"

    def _record(self, point: str, when: str, value: jax.Array, site: Site) -> None:
        for i, group in enumerate(self.groups):
            if group.point == point and group.when == when:
                reduce = self.data[i][1]
                self.rows[i] = value if reduce is None else reduce(value, site)
