"""Pytree classes, and structures of pytrees that tell classes apart.

JAX compares the tree structures of dataclasses by their fields and static values, not by their class (up to
0.12.0 at least), so a compiled function could take ``Scale(x)`` for ``Replace(x)``: rarely, for their hashes
differ, but silently. Classes made here hold their class as a static field, which prevents it.
"""

import dataclasses
import inspect
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T", bound=type)


def static(**options: Any) -> Any:
    """A field of such a class that is part of its structure, not of its data: ``static(default=False)``."""
    return dataclasses.field(metadata={"pytree_node": False}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def dataclass(cls: T) -> T:
    """A frozen dataclass that is a pytree; fields made with `static` are part of its structure.

    Make your own interventions, reducers, metrics and modules with this decorator.

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
    cls._class = static(default=cls, kw_only=True, repr=False)  # type: ignore[attr-defined]
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    data = [f.name for f in dataclasses.fields(made) if f.metadata.get("pytree_node", True)]
    structure = [f.name for f in dataclasses.fields(made) if f.name not in data]
    return jax.tree_util.register_dataclass(made, data, structure)


@dataclasses.dataclass(frozen=True)
class Structure:
    """Structure of a pytree as a key of what is compiled for it, classes of other makers included.

    Attributes:
      tree: structure, as of JAX.
      classes: of the dataclasses in it, in order.
    """

    tree: Any
    classes: tuple[type, ...]


def structure_of(tree: Any) -> Structure:
    """The structure of a pytree."""
    return Structure(jax.tree.structure(tree), classes(tree))


def classes(tree: Any) -> tuple[type, ...]:
    """Classes of the dataclass nodes of a pytree, from the root on."""
    if jax.tree_util.all_leaves([tree]):
        return ()
    children = jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)
    own = (type(tree),) if dataclasses.is_dataclass(tree) else ()
    return own + tuple(found for child in children for found in classes(child))
