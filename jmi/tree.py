"""How jmi makes pytree classes: `flax.struct.dataclass`, with structures that tell classes apart."""

import inspect
from typing import Any, TypeVar, dataclass_transform

from flax import struct

T = TypeVar("T", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
def dataclass(cls: T) -> T:
    """A frozen dataclass that is a pytree; fields made with ``pytree_node=False`` are static.

    JAX compares the tree structures of dataclasses by their fields and static values, not by their
    class (up to 0.12.0 at least), so a compiled function could take ``Scale(x)`` for ``Replace(x)``:
    rarely, for their hashes differ, but silently. A static field holding the class prevents
    it. Make your own interventions and reducers with this decorator.

    Example:
      >>> import jax, jmi
      >>> @jmi.tree.dataclass
      ... class Clip:
      ...     limit: jax.Array
      ...
      ...     def __call__(self, value, site):
      ...         return value.clip(-self.limit, self.limit)
      >>> hooks = {"blocks.2.mlp.hook_post": Clip(3.0)}
    """
    # The class itself, not its name: a notebook redefines a class under the same name.
    cls.__annotations__ = {**inspect.get_annotations(cls), "_class": Any}
    cls._class = struct.field(pytree_node=False, default=cls, kw_only=True, repr=False)  # type: ignore[attr-defined]
    return struct.dataclass(cls)
