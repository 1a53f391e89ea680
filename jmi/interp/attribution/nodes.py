"""Nodes that differ between two runs, and the gradient of a metric along what they differ by.

At each point ``alpha * (source - base)`` is added with an ``alpha`` of zeros that has one entry per node;
the gradient with respect to it is ``(source - base) * gradient`` summed over each node. The sum is so taken
inside the backward pass: no gradient of a point's full width is stored, only the values of the source are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jmi import tree
from jmi.captures.capture import Capture, Plan, as_list, plan
from jmi.captures.output import Output, wrap
from jmi.checks import as_function, check_model, choice, several
from jmi.engine.forward import forward
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.gradients import checked, follow, nudge, plan_points
from jmi.hooks.resolve import Hooks, as_data, prepare
from jmi.interp.attribution.finite import check_scores
from jmi.metrics import Metric, check_metric
from jmi.model.architecture import Architecture, Params
from jmi.model.inputs import as_tokens, check_arrays, check_logits_at, check_tokens
from jmi.model.sites import AXES, Site, layer_name, split, table_of
from jmi.numerics import wide

Values = Mapping[str, jax.Array]
"""Arrays by point, those inside the blocks with one row for each layer."""

NODES = ("batch", "pos", "head")
"""Axes that tell nodes apart unless ``keep`` says otherwise."""

_MEANS = {"pos": ("pos", "query"), "head": ("head", "kv_head")}


@tree.dataclass
class Node:
    """Moves a value ``alpha`` of the way from base to source; ``alpha`` is zero, its gradient the score.

    Attributes:
      alpha: the shape of the value with one entry where nodes are not told apart.
      source: value in the source run.
      base: value in the base run; None for the one that arrives.
      at: put the value at this part of the way in place of the one that arrives.
    """

    alpha: Any
    source: Any
    base: Any = None
    at: Any = None

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        base = value if self.base is None else self.base
        # Masked scores count as unchanged; what is NaN stays NaN.
        masked = (self.source == -jnp.inf) | (base == -jnp.inf)
        change = jnp.where(masked, 0, self.source) - jnp.where(masked, 0, base)
        if self.at is not None:
            value = base + self.at.astype(value.dtype) * change
        # Where alpha is zero, alpha * change varies with alpha alone.
        moved = self.alpha * jax.lax.stop_gradient(change).astype(self.alpha.dtype)
        return nudge(value, moved.astype(value.dtype))


@tree.dataclass
class Pair:
    """A base and a source prompt with the nodes to score between them; a pytree.

    Attributes:
      params, base, source, metric, mask, positions, logits_at: as in `attribution_patching`.
      hooks: prepared.
      reducers: of what the metric reads besides logits.
      arch: static, as all that follows.
      names: of every point and layer with nodes.
      kept: axes that tell nodes apart.
      seen: name, when and label of what the metric reads.
      structure: hash that tells classes of hooks, reducers and metrics apart (`jmi.tree`).
    """

    params: Params
    base: jax.Array
    source: jax.Array
    metric: Metric
    hooks: dict[str, Any]
    reducers: list[Any]
    mask: Any
    positions: Any
    logits_at: Any
    arch: Architecture = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    kept: frozenset[str] = struct.field(pytree_node=False)
    seen: tuple[Any, ...] = struct.field(pytree_node=False)
    structure: int = struct.field(pytree_node=False)

    @property
    def layout(self) -> Plan:
        """The nodes by point; of a part of a pair there may be none."""
        batch, pos = self.base.shape
        return plan(self.arch, self.names, (batch, pos))

    @property
    def points(self) -> list[str]:
        """Points with nodes."""
        return [group.point for group in self.layout.groups]

    def only(self, points: Sequence[str]) -> "Pair":
        """The same pair with the nodes of some points."""
        return dataclasses.replace(self, names=tuple(n for n in self.names if split(n)[0] in points))

    @property
    def capture(self) -> list[Capture]:
        """What the metric reads besides logits."""
        return [
            Capture(name, when, reduce, label)
            for (name, when, label), reduce in zip(self.seen, self.reducers, strict=True)
        ]

    def run(self, tokens: jax.Array, hooks: Hooks, capture: Sequence[str | Capture]) -> Output:
        """A run of ``tokens``."""
        same = {"mask": self.mask, "positions": self.positions, "logits_at": self.logits_at}
        return forward(self.arch, self.params, tokens, hooks=hooks, capture=capture, **same)

    def values(self, tokens: jax.Array, *more: str) -> dict[str, jax.Array]:
        """By point, what flows onward from the nodes, and from the points ``more``."""
        return self.run(tokens, self.hooks, [*self.names, *more]).captures

    def alphas(self) -> dict[str, jax.Array]:
        """By point, zeros with one entry for each node and the rank of the values there."""
        zeros, dtype = {}, wide(jax.tree.leaves(self.params)[0].dtype)
        for group in self.layout.groups:
            site = table_of(self.arch)[group.point]
            sizes = zip(site.axes, site.shape(*self.base.shape), strict=True)
            rows = () if group.count is None else (group.count,)
            shape = (*rows, *(size if axis in self.kept else 1 for axis, size in sizes))
            zeros[group.point] = jnp.zeros(shape, dtype)
        return vary_like(zeros, (self.params, self.base, self.source, self.hooks, self.mask, self.positions))

    def scores(
        self,
        source: Values,
        base: Values | None = None,
        at: Any = None,
        *,
        first: Mapping[str, Any] | None = None,
        last: Mapping[str, Any] | None = None,
    ) -> dict[str, jax.Array]:
        """By point, the gradient of the metric with respect to the ``alpha`` of its nodes.

        Args:
          source, base, at: as in `Node`; values by point.
          first, last: by point, one more intervention before and after those of the nodes.
        """

        def total(alphas: dict[str, jax.Array]) -> jax.Array:
            here = dict.fromkeys(self.points) if base is None else base
            nodes = [Node(alphas[p], source[p], here[p], at) for p in self.points]
            before = then(self.hooks, first or {})
            with_nodes = follow(self.arch, before, self.base.shape, self.layout, nodes)
            out = self.run(self.base, then(with_nodes, last or {}), self.capture)
            return checked(self.metric(out), self.base.shape[0]).sum()

        return jax.grad(total)(self.alphas())

    def output(self, scores: Values) -> Output:
        """Scores without the axes that are not kept, addressed by name."""
        layout, squeezed, groups = self.layout, [], []
        for group in layout.groups:
            axes = table_of(self.arch)[group.point].axes
            summed = [i - len(axes) for i, axis in enumerate(axes) if axis not in self.kept]
            squeezed.append(jnp.squeeze(scores[group.point], summed))
            left = [axis for axis in axes if axis in self.kept]
            place = next((left.index(axis) for axis in _MEANS["pos"] if axis in left), None)
            groups.append(dataclasses.replace(group, axis=place if "batch" in left else None))
        layout = dataclasses.replace(layout, groups=tuple(groups))
        return wrap(layout, self.arch.n_layers, None, tuple(squeezed), None, self.mask)


def pair_of(
    arch: Architecture,
    params: Params,
    base: Any,
    source: Any,
    sites: str | Sequence[str],
    metric: Metric,
    keep: Sequence[str],
    hooks: Hooks | None,
    capture: Sequence[str | Capture],
    mask: Any,
    positions: Any,
    logits_at: Any,
) -> Pair:
    """The arguments of an attribution, checked."""
    check_model(arch, params)
    base, source = as_tokens(base, "base"), as_tokens(source, "source")
    for tokens in (base, source):
        # Before they are int32: of a larger number only the last bits would be left.
        check_arrays(tokens, mask if tokens.shape == base.shape else None, None)
        check_tokens(arch, tokens)
    check_metric(arch, as_function("metric", metric))
    base, source = jnp.asarray(base), jnp.asarray(source)
    if base.shape != source.shape or base.ndim != 2:
        raise ArgumentError(
            f"base and source must be tokens [batch, pos] of one shape; got {base.shape} and {source.shape}"
        )
    check_tokens(arch, base)
    known = {axis for axes in AXES.values() for axis in axes}
    keep = [choice("keep", axis, sorted(known)) for axis in several("keep", keep, "axes")]
    kept = frozenset(axis for name in keep for axis in _MEANS.get(name, (name,)))
    layout, prepared = plan_points(arch, sites, base.shape), prepare(arch, hooks, base.shape, mask)
    names = [
        group.point if layers is None else layer_name(group.point, layer)
        for group, layers in zip(layout.groups, layout.layers, strict=True)
        for layer in ((0,) if layers is None else layers)
    ]
    seen = [Capture(c) if isinstance(c, str) else c for c in as_list(capture)]
    read = plan(arch, seen, base.shape, mask)
    if logits_at is not None:
        points = [group.point for group in (*layout.groups, *read.groups)]
        logits_at = check_logits_at(arch, logits_at, base.shape, [*points, *prepared], mask)
    reducers, metric = [as_data(c.reduce) for c in seen], as_data(metric)
    return Pair(
        params,
        base,
        source,
        metric,
        prepared,
        reducers,
        None if mask is None else jnp.asarray(mask),
        None if positions is None else jnp.asarray(positions),
        logits_at,
        arch,
        tuple(names),
        kept,
        tuple((c.name, c.when, c.label) for c in seen),
        hash(jax.tree.structure((prepared, reducers, metric))),
    )


def checked_scores(pair: Pair, scores: Output) -> Output:
    """``scores`` as they are; ArgumentError where one is NaN, see `jmi.interp.attribution.finite`."""
    base = lambda: pair.run(pair.base, pair.hooks, pair.capture)  # noqa: E731
    source = lambda: pair.run(pair.source, pair.hooks, pair.capture)  # noqa: E731
    check_scores(scores.captures, {"base": base, "source": source}, pair.metric)
    return scores


def then(hooks: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Prepared ``hooks`` with one more intervention at the end of some points."""
    return {**hooks, **{point: (*hooks.get(point, ()), hook) for point, hook in more.items()}}
