"""Memory: what positions leave behind for later ones, so that a text can be run in pieces.

Keys and values (`Cache`) have a row for each position, the state of a recurrence (`State`) is what the last
of them left. A model may have both. Axis letters: l layers that have the point, b batch, s sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.checks import shown
from jmi.errors import ArgumentError
from jmi.model.architecture import Cache, State, remembers
from jmi.model.inputs import Prompts
from jmi.model.sites import table_of


@tree.dataclass
class Memory:
    """What has been read so far, and what it left behind; give it to `jmi.forward` or `generate` to go on.

    Attributes:
      prompts: all that was read.
      parts: by the architecture's own names, keys and values ``[l, b, s, ...]``, states ``[l, b, ...]``.
    """

    prompts: Prompts
    parts: dict[str, Any]


def declared(arch: Any) -> Mapping[str, Cache | State]:
    """What an architecture remembers, by name; ArgumentError for one that remembers nothing."""
    if not remembers(arch):
        raise ArgumentError(
            f"{getattr(arch, 'family', type(arch).__name__)}: this model cannot go on from what earlier "
            "positions left behind; run the whole text"
        )
    return arch.memory()


def only_caches(arch: Any) -> bool:
    """Whether any position can be run by itself, given the keys and values of those before it."""
    return remembers(arch) and all(isinstance(part, Cache) for part in arch.memory().values())


def leaving(arch: Any) -> list[Capture]:
    """Captures of all that a run leaves behind, in the order in which it is declared."""
    return [Capture(_leaves(part)) for part in declared(arch).values()]


def _leaves(part: Cache | State) -> str:
    return part.point if isinstance(part, Cache) else part.leaves


def positions_axis(arch: Any, part: Cache) -> int:
    """The axis of positions in the values of a part ``[l, b, s, ...]``."""
    return 1 + (table_of(arch)[part.point].axis("pos") or 1)


def grown(arch: Any, parts: Mapping[str, Any], length: int) -> dict[str, Any]:
    """``parts`` with room, zeros, for the positions of a text of so many."""

    def padded(name: str, part: Cache | State) -> Any:
        if isinstance(part, State):
            return parts[name]
        axis = positions_axis(arch, part)
        room = length - parts[name].shape[axis]
        return jnp.pad(parts[name], [(0, room * (i == axis)) for i in range(jnp.ndim(parts[name]))])

    return {name: padded(name, part) for name, part in declared(arch).items()}


def written(arch: Any, parts: Mapping[str, Any], found: Sequence[Any], first: Any) -> dict[str, Any]:
    """``parts`` with what positions from ``first`` on left behind, ``found`` as `leaving` captured it."""

    def write(name: str, part: Cache | State, new: Any) -> Any:
        if isinstance(part, State):
            return new
        axis = positions_axis(arch, part)
        return jax.lax.dynamic_update_slice_in_dim(parts[name], new, first, axis)

    return {
        name: write(name, part, new) for (name, part), new in zip(declared(arch).items(), found, strict=True)
    }


def named(arch: Any, found: Sequence[Any]) -> dict[str, Any]:
    """What a whole run left behind, by name."""
    return dict(zip(declared(arch), found, strict=True))


def check(arch: Any, memory: Any, batch: int) -> Memory:
    """``memory``, found to be that of this model and of so many rows.

    Raises:
      ArgumentError: something else.
    """
    parts = declared(arch)
    if not isinstance(memory, Memory) or set(memory.parts) != set(parts):
        raise ArgumentError(
            f"memory={shown(memory)}: give True, or out.memory of an earlier run of this model, "
            f"with {sorted(parts)}"
        )
    rows, length = memory.prompts.shape
    if rows != batch:
        raise ArgumentError(f"memory= is of {rows} rows, the prompts have {batch}")
    table = table_of(arch)
    for name, part in parts.items():
        site = table[_leaves(part)]
        wanted = (site.n_layers, *site.shape(batch, length))
        if np.shape(memory.parts[name]) != wanted:
            raise ArgumentError(
                f"memory: {name} has shape {np.shape(memory.parts[name])}; this needs {wanted}"
            )
    return memory
