"""AtP*: attribution patching without its two commonest failures (Kramár et al. 2024, arXiv:2403.00745).

Axis letters: b batch, q query, t key, h query heads, l layers scored, m metrics, n gradients: those of each
metric with what each layer adds dropped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.checks import flag
from jmi.engine.forward import precise
from jmi.engine.probe import Probe, follow, plan_points
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.hooks.freeze import Detach
from jmi.hooks.interventions import Patch, Replace
from jmi.hooks.layers import At, PerLayer
from jmi.interp.attribution.nodes import Pair, then
from jmi.interp.attribution.pairs import checked_scores, pair_of
from jmi.interp.into import Into
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import Metric
from jmi.model.sites import PATTERN, Site, layer_name, slots, table_of
from jmi.numerics import wide

QUERIES = ("blocks.*.hook_q_input", "blocks.*.attn.hook_q", "blocks.*.attn.hook_rot_q")
KEYS = ("blocks.*.hook_k_input", "blocks.*.attn.hook_k", "blocks.*.attn.hook_rot_k")
"""Points that act through the attention pattern alone."""

ADDED = ("blocks.*.hook_attn_out", "blocks.*.hook_mlp_out")
"""Points of what a layer adds to the residual stream."""

RESID_PRE = "blocks.*.hook_resid_pre"

_OPTIONS = ("keep", "hooks", "capture", "logits_at", "exact")


def atp_star(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str],
    *,
    metric: Metric | Mapping[str, Metric],
    into: Into = "corrupted",
    qk_fix: bool = True,
    grad_drop: bool = True,
    **options: Any,
) -> Any:
    """`jmi.interp.attribution_patching`, corrected where attention saturates and where effects cancel.

    Args:
      qk_fix: nodes among ``hook_q``, ``hook_rot_q``, ``hook_q_input`` and the same of keys act through
        the softmax alone, which saturates. The pattern of each layer, on its input in the base run, is
        computed with the node patched, and its change is multiplied with the gradient at the pattern.
        Costs a run for all queries and a run for each position of the keys, whatever the family's scores.
      grad_drop: a direct effect may cancel against one through later layers by chance. Scores are
        computed once for each layer with no gradient through what that layer adds to the residual
        stream, and the sum of their absolute values is divided by the number of layers less one (a
        node's own layer gives zero): so scores are never negative. Costs a backward pass for each layer,
        and with ``qk_fix`` the memory of that many gradients at the patterns.
      options: ``keep``, ``hooks``, ``capture``, ``logits_at`` and ``exact``.

    Options, other arguments and returns as `jmi.interp.attribution_patching`. A query or key is a whole
    vector, so its last axis is summed.

    Raises:
      ArgumentError: ``keep`` tells parts of a query or key apart, or gradients are to be dropped in a
        model of one layer; else as `jmi.interp.attribution_patching`.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.attribution.atp_star import atp_star
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = "The capital of France is", "The capital of Italy is"
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> nodes = ["blocks.*.attn.hook_q", "blocks.*.attn.hook_z"]
      >>> scores = atp_star(lm, clean, corrupted, nodes, metric=diff)
      >>> scores["blocks.0.attn.hook_q"].shape == (*lm.encode(clean).shape, lm.arch.n_heads)
      True
    """
    qk_fix, grad_drop = flag("qk_fix", qk_fix), flag("grad_drop", grad_drop)
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ArgumentError(f"{', '.join(unknown)}: no such argument; options are {', '.join(_OPTIONS)}")
    runs = 3 * check_lm(lm).arch.n_layers if grad_drop else 3
    pair, prompts = pair_of(lm, clean, corrupted, sites, metric=metric, into=into, passes=2 + runs, **options)
    fixed = [point for point in pair.points if qk_fix and point in (*QUERIES, *KEYS)]
    parts = pair.kept & {table_of(lm.arch)[point].axes[-1] for point in fixed}
    if parts:
        raise ArgumentError(f"keep: qk_fix patches whole queries and keys; it cannot keep {', '.join(parts)}")
    if grad_drop and lm.arch.n_layers < 2:
        raise ArgumentError("grad_drop=True: a model of one layer has no other layer to drop; turn it off")
    return checked_scores(pair, prompts, _corrected(pair, tuple(fixed), grad_drop))


@compiled(static=(1, 2))
def _corrected(pair: Pair, fixed: tuple[str, ...], grad_drop: bool) -> Any:
    with precise():
        there, n_layers = pair.values(pair.source), pair.lm.arch.n_layers
        rest = pair.only([point for point in pair.points if point not in fixed])
        attended = _Attended.of(pair.only(fixed)) if fixed else None

        def slopes(dropped: Any) -> Any:
            last = {} if dropped is None else {point: At(dropped, Detach()) for point in ADDED}
            return rest.scores(there, last=last), None if attended is None else attended.slopes(last)

        if grad_drop:
            scores, slope = jax.lax.map(slopes, jnp.arange(n_layers, dtype=jnp.int32))
        else:
            scores, slope = jax.tree.map(lambda x: x[None], slopes(None))
        if attended is not None:
            scores |= {point: attended.scores(pair.only([point]), there[point], slope) for point in fixed}
        if grad_drop:
            return pair.output({point: jnp.abs(x).sum(0) / (n_layers - 1) for point, x in scores.items()})
        return pair.output({point: x[0] for point, x in scores.items()})


@dataclasses.dataclass(frozen=True)
class _Attended:
    """Patterns of the base run, and how to compute them anew with queries or keys patched.

    Attributes:
      pair: with the nodes that are queries or keys.
      layers: those with such a node.
      held: hooks under which every layer reads its input of the base run.
      before: patterns ``[l, b, h, q, t]`` of the base run.
    """

    pair: Pair
    layers: tuple[int, ...]
    held: dict[str, Any]
    before: jax.Array

    @classmethod
    def of(cls, pair: Pair) -> "_Attended":
        layers = tuple(sorted({layer for some in pair.layout.layers for layer in some or ()}))
        out = pair.run(pair.base, pair.hooks, [RESID_PRE, *_patterns(layers)])
        held = At(np.ones(pair.lm.arch.n_layers, bool), PerLayer(Replace(out[RESID_PRE])))
        return cls(pair, layers, then(pair.hooks, {RESID_PRE: held}), out[PATTERN])

    def slopes(self, last: dict[str, Any]) -> jax.Array:
        """Gradients ``[m, l, b, h, q, t]`` of the metrics at the patterns."""
        arch, shape, before = self.pair.lm.arch, self.pair.base.shape, then(self.pair.hooks, last)
        layout = plan_points(arch, _patterns(self.layers), shape)
        zeros = jnp.zeros(self.before.shape, self.before.dtype)
        return self.pair.gradients(lambda zeros: follow(arch, before, shape, layout, [Probe(zeros)]), zeros)

    def scores(self, pair: Pair, source: jax.Array, slopes: jax.Array) -> jax.Array:
        """Scores ``[..., l, b, s, h, 1]`` of one point by each of ``slopes`` ``[..., l, b, h, q, t]``."""
        (point,), (layers,) = pair.points, pair.layout.layers
        several = slopes.shape[:-5]
        slopes = jnp.moveaxis(slopes.reshape(-1, *slopes.shape[-5:]), 1, 0)
        rows = slots(self.layers, pair.lm.arch.n_layers)
        effect = PerLayer(_Effect(self.before, slopes, point in QUERIES), rows)
        seen = [Capture(name, reduce=effect) for name in _patterns(layers or ())]

        def patched(places: Any) -> jax.Array:
            patch = Patch(source, positions=_in_layers(places, source.shape[0]))
            hooks = follow(pair.lm.arch, self.held, pair.base.shape, pair.layout, [patch])
            return pair.run(pair.base, hooks, seen)[PATTERN]

        if point in QUERIES:  # Queries do not touch each other: one run patches them all.
            scores = jnp.einsum("lnbhq->nlbqh", patched(None))
        else:
            # Places, not tokens: scores keep the padded axis.
            every = jnp.eye(pair.base.shape[1], dtype=bool)
            scores = jnp.einsum("tlnbh->nlbth", jax.lax.map(patched, every))
            scores = scores.reshape(*scores.shape[:4], source.shape[3], -1).sum(-1)
        axes = table_of(pair.lm.arch)[point].axes[:3]
        summed = [i + 2 for i, axis in enumerate(axes) if axis not in pair.kept]
        scores = scores.sum(summed, keepdims=True)[..., None]
        return scores.reshape(*several, *scores.shape[1:])


@tree.dataclass
class _Effect:
    """Reducer of a pattern: what its change does, by each gradient: ``[n, b, h, q]``, or ``[n, b, h]``.

    Attributes:
      before: the pattern of the base run, ``[b, h, q, t]``.
      slopes: gradients there, ``[n, b, h, q, t]``.
      by_query: whether queries are told apart.
    """

    before: Any
    slopes: Any
    by_query: bool = tree.static()

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        dtype = wide(value.dtype)
        change = value.astype(dtype) - self.before.astype(dtype)
        out = "nbhq" if self.by_query else "nbh"
        return jnp.einsum(f"bhqt,nbhqt->{out}", change, self.slopes.astype(dtype))


def _in_layers(places: Any, n_layers: int) -> Any:
    """A mask of places as that of each layer; None stays."""
    return None if places is None else jnp.broadcast_to(places, (n_layers, *places.shape))


def _patterns(layers: Sequence[int]) -> list[str]:
    return [layer_name(PATTERN, layer) for layer in layers]
