"""Attribution: what patching each node from another run would change, estimated from gradients.

A node is a value of a base run, such as what a head gives at a token; patching it puts the value of a
source run in its place. Attribution patching (Nanda 2023, neelnanda.io/attribution-patching; Syed et al.
2023, arXiv:2310.10348) estimates the change of a metric as ``(source - base) * gradient``, summed over the
node: three passes for all nodes at once. It is exact where the metric is linear in the node; norms,
softmax and activations are not. `jmi.interp.attribution.atp_star` mends its two commonest failures.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture
from jmi.captures.output import Output
from jmi.checks import whole_number
from jmi.engine.forward import precise
from jmi.hooks.interventions import Replace
from jmi.hooks.resolve import Hooks
from jmi.interp.attribution.nodes import NODES, Pair, checked_scores, pair_of
from jmi.metrics import Metric
from jmi.model.architecture import Architecture, Params
from jmi.programs import compiled

EMBED = "hook_embed"


def attribution_patching(
    arch: Architecture,
    params: Params,
    base: jax.Array,
    source: jax.Array,
    sites: str | Sequence[str],
    metric: Metric,
    *,
    keep: Sequence[str] = NODES,
    steps: int | None = None,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    logits_at: Any = None,
) -> Output:
    """Estimate for every node how patching it from ``source`` into ``base`` changes the metric.

    Args:
      base, source: int32 tokens ``[b, s]``, row by row a pair of prompts of one length.
      sites: names or patterns of the points whose nodes are scored, all in one backward pass.
      metric: of the base run (`jmi.metrics`); rows are scored each by itself. A plain function compiles
        anew for each new object.
      keep: axes that tell nodes apart; what a point has beyond them is summed. ``pos`` stands for
        ``query`` too and ``head`` for ``kv_head``; others are ``key``, ``d_mlp``, ``d_head``, ``expert``...
      steps: average the gradients over so many runs whose embeddings (``hook_embed``) lie on the
        straight line from base to source, at the midpoints of equal parts (EAP-IG's "inputs", Hanna et
        al. 2024, arXiv:2403.17806, there with right end points). None takes those of the base run.
      hooks: active in all runs; with `jmi.gradients.frozen` the estimate leaves out what
        goes through attention patterns or norm denominators.
      capture: what the metric reads besides logits.
      mask, positions, logits_at: of both prompts, as `jmi.forward`. A metric that needs the logits of one
        position only costs less with ``logits_at``: the unembedding is dear, and its gradient too.

    Returns:
      Scores in at least float32, addressed as captures are and with the kept axes only:
      ``scores["blocks.3.attn.hook_z"]`` is ``[b, s, heads]``. An entry that is -inf in either run (a masked
      attention score) counts as unchanged.

    Raises:
      HookError: an unknown site, or a derived one.
      ArgumentError: prompts of different shapes, ids that are no tokens, an unknown axis, no steps, or
        another kind of metric.
      ArgumentError: scores that are NaN; it says in which run that began. Within your own jit they stay NaN.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.attribution.attribution_patching import attribution_patching
      >>> lm = jmi_models.load("atlas")
      >>> base, source = (lm.encode(f"The capital of {c} is") for c in ("France", "Spain"))
      >>> paris = lambda out: out.logits[:, -1, lm.token_id("Paris")]
      >>> scores = attribution_patching(lm.arch, lm.params, base, source, "blocks.*.attn.hook_z", paris)
      >>> scores.stack("attn.hook_z").shape == (lm.arch.n_layers, *base.shape, lm.arch.n_heads)
      True
    """
    pair = pair_of(
        arch, params, base, source, sites, metric, keep, hooks, capture, mask, positions, logits_at
    )
    return checked_scores(pair, _patched(pair, _checked_steps(steps)))


def integrated_gradients(
    arch: Architecture,
    params: Params,
    base: jax.Array,
    source: jax.Array,
    sites: str | Sequence[str],
    metric: Metric,
    *,
    steps: int,
    keep: Sequence[str] = NODES,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    logits_at: Any = None,
) -> Output:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) from base to source values of nodes.

    All nodes of ``sites`` go together along the straight line between their values in the two runs, each
    replaced whatever arrives there, and a node's score is ``(source - base)`` times its gradient averaged
    along that line (midpoint rule). The scores of a row then sum to the change of the metric when all these
    nodes are patched at once, up to an error that falls with the square of ``steps``. Nodes behind
    other nodes are overwritten, so for the effect of one site give that site alone.

    Args:
      steps: runs along the line.

    Other arguments, returns, and errors as `attribution_patching`.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.attribution.attribution_patching import integrated_gradients
      >>> lm = jmi_models.load("atlas")
      >>> base, source = (lm.encode(f"The capital of {c} is") for c in ("France", "Spain"))
      >>> paris = lambda out: out.logits[:, -1, lm.token_id("Paris")]
      >>> site = "blocks.1.hook_resid_mid"
      >>> scores = integrated_gradients(lm.arch, lm.params, base, source, site, paris, steps=8)
      >>> scores[site].shape == base.shape
      True
    """
    pair = pair_of(
        arch, params, base, source, sites, metric, keep, hooks, capture, mask, positions, logits_at
    )
    return checked_scores(pair, _integrated(pair, whole_number("steps", steps)))


@compiled(static=1)
def _patched(pair: Pair, steps: int | None) -> Output:
    with precise():
        if steps is None:
            return pair.output(pair.scores(pair.values(pair.source)))
        here, there = (pair.values(tokens, EMBED) for tokens in (pair.base, pair.source))

        def on_the_way(at: jax.Array) -> dict[str, jax.Array]:
            moved = here[EMBED] + at.astype(here[EMBED].dtype) * (there[EMBED] - here[EMBED])
            return pair.scores(there, here, first={EMBED: Replace(moved)})

        return pair.output(_mean(on_the_way, steps, pair.alphas()))


@compiled(static=1)
def _integrated(pair: Pair, steps: int) -> Output:
    with precise():
        here, there = pair.values(pair.base), pair.values(pair.source)
        return pair.output(_mean(lambda at: pair.scores(there, here, at), steps, pair.alphas()))


def _checked_steps(steps: int | None) -> Any:
    return None if steps is None else whole_number("steps", steps)


def _mean(
    scores: Callable[[jax.Array], dict[str, jax.Array]], steps: int, zeros: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Mean of ``scores`` at the midpoints of ``steps`` equal parts of 0 to 1, one after another."""

    def add(total: dict[str, jax.Array], at: jax.Array) -> tuple[dict[str, jax.Array], None]:
        return jax.tree.map(jnp.add, total, scores(at)), None

    total, _ = jax.lax.scan(add, zeros, jnp.asarray((np.arange(steps) + 0.5) / steps))
    return jax.tree.map(lambda x: x / steps, total)
