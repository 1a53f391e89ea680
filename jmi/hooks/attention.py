"""Interventions on attention weights: knocking edges out, setting and scaling them.

An edge goes from a query position (the token that looks) to a key position (the token looked at).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, shown
from jmi.errors import InterventionError
from jmi.hooks.interventions import fit, payload
from jmi.hooks.selection import check_selectors, site_mask
from jmi.model.padding import named
from jmi.model.sites import PATTERN, SCORES, Site
from jmi.numerics import wide


@tree.dataclass
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
    queries: Any = dataclasses.field(default=None, kw_only=True)
    keys: Any = dataclasses.field(default=None, kw_only=True)
    heads: Any = dataclasses.field(default=None, kw_only=True)
    rows: Any = dataclasses.field(default=None, kw_only=True)
    edges: Any = dataclasses.field(default=None, kw_only=True)
    mask: Any = dataclasses.field(default=None, kw_only=True)

    def _selectors(self) -> dict[str, Any]:
        return {"rows": self.rows, "heads": self.heads, "queries": self.queries, "keys": self.keys}

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError at another site, or for edges that do not exist in ``shape``."""
        if site.point != self.acts_on:
            raise InterventionError(f"{site.point}: {type(self).__name__} acts on {self.acts_on}")
        check_selectors(self._selectors(), site, shape)
        if all(getattr(self, f) is None for f in ("queries", "keys", "heads", "rows", "edges", "mask")):
            raise InterventionError(f"{site.point}: name the edges: queries=, keys=, heads=, edges= or mask=")
        if self.mask is not None and as_array("mask", self.mask).dtype != bool:
            raise InterventionError(
                f"{site.point}: mask= must be booleans, True at chosen edges; got {shown(self.mask)}"
            )
        if self.edges is None:
            return
        edges = self.edges if isinstance(self.edges, jax.core.Tracer) else np.asarray(self.edges)
        if edges.ndim != 2 or edges.shape[1] != 2 or not jnp.issubdtype(edges.dtype, jnp.integer):
            raise InterventionError(
                f"{site.point}: edges= must be (query, key) pairs of integers, got {edges.dtype}{edges.shape}"
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
        mask = jnp.broadcast_to(mask, value.shape)
        if self.mask is None:
            return mask
        try:
            return mask & jnp.broadcast_to(jnp.asarray(self.mask), value.shape)
        except ValueError:
            raise InterventionError(
                f"{site.point}: mask= of shape {jnp.shape(self.mask)} does not broadcast to {value.shape}"
            ) from None


@tree.dataclass
class Knockout(Edges):
    """Cut attention edges: the chosen scores become -inf, so their attention is exactly zero.

    The site comes after any soft-cap and mask, so the cut holds there too. The softmax gives the
    lost weight to the other keys; a query with every key cut attends to nothing (a row of zeros).

    Example:
      >>> import jmi
      >>> hooks = {"blocks.8.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0)}
    """

    takes_padding: ClassVar[bool] = True
    acts_on: ClassVar[str] = SCORES

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Edges are cut, none is made."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return jnp.where(self.edge_mask(value, site), -jnp.inf, value)


@tree.dataclass
class ScaleAttention(Edges):
    """Multiply the chosen attention weights by ``factor``, and share what that frees or takes among all keys.

    It is ``log(factor)`` added to the scores: 1 changes nothing, 0 is `Knockout`, and a query that does not
    see the chosen keys stays as it is. What a row does not give to its keys, such as the share of a sink
    (gpt_oss), counts as one more key; a share below the rounding of the row's sum counts as none.

    Attributes:
      factor: finite and not negative, a number or broadcast against ``[batch, head, query, key]``. A traced
        one that is not gives NaN.
    """

    takes_padding: ClassVar[bool] = True
    acts_on: ClassVar[str] = PATTERN
    factor: Any = payload()

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for edges that do not exist, and for a factor that is none."""
        super().check(site, shape)
        _check_within(self.factor, "factor", 0, float(np.finfo(np.float32).max), site)

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """A weight of zero stays zero."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        weights = value.astype(wide(value.dtype))
        factor = fit(self.factor, weights, site)
        factor = jnp.where((factor >= 0) & (factor < jnp.inf), factor, jnp.nan)
        mask = self.edge_mask(value, site) & (value != 0)
        scaled, rest = jnp.where(mask, weights * factor, weights), _rest(value)
        before, after = (x.sum(-1, keepdims=True) + rest for x in (weights, scaled))
        # Without any weight left the query attends to nothing, as when every key is knocked out.
        return _where_chosen(scaled / jnp.where(after == 0, 1, after) * before, value, mask)


@tree.dataclass
class SetAttention(Edges):
    """Set the chosen attention weights to ``weight``; the other keys share what is left of 1.

    The others keep their proportions, and what a row does not give to its keys, such as the share of a sink
    (gpt_oss), is one of them, so that a row with a sink still sums to less than 1: it is as if the chosen
    scores were moved to where the softmax, sink and all, gives these weights. A row whose chosen weights
    pass 1, or that has no other key and no sink, is scaled to sum to 1.

    Later positions are never attended to, chosen or not. A key that a window or an earlier knockout hides is
    set like any other: its weight is zero, and zero weights may be set.

    Attributes:
      weight: 0 to 1, a number or broadcast against ``[batch, head, query, key]``. A traced one that is not
        gives NaN.
    """

    takes_padding: ClassVar[bool] = True
    acts_on: ClassVar[str] = PATTERN
    weight: Any = payload()

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for edges that do not exist, and for a weight that is none."""
        super().check(site, shape)
        _check_within(self.weight, "weight", 0, 1, site)

    def is_local(self, site: Site) -> bool:
        """Each query's row by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Later keys are never attended to."""
        return True

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        weights = value.astype(wide(value.dtype))
        given = fit(self.weight, weights, site)
        given = jnp.where((given >= 0) & (given <= 1), given, jnp.nan)
        mask = self.edge_mask(value, site) & np.tri(*value.shape[-2:], dtype=np.bool_)[None, None]
        chosen, others = jnp.where(mask, given, 0), jnp.where(mask, 0, weights)
        asked, total = chosen.sum(-1, keepdims=True), others.sum(-1, keepdims=True) + _rest(value)
        left = jnp.where(total > 0, jnp.maximum(1 - asked, 0), 0)
        whole = asked + left
        new = chosen + others / jnp.where(total > 0, total, 1) * left
        return _where_chosen(new / jnp.where(whole == 0, 1, whole), value, mask)


def _rest(pattern: jax.Array) -> jax.Array:
    """What each row gives to no key, ``[batch, head, query, 1]``: a sink's share, or what an edit took away.

    Where a row sums to one but for the rounding of its weights and of their sum, that is nothing.
    """
    dtype = wide(pattern.dtype)
    rest = 1 - pattern.astype(dtype).sum(-1, keepdims=True)
    each, sums = (float(jnp.finfo(x).eps) for x in (pattern.dtype, dtype))
    rounding = each + 2 * pattern.shape[-1] ** 0.5 * sums
    return jnp.where(rest > rounding, rest, 0)


def _where_chosen(new: jax.Array, old: jax.Array, mask: jax.Array) -> jax.Array:
    """``new`` in the rows with a chosen key, ``old`` to the bit in the others."""
    return jnp.where(mask.any(-1, keepdims=True), new.astype(old.dtype), old)


def _check_within(given: Any, name: str, low: float, high: float, site: Site) -> None:
    if isinstance(given, jax.core.Tracer):
        return
    values = np.asarray(given)
    real = np.issubdtype(values.dtype, np.integer) or jnp.issubdtype(values.dtype, jnp.floating)
    if not real or not ((values >= low) & (values <= high)).all():
        raise InterventionError(f"{site.point}: {name}={given!r}: must be from {low:g} to {high:g}")
