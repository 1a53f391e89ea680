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
from flax import struct

from jmi import tree
from jmi.captures.capture import Group
from jmi.captures.output import Output
from jmi.checks import as_function, as_result, check_model, flag, shown, whole_number
from jmi.engine.forward import forward, precise
from jmi.engine.layers import over_layers
from jmi.errors import ArgumentError
from jmi.gradients import Gradients, value_and_grad_at
from jmi.hooks.interventions import Replace
from jmi.hooks.resolve import as_data
from jmi.interp.attribution.finite import check_scores
from jmi.interp.edges.graph import READS, EdgeGraph, edge_graph
from jmi.interp.edges.written import Written, of_run, outputs, points
from jmi.metrics import Metric, check_metric
from jmi.model.architecture import Architecture, Params, Tap
from jmi.model.inputs import as_tokens, check_arrays, check_logits_at, check_tokens
from jmi.model.sites import table_of
from jmi.programs import compiled

_PROJECTED = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
_STREAM, _FINAL = "blocks.*.hook_resid_pre", "blocks.-1.hook_resid_post"


@tree.dataclass
class EdgeScores:
    """Scores of the edges of a model; a pytree.

    Attributes:
      values: ``[w, r]``, or ``[b, w, r]`` for each example; zero where there is no edge.
      graph: what the indices mean. Static.
    """

    values: Any
    graph: EdgeGraph = struct.field(pytree_node=False)

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
    arch: Architecture,
    params: Params,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    *,
    steps: int | None = None,
    per_example: bool = False,
    mask: Any = None,
    positions: Any = None,
    logits_at: Any = None,
    remat: bool = True,
) -> EdgeScores:
    """Scores of all edges by edge attribution patching; compiled, and may be part of your own jit or vmap.

    ``score(u -> v) = sum over positions of (out_u(corrupted) - out_u(clean)) . d metric / d input_v``, the
    gradient taken in the clean run, mean over examples. A positive score says that the metric would rise.
    The scores of all edges out of the input sum to the first-order change of the metric; with ``steps``,
    to its whole change from clean to corrupted, up to an error that falls as one over ``steps``.

    Args:
      clean, corrupted: int32 ``[b, s]``, pairs that line up position by position.
      metric: of the clean run (`jmi.metrics`). A plain function compiles anew for each new object.
      steps: EAP-IG: the mean of the gradients at ``steps`` points of the straight path from the corrupted
        to the clean input embedding, ``k / steps`` of the way for k = 1 to ``steps``; the last is the clean
        run, so that ``steps=1`` is EAP. (Some versions of the authors' code take k = 0 to ``steps - 1``.)
        Another number does not compile anew.
      per_example: scores of each example, ``[b, w, r]``, not their mean.
      mask, positions, logits_at: of both runs, as `jmi.forward`; a metric that needs the logits of one
        position only costs less with ``logits_at``.
      remat: recompute layers in the backward pass: less memory, for more operations.

    Memory: what every writer wrote, w s d numbers per example, and the gradients of one layer's readers;
    nothing has an axis of edges besides the scores. Large sets: score them in pieces and take the mean.

    Raises:
      ArgumentError: prompts of different shapes, ids that are no tokens, a metric of another shape, ``steps``
        that is no count, or a model without edges (`edge_graph`).
      ArgumentError: scores that are NaN; it says in which run that began. Within your own jit they stay NaN.

    Example:
      >>> import jmi, jmi_models
      >>> from jmi.interp.edges.eap import eap
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = lm.encode("The capital of France is"), lm.encode("The capital of Spain is")
      >>> diff = jmi.metrics.LogitDiff(lm.token_id("Paris"), lm.token_id("Madrid"))
      >>> scores = eap(lm.arch, lm.params, clean, corrupted, diff, steps=5, logits_at=-1)
      >>> len(scores.top(10))
      10
    """
    graph = edge_graph(arch)
    check_model(arch, params)
    clean, corrupted = as_tokens(clean, "clean"), as_tokens(corrupted, "corrupted")
    per_example, remat = flag("per_example", per_example), flag("remat", remat)
    check_pair(arch, clean, corrupted)
    mask, positions = check_arrays(clean, mask, positions)
    check_metric(arch, as_function("metric", metric))
    if logits_at is not None:
        logits_at = check_logits_at(arch, logits_at, np.shape(clean), [], mask)
    count = None if steps is None else np.int32(whole_number("steps", steps))
    run = {"mask": mask, "positions": positions, "logits_at": logits_at}
    metric = as_data(metric)
    values = _scores(arch, per_example, remat, params, clean, corrupted, metric, count, run)
    again: Any = functools.partial(forward, arch, params, **run)
    pair = {"clean": lambda: again(clean), "corrupted": lambda: again(corrupted)}
    check_scores(values, pair, metric)
    return EdgeScores(values, graph)


