"""Nodes that differ between two runs, and the gradient of metrics along what they differ by.

At each point ``alpha * (source - base)`` is added with an ``alpha`` of zeros that has one entry per node;
the gradient with respect to it is ``(source - base) * gradient`` summed over each node. The sum is so taken
inside the backward pass: no gradient of a point's full width is stored, only the values of the source are.

Axis letters: m metrics; the gradients of each are pulled back through one run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.capture import Capture, Plan, plan
from jmi.captures.output import Output, wrap
from jmi.checks import shown
from jmi.engine.forward import forward
from jmi.engine.probe import follow, nudge
from jmi.engine.varying import vary_like
from jmi.errors import ArgumentError
from jmi.gradients import real
from jmi.hooks.resolve import Hooks
from jmi.interp.attribution.scores import NodeScores
from jmi.interp.into import Into
from jmi.lm import LanguageModel
from jmi.metrics import Metric
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, split, table_of
from jmi.numerics import wide

Values = Mapping[str, jax.Array]
"""Arrays by point, those inside the blocks with one row for each layer."""


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
    """Two prompts with the nodes to score between them; a pytree.

    Attributes:
      lm: weights and architecture alone.
      base: prompts of the run that is changed.
      source: those of the run whose values are put there, padded alike.
      metric: one, or a dict of them.
      hooks: prepared.
      reducers: of what metrics read besides logits.
      logits_at: as in `attribution_patching`.
      into: which of the two the base is. Static, as all that follows.
      names: of every point and layer with nodes.
      kept: axes that tell nodes apart.
      seen: name, when and label of what metrics read.
      classes: of hooks, reducers and metrics, which JAX does not tell apart (`jmi.tree`).
    """

    lm: LanguageModel
    base: Prompts
    source: Prompts
    metric: Metric | dict[str, Metric]
    hooks: dict[str, Any]
    reducers: list[Any]
    logits_at: Any
    into: Into = tree.static()
    names: tuple[str, ...] = tree.static()
    kept: frozenset[str] = tree.static()
    seen: tuple[Any, ...] = tree.static()
    classes: tuple[type, ...] = tree.static()

    @property
    def layout(self) -> Plan:
        """The nodes by point; of a part of a pair there may be none."""
        return plan(self.lm.arch, self.names, self.base.shape)

    @property
    def points(self) -> list[str]:
        """Points with nodes."""
        return [group.point for group in self.layout.groups]

    def only(self, points: Sequence[str]) -> "Pair":
        """The same pair with the nodes of some points."""
        return dataclasses.replace(self, names=tuple(n for n in self.names if split(n)[0] in points))

    @property
    def metrics(self) -> list[Metric]:
        """One or more metrics."""
        return list(self.metric.values()) if isinstance(self.metric, dict) else [self.metric]

    def run(self, prompts: Prompts, hooks: Hooks, capture: Sequence[str | Capture]) -> Output:
        """A run of one of the two prompts."""
        lm = self.lm
        return forward(lm.arch, lm.params, prompts, hooks, capture, logits_at=self.logits_at)

    def measured(self, prompts: Prompts, hooks: Hooks) -> Output:
        """A run with all that metrics read."""
        seen = zip(self.seen, self.reducers, strict=True)
        return self.run(prompts, hooks, [Capture(name, when, r, label) for (name, when, label), r in seen])

    def values(self, prompts: Prompts, *more: str) -> dict[str, jax.Array]:
        """By point, what flows onward from the nodes, and from the points ``more``."""
        return self.run(prompts, self.hooks, [*self.names, *more]).captures

    def gradients(self, hooks: Callable[[Any], Hooks], zeros: Any) -> Any:
        """Gradients ``[m, ...]`` of the metrics of the base run, under ``hooks(zeros)``, at ``zeros``."""

        def totals(zeros: Any) -> list[jax.Array]:
            out = self.measured(self.base, hooks(zeros))
            return [_number(metric(out), self.base.shape[0]).sum() for metric in self.metrics]

        values, back = jax.vjp(totals, self.varying(zeros))
        each = [jnp.eye(len(values), dtype=value.dtype)[i] for i, value in enumerate(values)]
        return jax.lax.map(lambda one: back(one)[0], self.varying(each))

    def varying(self, arrays: Any) -> Any:
        """``arrays`` as what differs between devices where the pair does, inside shard_map."""
        return vary_like(arrays, (self.lm, self.base, self.source, self.hooks))

    def alphas(self) -> dict[str, jax.Array]:
        """By point, zeros with one entry for each node and the rank of the values there."""
        zeros, dtype = {}, wide(self.lm.dtype)
        for group in self.layout.groups:
            site = table_of(self.lm.arch)[group.point]
            sizes = zip(site.axes, site.shape(*self.base.shape), strict=True)
            rows = () if group.count is None else (group.count,)
            shape = (*rows, *(size if axis in self.kept else 1 for axis, size in sizes))
            zeros[group.point] = jnp.zeros(shape, dtype)
        return zeros

    def nothing(self) -> dict[str, jax.Array]:
        """Scores ``[m, ...]`` of zero."""
        n = len(self.metrics)
        return self.varying({p: jnp.zeros((n, *x.shape), x.dtype) for p, x in self.alphas().items()})

    def scores(
        self,
        source: Values,
        base: Values | None = None,
        at: Any = None,
        *,
        first: Mapping[str, Any] | None = None,
        last: Mapping[str, Any] | None = None,
    ) -> dict[str, jax.Array]:
        """By point, the gradients ``[m, ...]`` with respect to the ``alpha`` of its nodes.

        Args:
          source, base, at: as in `Node`; values by point.
          first, last: by point, one more intervention before and after those of the nodes.
        """
        here = dict.fromkeys(self.points) if base is None else base

        def hooks(alphas: dict[str, jax.Array]) -> Hooks:
            nodes = [Node(alphas[p], source[p], here[p], at) for p in self.points]
            before = then(self.hooks, first or {})
            with_nodes = follow(self.lm.arch, before, self.base.shape, self.layout, nodes)
            return then(with_nodes, last or {})

        return self.gradients(hooks, self.alphas())

    def output(self, scores: Values) -> NodeScores | dict[str, NodeScores]:
        """Scores ``[m, ...]`` without the axes that are not kept, addressed by name, for each metric."""
        each = [self._of_one({point: x[i] for point, x in scores.items()}) for i in range(len(self.metrics))]
        return dict(zip(self.metric, each, strict=True)) if isinstance(self.metric, dict) else each[0]

    def _of_one(self, scores: Values) -> NodeScores:
        layout, squeezed, groups, named = self.layout, [], [], []
        for group in layout.groups:
            axes = table_of(self.lm.arch)[group.point].axes
            summed = [i - len(axes) for i, axis in enumerate(axes) if axis not in self.kept]
            squeezed.append(jnp.squeeze(scores[group.point], summed))
            left = [axis for axis in axes if axis in self.kept]
            place = next((left.index(axis) for axis in ("pos", "query") if axis in left), None)
            named.append((group.label, tuple(left)))
            groups.append(dataclasses.replace(group, axis=place if "batch" in left else None))
        layout = dataclasses.replace(layout, groups=tuple(groups))
        out = wrap(layout, self.lm.arch.n_layers, None, squeezed, mask=self.base.mask)
        return NodeScores(
            out.logits,
            out.captures,
            mask=out.mask,
            kept=out.kept,
            n_layers=out.n_layers,
            into=self.into,
            axes=tuple(named),
        )


def _number(value: Any, batch: int) -> jax.Array:
    """What one metric returned, found to be a number or one per row."""
    if not jax.tree_util.all_leaves([value]):
        raise ArgumentError(
            f"the metric returned {shown(value)}: give one number per row, and several metrics as a dict "
            "of them, {'diff': ..., 'prob': ...}: they share the runs"
        )
    return real(value, batch)


def then(hooks: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Prepared ``hooks`` with one more intervention at the end of some points."""
    return {**hooks, **{point: (*hooks.get(point, ()), hook) for point, hook in more.items()}}
