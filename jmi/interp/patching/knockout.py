"""Knockout: keep tokens from being seen in some layers, and see what the model then predicts.

In a transformer edges of attention are cut, as in Geva et al. 2023 (arXiv:2304.14767): their scores become
-inf. A recurrent model has no edges: a token is not written into the state, so no later one can read it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmi import metrics
from jmi.artefacts import describe_hooks
from jmi.captures.output import Output
from jmi.checks import as_array, whole_number
from jmi.errors import ArgumentError, HookError
from jmi.hooks.attention import Knockout
from jmi.hooks.interventions import Zero
from jmi.hooks.layers import At
from jmi.hooks.resolve import prepare
from jmi.interp.patching.measure import prompts_of
from jmi.interp.results import Result, array
from jmi.lm import LanguageModel, check_lm, check_logits
from jmi.model.inputs import Prompts
from jmi.model.sites import PATTERN, SCORES, layer_name, table_of
from jmi.numerics import wide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITE, EFFECTIVE = "blocks.*.rwkv.hook_write", "blocks.*.rwkv.hook_effective_attn"


@dataclasses.dataclass(frozen=True)
class KnockoutResult(Result):
    """What cutting the edges did to the next-token prediction. All arrays are numpy.

    Attributes:
      tokens: int32 ``[s]``.
      layers: where the edges were cut.
      hooks: the intervention, as it can be given to ``lm.run``.
      target: token id whose logit is followed.
      baseline_logits, ablated_logits: ``[vocab]`` at the last token.
      kl: KL(baseline || ablated) of the next-token distribution, in nats.
      target_logit_drop: logit of the target before minus after; positive when the edges supported it.
      target_probs: probability of the target before and after.
      top: tokens whose probability changed most, with both probabilities, ``[k]`` each; the likeliest
        ones when nothing changed.
      changed: whether any log-probability changed by more than rounding.
      attention: pattern ``[layers, heads, s, s]`` of the cut layers in the baseline; of a recurrent
        model the effective one.
      cut: bool ``[heads, s, s]``, the edges that were cut.
      seconds: ``compile``, ``baseline``, ``ablated``; runs are timed after compiling.
    """

    tokens: np.ndarray
    layers: tuple[int, ...]
    hooks: Mapping[str, Any]
    target: int
    baseline_logits: np.ndarray
    ablated_logits: np.ndarray
    kl: float
    target_logit_drop: float
    target_probs: tuple[float, float]
    top: metrics.Changes
    changed: bool
    attention: np.ndarray
    cut: np.ndarray
    seconds: Mapping[str, float]

    def _held(self) -> dict[str, Any]:
        before, after = self.target_probs
        return {
            "tokens": self.tokens,
            "hooks": describe_hooks(self.hooks),
            "target": self.target,
            "target_logit_drop": self.target_logit_drop,
            "target_probs": {"baseline": before, "ablated": after},
            "kl": self.kl,
            "changed": self.changed,
            "top": self.top._asdict(),
            "labels": {"layer": self.layers},
            "attention": array(["layer", "head", "query", "key"], self.attention),
            "cut": array(["head", "query", "key"], self.cut),
            "baseline_logits": array(["vocab"], self.baseline_logits),
            "ablated_logits": array(["vocab"], self.ablated_logits),
            "seconds": dict(self.seconds),
        }

    def plot(self, lm: LanguageModel | None = None, title: str = "") -> "Figure":
        """The attention that was cut, and the tokens that changed; as strings where ``lm`` is given."""
        from jmi.plots.knockout import plot_knockout

        name: Callable[[int], str] = str if lm is None else lm.token_string
        tokens, words = ([name(int(i)) for i in ids] for ids in (self.tokens, self.top.tokens))
        return plot_knockout(self, tokens, words, title)

    def __repr__(self) -> str:
        before, after = self.target_probs
        return (
            f"KnockoutResult({self.cut.sum()} edges of a layer cut, layers {list(self.layers)}, "
            f"target {self.target}: {before:.4g} -> {after:.4g}, KL {self.kl:.4g} nats)"
        )


def knockout(
    lm: LanguageModel,
    prompt: Any,
    *,
    layer: int | Sequence[int] | None = None,
    queries: Any = -1,
    keys: Any = -2,
    heads: Any = None,
    target: str | int | None = None,
    top: int = 10,
) -> KnockoutResult:
    """Cut attention from ``queries`` to ``keys`` and compare the next-token prediction.

    By default the last token no longer sees the one before it, in every layer and head. In a recurrent
    model ``keys`` are not written into the state and so hidden from every later token; ``queries`` are
    left at their default.

    Args:
      prompt: one prompt, as `LanguageModel.prompts` takes it; its padding is left out.
      layer: one or several layers, None for all that have attention.
      queries: positions that look; negative counts from the end; None means every one.
      keys: positions looked at, likewise.
      heads: heads to cut, None for all.
      target: a word that is one token, or a token id; by default the model's own prediction.
      top: how many changed tokens to list.

    Raises:
      ArgumentError: not one prompt, an empty or too long one, a cut that no query could have used, or a model
        that gives NaN.
      HookError, InterventionError, TokenizerError: a layer, position, head or word that is not there.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.patching.knockout import knockout
      >>> lm = jmi_models.load("atlas")
      >>> result = knockout(lm, "The capital of France is")
      >>> result.kl > 1
      True
    """
    check_lm(lm)
    prompts = _one_row(prompts_of(lm, prompt))  # checked before anything as large as its square is made
    top = whole_number("top", top)
    goal = lm.token_id(target) if isinstance(target, str) else target
    goal = None if goal is None else whole_number("target", goal, 0)
    means = _means(lm, Knockout(queries=queries, keys=keys, heads=heads))
    layers = table_of(lm.arch)[means.point].layers if layer is None else layer
    if np.size(as_array("layer", layers)) == 0:
        raise ArgumentError("layer=[]: name at least one layer")
    hooks = {means.point: At(layers, means.hook)}

    _check_goal(goal, lm)
    prepare(lm.arch, hooks, prompts.shape)
    cut = _cut_edges(means, lm, prompts.shape[1])
    chosen = _chosen_layers(layers, lm.arch.n_layers)
    ablated, ablated_times = _timed(lm, prompts, hooks, [])
    baseline, baseline_times = _timed(lm, prompts, None, [layer_name(means.pattern, i) for i in chosen])
    before, after = baseline.logits[0, -1], ablated.logits[0, -1]
    for logits in (before, after):
        check_logits(lm, logits)
    goal = int(before.argmax()) if goal is None else goal
    changed, changes = _changes(before, after, top)
    attention = np.asarray(baseline.stack(means.pattern)[:, 0], np.float32)
    return KnockoutResult(
        tokens=np.asarray(prompts.tokens[0]),
        layers=chosen,
        hooks=hooks,
        target=goal,
        baseline_logits=np.asarray(before),
        ablated_logits=np.asarray(after),
        kl=float(metrics.kl_divergence(before, after)),
        target_logit_drop=float(before[goal] - after[goal]),
        target_probs=(float(metrics.prob(before, goal)), float(metrics.prob(after, goal))),
        top=changes,
        changed=changed,
        attention=attention,
        cut=cut,
        seconds={
            "compile": ablated_times[0] + baseline_times[0],
            "baseline": baseline_times[1],
            "ablated": ablated_times[1],
        },
    )


def _one_row(prompts: Prompts) -> Prompts:
    """The one prompt without its padding."""
    if prompts.shape[0] != 1:
        raise ArgumentError("knockout takes one prompt; loop over prompts, or call lm.run on the batch")
    if prompts.mask is None:
        return prompts
    real = np.flatnonzero(prompts.mask[0])
    return Prompts(
        prompts.tokens[:, real], None, None if prompts.positions is None else prompts.positions[:, real]
    )


def _changes(before: jax.Array, after: jax.Array, top: int) -> tuple[bool, metrics.Changes]:
    """Whether the prediction changed by more than rounding, and the tokens whose probability changed most."""
    a, b = (np.asarray(jax.nn.log_softmax(x.astype(jnp.float32))) for x in (before, after))
    p, q = np.exp(a), np.exp(b)
    # Of two programs, each a long chain of sums; in a narrow dtype most of it is that of the last step.
    steps = 64 if wide(before.dtype) == before.dtype else 4
    rounding = steps * float(jnp.finfo(before.dtype).eps) * float(jnp.abs(before).max())
    changed = bool((np.abs(np.nan_to_num(a) - np.nan_to_num(b)) > rounding).any())
    chosen = np.lexsort((-p, -np.abs(p - q) * changed))[:top].astype(np.int32)
    return changed, metrics.Changes(chosen, p[chosen], q[chosen])


def _timed(
    lm: LanguageModel, prompts: Prompts, hooks: Any, capture: list[str]
) -> tuple[Output, tuple[float, float]]:
    """Output of a run, and (compile, run) seconds: the first run less the second, the second."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        out = jax.block_until_ready(lm.run(prompts, hooks, capture))
        seconds.append(time.perf_counter() - start)
    return out, (max(seconds[0] - seconds[1], 0.0), seconds[1])


