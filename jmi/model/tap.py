"""The Tap: what an architecture calls at each of its points.

``value = tap("attn.hook_pattern", value)``: what comes back flows on. The engine's tap runs the hooks and
keeps what the captures ask for; `SILENT` lets everything pass.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax


class Tap(Protocol):
    """What an architecture may call; names of points stand without ``blocks.i.``."""

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """The value that flows onward from the point ``name``."""
        ...

    def recall(self, name: str, value: jax.Array) -> jax.Array:
        """As a call, at a point of the memory, together with what earlier positions left behind there.

        Of a `Cache` point come back the values of all positions, those that are run in their places; of a
        `State` what the positions before left behind, in place of ``value``.
        """
        ...

    def at_step(self, name: str, value: jax.Array, step: Any, length: int) -> jax.Array:
        """As a call, for a point whose positions are computed one by one; records nothing (`passed`).

        Args:
          value: of position ``step``, without the position axis.
          length: number of positions. A hook sees ``value`` at each of them, and its result at ``step``
            flows onward.
        """
        ...

    def passed(self, name: str, arrived: jax.Array, onward: jax.Array) -> None:
        """Record a point whose hooks have run: its values of all positions before and after them."""
        ...

    def where(self, here: Any, full: Callable[["Tap"], Any], lean: Callable[[], Any]) -> Any:
        """``full(tap)`` in the layers where ``here`` is true, else ``lean()``, pytrees of one structure.

        ``full`` may pass through points with the tap it is given, and must with no other.
        """
        ...

    def where_wanted(
        self, names: tuple[str, ...], full: Callable[["Tap"], jax.Array], lean: Callable[[], jax.Array]
    ) -> jax.Array:
        """``full(tap)`` in the layers where this run hooks or captures one of ``names``, else ``lean()``.

        Both compute one value; ``full`` also passes through the points, with the tap it is given.
        Layers that nobody looks into do not pay for tensors that only a hook or capture needs.
        """
        ...

    def wants(self, name: str) -> bool:
        """Whether this run hooks or captures the point: what nobody wants need not be computed."""
        ...

    def hooked(self, name: str) -> bool:
        """Whether anything acts on the point in this run."""
        ...

    def captured(self, name: str) -> bool:
        """Whether this run captures the point."""
        ...


class Silent:
    """A tap that nobody listens to: a part of a model that exposes nothing, or a block run by itself."""

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        del name
        return value

    recall = __call__

    def at_step(self, name: str, value: jax.Array, step: Any, length: int) -> jax.Array:
        del name, step, length
        return value

    def passed(self, name: str, arrived: jax.Array, onward: jax.Array) -> None:
        del name, arrived, onward

    def where(self, here: Any, full: Callable[[Tap], Any], lean: Callable[[], Any]) -> Any:
        return jax.lax.cond(here, lambda: full(self), lean)

    def where_wanted(
        self, names: tuple[str, ...], full: Callable[[Tap], jax.Array], lean: Callable[[], jax.Array]
    ) -> jax.Array:
        del names, full
        return lean()

    def wants(self, name: str) -> bool:
        del name
        return False

    hooked = captured = wants


SILENT = Silent()
