"""Edge attribution patching: a score for every edge from two forward passes and one backward pass.

The score of an edge is the first-order estimate of what replacing what its writer writes by what it writes
in a corrupted run, for one reader alone, does to a metric (EAP: Syed et al. 2023, arXiv:2310.10348; with
gradients averaged along a path of inputs, EAP-IG: Hanna et al. 2024, arXiv:2403.17806).

Axis letters: b batch, s sequence, d model width, x both of these, w writers, r readers (of a layer, or all).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import CARRY, plan
from jmi.captures.output import Output
from jmi.checks import as_function, as_result, choice, flag, shown, whole_number
from jmi.engine.forward import forward, precise
from jmi.engine.layers import one_layer, over_layers
from jmi.engine.lengths import roomy
from jmi.engine.probe import Probe
from jmi.engine.programs import compiled
from jmi.engine.run import Run, Static, check_logits_at
from jmi.engine.takes_padding import Held
from jmi.errors import ArgumentError
from jmi.gradients import Gradients, value_and_grad_at
from jmi.hooks.interventions import Replace
from jmi.hooks.layers import At
from jmi.hooks.resolve import as_data
from jmi.interp.edges.graph import READS, EdgeGraph, edge_graph, graph_of
from jmi.interp.edges.written import Written, of_run, outputs, points
from jmi.interp.finite import check_scores
from jmi.interp.into import Into, turned
from jmi.interp.repadded import repadded
from jmi.interp.results import Result, array
from jmi.lm import LanguageModel
from jmi.metrics import Metric, check_metric
from jmi.model.architecture import Architecture
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import table_of

_PROJECTED = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
_FINAL = "blocks.-1.hook_resid_post"


@tree.dataclass
class EdgeScores(Result):
    """Scores of the edges of a model; a pytree. As plain data, None stands where there is no edge.

    Attributes:
      values: ``[w, r]``, or ``[b, w, r]`` for each example; zero where there is no edge.
      graph: what the indices mean. Static.
      into: the run that is changed. Static.
    """

    values: Any
    graph: EdgeGraph = tree.static()
    into: str = tree.static(default="clean")

    def __repr__(self) -> str:
        return f"EdgeScores(into={self.into!r}, {self.graph.n_edges} edges, values {list(self.values.shape)})"

    def _held(self) -> dict[str, Any]:
        values = np.where(self.graph.exists, np.asarray(self.values, np.float64), np.nan)
        return {
            "into": self.into,
            "labels": {"writer": self.graph.writers, "reader": self.graph.readers},
            "scores": array(["batch", "writer", "reader"][-values.ndim :], values),
        }

    def __getitem__(self, edge: str) -> jax.Array:
        """Score of an edge by its name, ``a0.h0->a1.h3<q>``."""
        return self.values[(..., *self.graph.index(edge))]

    def top(self, n: int) -> list[tuple[str, float]]:
        """The ``n`` edges with the largest absolute scores, largest first; of mean scores ``[w, r]``.

        Raises:
          ArgumentError: scores that are NaN, which have no order.
        """
        values = np.where(self.graph.exists, self.known(), 0)
        order = np.argsort(-np.abs(values), axis=None, kind="stable")[:n]
        ends = zip(*np.unravel_index(order, values.shape), strict=True)
        return [(self.graph.name(w, r), float(values[w, r])) for w, r in ends]

    def known(self) -> np.ndarray:
        """The scores in numpy and float64; ArgumentError where that of an edge is NaN."""
        values = np.asarray(self.values, np.float64)
        if np.isnan(values[..., self.graph.exists]).any():
            raise ArgumentError(
                "edges have scores that are NaN: call eap outside of jit to see where that began"
            )
        return values


def eap(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    *,
    metric: Metric,
    into: Into = "clean",
    steps: int | None = None,
    per_example: bool = False,
    logits_at: Any = None,
    remat: bool = True,
    exact: bool = False,
) -> EdgeScores:
    """Scores of all edges by edge attribution patching; compiled, and may be part of your own jit or vmap.

    ``score(u -> v) = sum over positions of (out_u(corrupted) - out_u(clean)) . d metric / d input_v``, the
    gradient taken in the clean run, mean over examples. A positive score says that the metric would rise.
    The scores of all edges out of the input sum to the first-order change of the metric; with ``steps``,
    to its whole change from clean to corrupted, up to an error that falls as one over ``steps``.
    With ``into="corrupted"`` the two change places.

    Args:
      clean, corrupted: as `LanguageModel.prompts` takes them; row by row a pair of prompts of one length,
        whichever side each is padded on.
      metric: of the run that is changed (`jmi.metrics`). A plain function compiles anew for each new object.
      into: the run that is changed, whose gradients are taken.
      steps: EAP-IG: the mean of the gradients at ``steps`` points of the straight path from the input
        embedding of the other run to that of the one that is changed, ``k / steps`` of the way for k = 1 to
        ``steps``; the last is that run itself, so that ``steps=1`` is EAP. (Some versions of the authors'
        code take k = 0 to ``steps - 1``.) Another number does not compile anew.
      per_example: scores of each example, ``[b, w, r]``, not their mean.
      logits_at: of both runs, as `jmi.forward`; a metric that needs the logits of one
        position only costs less with ``logits_at``.
      remat: recompute layers in the backward pass: less memory, for more operations.
      exact: as in `jmi.sweep`.

    Memory: what every writer wrote, w s d numbers per example, and the gradients of one layer's readers;
    nothing has an axis of edges besides the scores. Large sets: score them in pieces and take the mean.

    Raises:
      ArgumentError: prompts that do not line up token by token, ids that are no tokens, a metric of another
        shape, ``steps`` that is no count, or a model without edges (`edge_graph`).
      ArgumentError: scores that are NaN; it says in which run that began. Within your own jit they stay NaN.

    Example:
      >>> import jmi, jmi_models
      >>> from jmi.interp.edges.eap import eap
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = "The capital of France is", "The capital of Spain is"
      >>> diff = jmi.metrics.LogitDiff(lm.token_id("Paris"), lm.token_id("Madrid"))
      >>> scores = eap(lm, clean, corrupted, metric=diff, steps=5, logits_at=-1)
      >>> len(scores.top(10))
      10
    """
    graph = edge_graph(lm)
    per_example, remat = flag("per_example", per_example), flag("remat", remat)
    choice("into", into, ("clean", "corrupted"))
    pair = turned(pair_of(lm, *turned((clean, corrupted), into)), into)
    check_metric(lm.arch, as_function("metric", metric))
    if logits_at is not None:
        check_logits_at(lm.arch, logits_at, pair[0], [])
    count = None if steps is None else np.int32(whole_number("steps", steps))
    metric = as_data(metric)
    if not flag("exact", exact):
        pair = roomy_pair(lm, pair, metric, logits_at, 2 + 3 * (steps or 1))
    changed, other = turned(pair, into)
    values = _scores((per_example, remat), lm, (changed, other), metric, count, logits_at)
    runs = {
        name: functools.partial(forward, lm.arch, lm.params, prompts, logits_at=logits_at)
        for name, prompts in zip(("clean", "corrupted"), pair, strict=True)
    }
    check_scores(values, runs, metric)
    return EdgeScores(values, graph, into)


def pair_of(lm: LanguageModel, changed: Any, other: Any) -> tuple[Prompts, Prompts]:
    """Two prompts that line up token by token, the other one padded as the one that is changed.

    Raises:
      ArgumentError: others.
    """
    base, source = (checked(lm.arch, lm.prompts(given)) for given in (changed, other))
    return base, repadded(source, base)


def roomy_pair(
    lm: LanguageModel, pair: tuple[Prompts, Prompts], metric: Metric, logits_at: Any, passes: int
) -> tuple[Prompts, Prompts]:
    """Two such prompts at the length at which they run (`jmi.engine.lengths`)."""
    held = [Held(metric)] if logits_at is None else []
    own, other = (roomy(lm.arch, lm.params, each, held, copies=passes) for each in pair)
    return own, other


def per_row(metric: Metric, out: Output, batch: int) -> jax.Array:
    """The metric of a run, found to be one number per example."""
    value = as_result("the metric", metric(out))
    if jnp.shape(value) != (batch,):
        raise ArgumentError(f"the metric gave {shown(value)}; it must give one number each, ({batch},)")
    return value


@compiled(static=0)
def _scores(
    flags: tuple[bool, bool],
    lm: LanguageModel,
    pair: tuple[Prompts, Prompts],
    metric: Metric,
    steps: Any,
    logits_at: Any,
) -> jax.Array:
    """Scores of the edges; ``flags`` are per_example and remat, the first of the ``pair`` is changed."""
    arch, (changed, other), (per_example, remat) = lm.arch, pair, flags
    run: Any = functools.partial(forward, arch, lm.params, logits_at=logits_at)
    gradients = functools.partial(
        value_and_grad_at,
        lm,
        changed,
        lambda out: per_row(metric, out, changed.shape[0]),
        [*(f"blocks.*.{name}" for name in _PROJECTED), f"blocks.*.{READS[-1]}", _FINAL],
        remat=remat,
        logits_at=logits_at,
    )

    def contracted(found: Gradients, difference: jax.Array) -> jax.Array:
        return _contracted(lm, changed, difference, found, per_example)

    with precise():
        there = run(other, capture=points(arch))
        if steps is None:
            found = gradients(capture=[*points(arch), CARRY])
            return contracted(found, _difference(lm, of_run(there), of_run(found.out)))
        own = run(changed, capture=points(arch))
        difference = _difference(lm, of_run(there), of_run(own))
        embeds = [name for name in table_of(arch) if name in ("hook_embed", "hook_pos_embed")]

        def at(k: Any) -> jax.Array:
            way = jnp.asarray(k, difference.dtype) / jnp.asarray(steps, difference.dtype)
            way = way.astype(own[embeds[0]].dtype)
            hooks = {name: Replace(there[name] + way * (own[name] - there[name])) for name in embeds}
            return contracted(gradients(hooks=hooks, capture=[CARRY]), difference)

        shape = jax.eval_shape(at, steps)
        total = jax.lax.fori_loop(
            1, steps + 1, lambda k, total: total + at(k), jnp.zeros(shape.shape, shape.dtype)
        )
        return total / steps.astype(total.dtype)


def _difference(lm: LanguageModel, other: Written, own: Written) -> jax.Array:
    """What every writer adds in the other run less what it adds in the changed one, ``[b, w, s, d]``."""
    return outputs(lm, jax.tree.map(jnp.subtract, other, own))


def _contracted(
    lm: LanguageModel, prompts: Prompts, difference: jax.Array, found: Gradients, per_example: bool
) -> jax.Array:
    """Products of what every writer's output differs by with the gradients at what every reader reads."""
    graph = graph_of(lm.arch)
    context = lm.arch.context(lm.params, prompts)

    def product(readers: jax.Array) -> jax.Array:
        # One axis of products: a dot over two of them is no plain matrix product to XLA, and slower.
        each = jnp.moveaxis(readers, 2, 1).astype(difference.dtype)
        left, right = (x.reshape(*x.shape[:2], -1) for x in (difference, each))
        values = jnp.einsum("bwx,brx->bwr", left, right)
        return values if per_example else values.mean(0)

    def layer(p: Any, index: Any, carry: Any, heads: tuple[Any, ...], mlp: Any) -> jax.Array:
        own = _own_gradients(lm.arch, prompts, (p, carry, context, index), heads)
        return product(jnp.concatenate([*own, mlp[:, :, None]], axis=2))

    heads = tuple(found.grads.stack(name) for name in _PROJECTED)
    carries, mlps = found.out.captures[CARRY], found.grads.stack(READS[-1])
    layers = jnp.arange(graph.n_layers, dtype=jnp.int32)
    inner = over_layers(lm.arch, layer, lm.params["blocks"], layers, carries, heads, mlps)
    inner = jnp.moveaxis(inner, 0, -2).reshape(*inner.shape[1:-1], -1)
    values = jnp.concatenate([inner, product(found.grads[_FINAL][:, :, None])], axis=-1)
    return jnp.where(jnp.broadcast_to(graph.exists, values.shape), values, 0)


def _own_gradients(
    arch: Architecture, prompts: Prompts, layer: tuple[Any, ...], heads: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Gradients at what each head reads, ``[b, s, heads, d]`` each, from those at its q, k and v.

    The block itself is differentiated from the one to the other: what it computes besides is dead code.
    """
    wanted = plan(arch, [f"blocks.*.{name}" for name in _PROJECTED], prompts.shape)
    static = Static(arch, wanted.groups)
    reads = [f"blocks.*.{name}" for name in READS[:3]]
    shapes = [table_of(arch)[point].shape(*prompts.shape) for point in reads]

    def project(*added: jax.Array) -> tuple[jax.Array, ...]:
        every = np.ones(arch.n_layers, bool)
        hooks: dict[str, Any] = {point: (At(every, Probe(x)),) for point, x in zip(reads, added, strict=True)}
        rows = one_layer(Run(prompts, hooks, wanted.data, static=static), *layer)
        return tuple(rows[i] for i in range(len(heads)))

    zeros = [jnp.zeros(shape, x.dtype) for shape, x in zip(shapes, heads, strict=True)]
    return jax.vjp(project, *zeros)[1](heads)