def _chosen_layers(layers: Any, n_layers: int) -> tuple[int, ...]:
    return tuple(sorted({int(i) % n_layers for i in np.atleast_1d(layers)}))


def _check_goal(goal: int | None, lm: LanguageModel) -> None:
    n_vocab = getattr(lm.arch, "d_vocab", None)
    if goal is not None and n_vocab is not None and not 0 <= goal < n_vocab:
        raise ArgumentError(f"target={goal}: token ids are 0 to {n_vocab - 1}")


class _Means(NamedTuple):
    """How a kind of model is cut.

    Attributes:
      point, hook: what keeps a token from being seen, and where.
      pattern: the point that shows its attention.
      edges: the edges that are cut, as a knockout of ``pattern``.
      sees_itself: whether a token is among those it attends to.
    """

    point: str
    hook: Any
    pattern: str
    edges: Knockout
    sees_itself: bool


def _means(lm: LanguageModel, edges: Knockout) -> _Means:
    table = table_of(lm.arch)
    if SCORES in table:
        return _Means(SCORES, edges, PATTERN, edges, sees_itself=True)
    if WRITE not in table:
        raise HookError(f"{lm.name} has neither attention scores nor a recurrent state to knock out")
    if np.ravel(edges.queries).tolist() != [-1]:
        raise ArgumentError("queries=: a recurrent model hides a token from every later one; leave it out")
    hook, every = Zero(positions=edges.keys, heads=edges.heads), dataclasses.replace(edges, queries=None)
    return _Means(WRITE, hook, EFFECTIVE, every, sees_itself=False)


def _cut_edges(means: _Means, lm: LanguageModel, n_tokens: int) -> np.ndarray:
    """Edges the knockout names among those that exist: a query never sees later keys."""
    site = table_of(lm.arch)[means.pattern]
    value = jnp.zeros(site.shape(1, n_tokens))
    exist = np.tri(n_tokens, k=0 if means.sees_itself else -1, dtype=bool)
    cut = np.asarray(means.edges.edge_mask(value, site))[0] & exist
    if not cut.any():
        reach = (
            "itself and earlier tokens" if means.sees_itself else "earlier tokens: the last has no later one"
        )
        raise ArgumentError(f"no such edge: a query attends only to {reach}")
    return cut
