"""Reducers: what is kept of a captured value, so that only that is ever stored.

A reducer is a pure ``(value, site) -> pytree of arrays`` that runs in the layer. Its arrays are data; in
`PerLayer` they differ by layer.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, whole_number
from jmi.errors import InterventionError
from jmi.hooks.masked import seen
from jmi.hooks.selection import check_selectors
from jmi.model import padding
from jmi.model.sites import Site
from jmi.numerics import wide


@tree.dataclass
class Select:
    """Reducer: one position and/or one head (data), its axis dropped.

    The position is that of a real token of each row, where rows are padded. A traced index out of range
    gives NaN.
    """

    takes_padding: ClassVar[bool] = True
    position: Any = None
    head: Any = None

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for an index that is not one in-range integer of an axis here."""
        picks = {"positions": self.position, "heads": self.head}
        check_selectors(picks, site, shape)
        for name, index in picks.items():
            if getattr(index, "ndim", np.ndim(index)) or isinstance(index, bool):
                raise InterventionError(f"{site.point}: Select takes one index for {name}, got {index!r}")

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        position, axis = self.position, site.axis("pos", "query")
        if position is not None and site.mask is not None and axis is not None:
            index = padding.place_of(position, site.mask)[:, None]
            # Kept as an axis until the head's, which may stand before or after it, is found.
            value, position = padding.take(value, index, axis), 0
        picks = [(position, axis), (self.head, site.axis("head", "kv_head"))]
        for index, axis in sorted((p for p in picks if p[0] is not None), key=lambda p: -(p[1] or 0)):
            where = (slice(None),) * (axis or 0)
            value = value.at[(*where, jnp.asarray(index))].get(mode="fill", fill_value=jnp.nan)
        return value


@tree.dataclass
class Positions:
    """Reducer: the tokens ``index`` ``[p]``, or ``[b, p]`` with those of each row; ``[b, p, ...]``."""

    takes_padding: ClassVar[bool] = True
    index: Any

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for an index out of range."""
        check_selectors({"positions": self.index}, site, shape)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        index = jnp.asarray(self.index)
        if site.mask is not None:
            return padding.take(value, padding.places(index, site.mask), 1)
        return padding.take(value, jnp.broadcast_to(index, (value.shape[0], index.shape[-1])), 1)


@tree.dataclass
class Dot:
    """Reducer: inner products with ``vectors`` ([d] or [n, d]) over the last axis, at least float32.

    Of attention scores, over the keys that a query sees.
    """

    takes_padding: ClassVar[bool] = True
    vectors: Any

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for vectors that do not lie in the last axis."""
        given = as_array("vectors", self.vectors).shape
        if len(given) not in (1, 2) or given[-1] != shape[-1]:
            raise InterventionError(
                f"{site.point}: Dot has vectors {list(given)}; give [{shape[-1]}] or [n, {shape[-1]}]"
            )

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        dtype = wide(value.dtype)
        return seen(value, site).astype(dtype) @ jnp.asarray(self.vectors).astype(dtype).T


@tree.dataclass
class Norm:
    """Reducer: Euclidean length of the last axis, at least float32; of scores, over the keys a query sees."""

    takes_padding: ClassVar[bool] = True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return jnp.linalg.norm(seen(value, site).astype(wide(value.dtype)), axis=-1)


@tree.dataclass
class IsFinite:
    """Reducer: True when every entry is finite. Over ``blocks.*`` it finds the layer of a NaN."""

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        return jnp.isfinite(value).all()


class TopEntries(NamedTuple):
    """The largest entries of the last axis, ``[..., k]``, largest first."""

    values: Any
    ids: Any


@tree.dataclass
class Top:
    """Reducer: the ``k`` largest entries of the last axis, with their indices, `TopEntries`.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> out = lm.run("Paris is", capture=[jmi.Capture("blocks.*.mlp.hook_post", reduce=jmi.Top(8))])
      >>> out.stack("mlp.hook_post").ids.shape[-1]
      8
    """

    takes_padding: ClassVar[bool] = True
    k: int = tree.static()

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise ArgumentError for a number that the axis does not have."""
        whole_number(f"{site.point}: k", self.k, 1, shape[-1])

    def __call__(self, value: jax.Array, site: Site) -> TopEntries:
        del site
        return TopEntries(*jax.lax.top_k(value, self.k))
