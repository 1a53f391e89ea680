"""The state that a recurrent model carries from one run to the next.

It is nothing but sites: each part of a state enters every layer at one point and leaves at another,
so giving a state is a hook, returning it is a capture, and both go through jit, vmap and grad.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture
from jmi.errors import ConfigError
from jmi.hooks.interventions import Replace
from jmi.hooks.layers import At, PerLayer
from jmi.model.sites import HasSites, Site, table_of

LABEL = "state:"
"""What the labels of captures that make up the returned state begin with."""


@runtime_checkable
class Recurrent(Protocol):
    """The part of an architecture that has a state."""

    @property
    def n_layers(self) -> int: ...

    def sites(self) -> Mapping[str, Site]: ...

    @property
    def state_points(self) -> Mapping[str, tuple[str, str]]:
        """Part of the state -> point where it enters a layer, point where it leaves."""
        ...

    def initial_state(self, batch: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]: ...


def enter(
    arch: HasSites, state: Any, hooks: dict[str, tuple[Any, ...]], shape: tuple[int, int]
) -> dict[str, tuple[Any, ...]]:
    """Prepared ``hooks`` that begin with ``state`` entering every layer; the user's own come after.

    Raises:
      ConfigError: the model has no state, or one of another structure or shape.
    """
    points = _points(arch)
    if not isinstance(state, Mapping) or set(state) != set(points):
        given = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ConfigError(
            f"state= is {given}; this model has {sorted(points)}: start with arch.initial_state()"
        )
    table, every = table_of(arch), np.ones(arch.n_layers, bool)
    for part, (into, _) in points.items():
        wanted = (arch.n_layers, *table[into].shape(*shape))
        if jnp.shape(state[part]) != wanted:
            raise ConfigError(
                f"state[{part!r}] has shape {jnp.shape(state[part])}; these tokens need {wanted}"
            )
    entering = {into: At(every, PerLayer(Replace(state[part]))) for part, (into, _) in points.items()}
    return {**hooks, **{into: (hook, *hooks.get(into, ())) for into, hook in entering.items()}}


def leaving(arch: HasSites) -> list[Capture]:
    """Captures that make up the state after the last token."""
    return [Capture(out, label=f"{LABEL}{part}") for part, (_, out) in _points(arch).items()]


def _points(arch: HasSites) -> Mapping[str, tuple[str, str]]:
    if not isinstance(arch, Recurrent):
        raise ConfigError("state=: this model carries no state from one run to the next; leave it out")
    return arch.state_points