def check_pair(arch: Architecture, clean: Any, corrupted: Any) -> None:
    """Raise ArgumentError for prompts that do not line up, or that the model cannot read."""
    shapes = [getattr(tokens, "shape", None) for tokens in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise ArgumentError(f"clean and corrupted tokens must line up; got {shapes[0]} and {shapes[1]}")
    for tokens in (clean, corrupted):
        check_arrays(tokens, None, None)
        check_tokens(arch, tokens)


def per_row(metric: Metric, out: Output, batch: int) -> jax.Array:
    """The metric of a run, found to be one number per example."""
    value = as_result("the metric", metric(out))
    if jnp.shape(value) != (batch,):
        raise ArgumentError(f"the metric gave {shown(value)}; it must give one number each, ({batch},)")
    return value


@compiled(static=(0, 1, 2))
def _scores(
    arch: Architecture,
    per_example: bool,
    remat: bool,
    params: Params,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    steps: Any,
    options: dict[str, Any],
) -> jax.Array:
    run: Any = functools.partial(forward, arch, params, **options)
    gradients = functools.partial(
        value_and_grad_at,
        arch,
        params,
        clean,
        lambda out: per_row(metric, out, clean.shape[0]),
        [*(f"blocks.*.{name}" for name in _PROJECTED), f"blocks.*.{READS[-1]}", _FINAL],
        remat=remat,
        **options,
    )

    def contracted(found: Gradients, difference: jax.Array) -> jax.Array:
        context = arch.context(params, jnp.asarray(clean), options["mask"], options["positions"])
        return _contracted(arch, params, context, difference, found, per_example)

    with precise():
        other = run(corrupted, capture=points(arch))
        if steps is None:
            found = gradients(capture=[*points(arch), _STREAM])
            return contracted(found, _difference(arch, params, of_run(other), of_run(found.out)))
        own = run(clean, capture=points(arch))
        difference = _difference(arch, params, of_run(other), of_run(own))
        embeds = [name for name in table_of(arch) if name in ("hook_embed", "hook_pos_embed")]

        def at(k: Any) -> jax.Array:
            way = jnp.asarray(k, difference.dtype) / jnp.asarray(steps, difference.dtype)
            way = way.astype(own[embeds[0]].dtype)
            hooks = {name: Replace(other[name] + way * (own[name] - other[name])) for name in embeds}
            return contracted(gradients(hooks=hooks, capture=[_STREAM]), difference)

        shape = jax.eval_shape(at, steps)
        total = jax.lax.fori_loop(
            1, steps + 1, lambda k, total: total + at(k), jnp.zeros(shape.shape, shape.dtype)
        )
        return total / steps.astype(total.dtype)


def _difference(arch: Architecture, params: Params, corrupted: Written, clean: Written) -> jax.Array:
    """What every writer adds in the corrupted run less what it adds in the clean one, ``[b, w, s, d]``."""
    return outputs(arch, params, jax.tree.map(jnp.subtract, corrupted, clean))


def _contracted(
    arch: Architecture,
    params: Params,
    context: Any,
    difference: jax.Array,
    found: Gradients,
    per_example: bool,
) -> jax.Array:
    """Products of what every writer's output differs by with the gradients at what every reader reads."""
    graph = edge_graph(arch)

    def product(readers: jax.Array) -> jax.Array:
        # One axis of products: a dot over two of them is no plain matrix product to XLA, and slower.
        each = jnp.moveaxis(readers, 2, 1).astype(difference.dtype)
        left, right = (x.reshape(*x.shape[:2], -1) for x in (difference, each))
        values = jnp.einsum("bwx,brx->bwr", left, right)
        return values if per_example else values.mean(0)

    def layer(p: Any, index: Any, stream: Any, heads: tuple[Any, ...], mlp: Any) -> jax.Array:
        own = _own_gradients(arch, p, context, index, stream, heads)
        return product(jnp.concatenate([*own, mlp[:, :, None]], axis=2))

    heads = tuple(found.grads.stack(name) for name in _PROJECTED)
    streams, mlps = found.out.stack(_STREAM), found.grads.stack(READS[-1])
    layers = jnp.arange(graph.n_layers, dtype=jnp.int32)
    inner = over_layers(layer, params["blocks"], layers, streams, heads, mlps)
    inner = jnp.moveaxis(inner, 0, -2).reshape(*inner.shape[1:-1], -1)
    values = jnp.concatenate([inner, product(found.grads[_FINAL][:, :, None])], axis=-1)
    return jnp.where(jnp.broadcast_to(graph.exists, values.shape), values, 0)


def _own_gradients(
    arch: Architecture, p: Any, context: Any, layer: Any, stream: jax.Array, heads: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Gradients at what each head reads, ``[b, s, heads, d]`` each, from those at its q, k and v.

    The block itself is differentiated from the one to the other: what it computes besides is dead code.
    """
    sites = {point.removeprefix("blocks.*."): site for point, site in table_of(arch).items()}
    wanted = tuple(Group(name, name, "after", None, False) for name in _PROJECTED)

    def project(*given: jax.Array) -> tuple[jax.Array, ...]:
        hooks = {name: (lambda _, site, x=x: x,) for name, x in zip(READS[:3], given, strict=True)}
        tap = Tap(sites, hooks, wanted, ((None, None),) * 3)
        arch.block(p, stream, context, layer, tap)
        return tuple(tap.rows[i] for i in range(3))

    given = [jnp.broadcast_to(stream[:, :, None], (*x.shape[:3], stream.shape[-1])) for x in heads]
    return jax.vjp(project, *given)[1](heads)
