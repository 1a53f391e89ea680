"""Interventions on attention weights: knocking edges out, setting and scaling them.

An edge goes from a query position (the token that looks) to a key position (the token looked at).
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jmi import pytrees
from jmi.errors import InterventionError
from jmi.interventions import payload
from jmi.padding import named
from jmi.selection import check_selectors, site_mask
from jmi.sites import PATTERN, SCORES, Site


@pytrees.dataclass
class Edges:
    """Base of attention edits: which edges. Everything not given means all.

    Attributes:
      queries: query positions; alone, these queries attend to nothing chosen.
      keys: key positions.
      heads: query heads.
      rows: batch rows.
      edges: ``[n, 2]`` (query, key) pairs, instead of the product of ``queries`` and ``keys``.
      mask: boolean array broadcastable to ``[batch, head, query, key]``, further narrowing; in a padded batch
        queries and keys of it are places of the padded axis.
    """

    acts_on: ClassVar[str]
    queries: Any = struct.field(default=None, kw_only=True)
    keys: Any = struct.field(default=None, kw_only=True)
    heads: Any = struct.field(default=None, kw_only=True)
    rows: Any = struct.field(default=None, kw_only=True)
    edges: Any = struct.field(default=None, kw_only=True)
    mask: Any = struct.field(default=None, kw_only=True)

    def _selectors(self) -> dict[str, Any]:
        return {"rows": self.rows, "heads": self.heads, "queries": self.queries, "keys": self.keys}

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError at another site, or for edges that do not exist in ``shape``."""
        if site.point != self.acts_on:
            raise InterventionError(f"{site.point}: {type(self).__name__} acts on {self.acts_on}")
        check_selectors(self._selectors(), site, shape)
        if all(getattr(self, f) is None for f in ("queries", "keys", "heads", "rows", "edges", "mask")):
            raise InterventionError(f"{site.point}: name the edges: queries=, keys=, heads=, edges= or mask=")
        if self.edges is None or isinstance(self.edges, jax.core.Tracer):
            return
        edges = np.asarray(self.edges)
        if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
            raise InterventionError(
                f"{site.point}: edges= must be (query, key) pairs, got shape {edges.shape}"
            )
        check_selectors({"rows": self.rows, "queries": edges[:, 0], "keys": edges[:, 1]}, site, shape)

    def edge_mask(self, value: jax.Array, site: Site) -> jax.Array:
        """Boolean mask of the chosen edges, broadcast to ``[batch, head, query, key]``."""
        mask = site_mask(self._selectors(), site, value.shape)
        mask = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
        if self.edges is not None:
            pairs = jnp.asarray(self.edges)
            query, key = (named(pairs[:, i], value.shape[i - 2], site.mask) for i in (0, 1))
            chosen = (query[..., :, None] & key[..., None, :]).any(-3)
            mask = mask & (chosen[None, None] if chosen.ndim == 2 else chosen[:, None])
        if self.mask is not None:
            given = jnp.asarray(self.mask)
            mask = mask & given.reshape((1,) * (value.ndim - given.ndim) + given.shape).astype(bool)
        try:
            return jnp.broadcast_to(mask, value.shape)
        except ValueError:
            raise InterventionError(
                f"{site.point}: mask= of shape {jnp.shape(self.mask)} does not broadcast to {value.shape}"
            ) from None


@pytrees.dataclass
class Knockout(Edges):
    """Cut attention edges: the chosen scores become -inf, so their attention is exactly zero.

    The site comes after any soft-cap and mask, so the cut holds there too. The softmax gives the
    lost weight to the other keys; a query with every key cut attends to nothing (a row of zeros).

    Example:
      >>> import jmi
      >>> hooks = {"blocks.8.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0)}
    """

    acts_on: ClassVar[str] = SCORES

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Edges are cut, none is made."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return jnp.where(self.edge_mask(value, site), -jnp.inf, value)


@pytrees.dataclass
class ScaleAttention(Edges):
    """Multiply the chosen attention weights by ``factor``, then renormalise the rows touched."""

    acts_on: ClassVar[str] = PATTERN
    factor: Any = payload()

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """A weight of zero stays zero."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        mask = self.edge_mask(value, site)
        scaled = jnp.where(mask, value * jnp.asarray(self.factor).astype(value.dtype), value)
        return _renormalise(scaled, value, mask)


@pytrees.dataclass
class SetAttention(Edges):
    """Set the chosen attention weights to ``weight``; the row's other keys share what is left.

    The others keep their proportions. Later positions are never attended to, chosen or not; a row
    whose chosen weights pass 1, or that has no other key, is scaled to sum to 1.
    """

    acts_on: ClassVar[str] = PATTERN
    weight: Any = payload()

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Later keys are never attended to."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        mask = self.edge_mask(value, site) & np.tri(*value.shape[-2:], dtype=np.bool_)[None, None]
        chosen = jnp.where(mask, jnp.asarray(self.weight).astype(value.dtype), 0)
        others = jnp.where(mask, 0, value)
        left = jnp.maximum(1 - chosen.sum(-1, keepdims=True), 0)
        total = others.sum(-1, keepdims=True)
        shared = others * (left / jnp.where(total > 0, total, 1))
        return _renormalise(chosen + shared, value, mask)


def _renormalise(new: jax.Array, old: jax.Array, mask: jax.Array) -> jax.Array:
    total = new.sum(-1, keepdims=True)
    # A row whose every weight vanished cannot be normalised: it stays as it is, not NaN.
    rows = new / jnp.where(total > 1e-10, total, 1)
    return jnp.where(mask.any(-1, keepdims=True), rows, old)
