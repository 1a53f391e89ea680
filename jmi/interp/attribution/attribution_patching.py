"""Attribution: what patching each node from another run would change, estimated from gradients.

A node is a value of a base run, such as what a head gives at a token; patching it puts the value of a
source run in its place. Attribution patching (Nanda 2023, neelnanda.io/attribution-patching; Syed et al.
2023, arXiv:2310.10348) estimates the change of a metric as ``(source - base) * gradient``, summed over the
node: three passes for all nodes at once. It is exact where the metric is linear in the node; norms,
softmax and activations are not. `jmi.interp.attribution.atp_star` avoids its two commonest failures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Capture
from jmi.checks import whole_number
from jmi.engine.forward import precise
from jmi.engine.programs import compiled
from jmi.hooks.interventions import Replace
from jmi.hooks.resolve import Hooks
from jmi.interp.attribution.nodes import Pair
from jmi.interp.attribution.pairs import NODES, checked_scores, pair_of
from jmi.interp.into import Into
from jmi.lm import LanguageModel
from jmi.metrics import Metric
from jmi.model.sites import table_of

EMBEDS = ("hook_embed", "hook_pos_embed")
"""What a prompt is to the layers, where a model has it."""


def attribution_patching(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str],
    *,
    metric: Metric | Mapping[str, Metric],
    into: Into = "corrupted",
    keep: Sequence[str] = NODES,
    steps: int | None = None,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    exact: bool = False,
) -> Any:
    """Estimate for every node how patching it from one run into another changes a metric.

    Args:
      clean, corrupted: as `LanguageModel.prompts` takes them; row by row a pair of prompts of one length,
        whichever side each is padded on.
      sites: names or patterns of the points whose nodes are scored, all in one backward pass.
      metric: of the run that is changed (`jmi.metrics`), or a dict of metrics, which share the runs; rows are
        scored each by itself. A plain function compiles anew for each new object.
      into: the run that is changed, the base; the other is the source. "corrupted" puts clean values into
        the corrupted run (denoising: what suffices to restore the metric?), "clean" corrupted values into
        the clean one (noising: what is needed for it?).
      keep: axes that tell nodes apart; what a point has beyond them is summed. ``pos`` stands for
        ``query`` too and ``head`` for ``kv_head``; others are ``key``, ``d_mlp``, ``d_head``, ``expert``...
      steps: average the gradients over so many runs whose embeddings lie on the straight line from base to
        source, at the midpoints of equal parts (EAP-IG's "inputs", Hanna et al. 2024, arXiv:2403.17806,
        there with right end points). None takes those of the base run.
      hooks: active in all runs; with `jmi.frozen` the estimate leaves out what goes through attention
        patterns or norm denominators.
      capture: what the metric reads besides logits.
      logits_at: of both runs, as `jmi.forward`. A metric that needs the logits of one position only costs
        less with it: the unembedding costs much, and so does its gradient.
      exact: as in `jmi.sweep`.

    Returns:
      `NodeScores` in at least float32, addressed as captures are and with the kept axes only:
      ``scores["blocks.3.attn.hook_z"]`` is ``[b, s, heads]``, on the padded axis of the base. A dict of
      metrics gives a dict of them. An entry that is -inf in either run (a masked attention score) counts as
      unchanged.

    Raises:
      HookError: an unknown site, or a derived one.
      ArgumentError: prompts that do not line up token by token, ids that are no tokens, an unknown axis, no
        steps, or another kind of metric.
      ArgumentError: scores that are NaN; it says in which run that began. Within your own jit they stay NaN.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.attribution.attribution_patching import attribution_patching
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = "The capital of France is", "The capital of Italy is"
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> scores = attribution_patching(lm, clean, corrupted, "blocks.*.attn.hook_z", metric=diff)
      >>> heads = scores.stack("attn.hook_z")
      >>> heads.shape == (lm.arch.n_layers, *lm.encode(clean).shape, lm.arch.n_heads)
      True
    """
    steps = None if steps is None else whole_number("steps", steps)
    pair, prompts = pair_of(
        lm,
        clean,
        corrupted,
        sites,
        metric=metric,
        into=into,
        keep=keep,
        hooks=hooks,
        capture=capture,
        logits_at=logits_at,
        exact=exact,
        passes=2 + 3 * (steps or 1),
    )
    return checked_scores(pair, prompts, _patched(pair, steps))


def integrated_gradients(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str],
    *,
    metric: Metric | Mapping[str, Metric],
    steps: int,
    into: Into = "corrupted",
    keep: Sequence[str] = NODES,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    exact: bool = False,
) -> Any:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) from base to source values of nodes.

    All nodes of ``sites`` go together along the straight line between their values in the two runs, each
    replaced whatever arrives there, and a node's score is ``(source - base)`` times its gradient averaged
    along that line (midpoint rule). The scores of a row then sum to the change of the metric when all these
    nodes are patched at once, up to an error that falls with the square of ``steps``. Nodes after other
    nodes are overwritten, so for the effect of one site give that site alone.

    Args:
      steps: runs along the line.

    Other arguments, returns, and errors as `attribution_patching`.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.attribution.attribution_patching import integrated_gradients
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = "The capital of France is", "The capital of Italy is"
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> site = "blocks.1.hook_resid_mid"
      >>> scores = integrated_gradients(lm, clean, corrupted, site, metric=diff, steps=8)
      >>> scores[site].shape == lm.encode(clean).shape
      True
    """
    steps = whole_number("steps", steps)
    pair, prompts = pair_of(
        lm,
        clean,
        corrupted,
        sites,
        metric=metric,
        into=into,
        keep=keep,
        hooks=hooks,
        capture=capture,
        logits_at=logits_at,
        exact=exact,
        passes=2 + 3 * steps,
    )
    return checked_scores(pair, prompts, _integrated(pair, steps))


@compiled(static=1)
def _patched(pair: Pair, steps: int | None) -> Any:
    with precise():
        if steps is None:
            return pair.output(pair.scores(pair.values(pair.source)))
        embeds = [point for point in EMBEDS if point in table_of(pair.lm.arch)] or EMBEDS[:1]
        here, there = (pair.values(prompts, *embeds) for prompts in (pair.base, pair.source))

        def on_the_way(at: jax.Array) -> dict[str, jax.Array]:
            moved = {p: here[p] + at.astype(here[p].dtype) * (there[p] - here[p]) for p in embeds}
            return pair.scores(there, here, first={p: Replace(x) for p, x in moved.items()})

        return pair.output(_mean(on_the_way, steps, pair.nothing()))


@compiled(static=1)
def _integrated(pair: Pair, steps: int) -> Any:
    with precise():
        here, there = pair.values(pair.base), pair.values(pair.source)
        return pair.output(_mean(lambda at: pair.scores(there, here, at), steps, pair.nothing()))


def _mean(
    scores: Callable[[jax.Array], dict[str, jax.Array]], steps: int, zeros: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Mean of ``scores`` at the midpoints of ``steps`` equal parts of 0 to 1, one after another."""

    def add(total: dict[str, jax.Array], at: jax.Array) -> tuple[dict[str, jax.Array], None]:
        return jax.tree.map(jnp.add, total, scores(at)), None

    total, _ = jax.lax.scan(add, zeros, jnp.asarray((np.arange(steps) + 0.5) / steps))
    return jax.tree.map(lambda x: x / steps, total)
