"""Faithfulness of circuits: how much of what the model does they do, by size (MIB, arXiv:2504.13151).

Axis letters: b batch, s sequence, w writers, r readers, n circuits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import as_array, as_function, flag
from jmi.engine.forward import forward, precise
from jmi.engine.programs import compiled
from jmi.engine.run import check_logits_at
from jmi.errors import ArgumentError
from jmi.hooks.resolve import as_data
from jmi.interp.edges.circuits import circuit_model
from jmi.interp.edges.eap import pair_of, per_row, roomy_pair
from jmi.interp.edges.graph import edge_graph
from jmi.interp.edges.written import Written, check_written, written
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel
from jmi.metrics import Metric, check_metric
from jmi.model.inputs import Prompts


@dataclasses.dataclass(frozen=True)
class Faithfulness(Result):
    """How much of what the model does circuits do. All arrays are numpy.

    Attributes:
      values: ``[n]``, (metric of the circuit - metric of no edges) / (metric of the model - of no edges).
      fractions: ``[n]``, the fraction of edges each circuit keeps.
      metrics: ``[n, b]``, of each circuit and example.
      model, ablated: ``[b]``, of the model and with no edge kept.
    """

    values: np.ndarray
    fractions: np.ndarray
    metrics: np.ndarray
    model: np.ndarray
    ablated: np.ndarray

    def __repr__(self) -> str:
        return short(self, values=self.values, metrics=self.metrics)

    def _held(self) -> dict[str, Any]:
        return {
            "values": array(["circuit"], self.values),
            "fractions": array(["circuit"], self.fractions),
            "metrics": array(["circuit", "batch"], self.metrics),
            "model": array(["batch"], self.model),
            "ablated": array(["batch"], self.ablated),
            "cpr": self.cpr,
            "cmd": self.cmd,
        }

    @property
    def cpr(self) -> float:
        """Area under ``values`` over ``fractions`` (MIB: circuit performance ratio; higher is better)."""
        return area(self.fractions, self.values)

    @property
    def cmd(self) -> float:
        """Area between ``values`` and 1 (MIB: circuit-model distance; 0 is best)."""
        return area(self.fractions, np.abs(1 - self.values))


def area(fractions: Any, values: Any) -> float:
    """Area under ``values`` ``[n]`` over ``fractions`` ``[n]``, straight from point to point.

    Nothing is added outside the first and the last fraction. MIB takes .001, .002, .005, .01, .02, .05, .1,
    .2, .5 and 1, and as fractions those asked for, not those left after pruning: its CPR is
    ``area(asked, result.values)``, its CMD ``area(asked, abs(1 - result.values))``.
    """
    order = np.argsort(fractions, kind="stable")
    return float(np.trapezoid(np.asarray(values)[order], np.asarray(fractions)[order]))


def faithfulness(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    circuits: Any,
    *,
    metric: Metric,
    ablated: Written | None = None,
    logits_at: Any = None,
    exact: bool = False,
) -> Faithfulness:
    """Run circuits one after another in one compiled program, and compare each with the model.

    Args:
      clean, corrupted, metric, logits_at: as in `eap`; metrics are averaged over examples before the ratio.
      circuits: bool ``[n, w, r]``, the edges that each keeps.
      ablated: what stands in for removed edges; by default what is written in the corrupted run, and
        ``corrupted`` may be None where this is given.
      exact: as in `jmi.sweep`; with ``ablated``, which has an entry for each place, it is so anyway.

    Raises:
      ArgumentError: circuits of another shape, prompts that do not line up, a metric of another shape, or a
        metric that the model and no edges share: the ratio then means nothing.
      ArgumentError: a metric that is NaN; it says of what.

    Example:
      >>> import jmi, jmi_models
      >>> from jmi.interp.edges.faithfulness import faithfulness
      >>> from jmi.interp.edges.eap import eap
      >>> from jmi.interp.edges.selection import top_edges
      >>> lm = jmi_models.load("atlas")
      >>> clean, corrupted = "The capital of France is", "The capital of Spain is"
      >>> diff = jmi.metrics.LogitDiff(lm.token_id("Paris"), lm.token_id("Madrid"))
      >>> scores = eap(lm, clean, corrupted, metric=diff)
      >>> circuits = [top_edges(scores, n) for n in (10, 100, scores.graph.n_edges)]
      >>> result = faithfulness(lm, clean, corrupted, circuits, metric=diff)
      >>> round(float(result.values[-1]), 3)
      1.0
    """
    graph = edge_graph(lm)
    chosen = np.asarray(as_array("circuits", circuits))
    metric = as_function("metric", metric)
    if chosen.ndim != 3 or chosen.shape[1:] != graph.exists.shape or chosen.dtype != bool or not len(chosen):
        raise ArgumentError(
            f"circuits= are {chosen.dtype}{list(chosen.shape)}; they must be booleans "
            f"[circuits, {graph.n_writers}, {graph.n_readers}]"
        )
    if corrupted is None and ablated is None:
        raise ArgumentError("corrupted=None: give corrupted tokens, or ablated=, to say what replaces edges")
    own, other = pair_of(lm, clean, clean if corrupted is None else corrupted)
    check_metric(lm.arch, metric)
    if logits_at is not None:
        check_logits_at(lm.arch, logits_at, own, [])
    if ablated is not None:
        check_written(ablated)
    else:
        if not flag("exact", exact):
            own, other = roomy_pair(lm, (own, other), as_data(metric), logits_at, 2 + len(chosen))
        ablated = written(lm, other)
    every = np.concatenate([np.zeros_like(chosen[:1]), chosen])
    found = _metrics(lm, own, as_data(metric), every, ablated, logits_at)
    model, (none, *each) = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    for name, values in (("the model", model), ("no edges", none), ("a circuit", np.asarray(each))):
        if np.isnan(values).any():
            raise ArgumentError(f"the metric of {name} is NaN: no circuit can explain it")
    whole = model.mean() - none.mean()
    if whole == 0:
        raise ArgumentError("the metric is the same with all edges and with none: no circuit can explain it")
    return Faithfulness(
        values=(np.mean(each, 1) - none.mean()) / whole,
        fractions=(chosen & graph.exists).sum((1, 2)) / graph.n_edges,
        metrics=np.asarray(each),
        model=model,
        ablated=none,
    )


@compiled()
def _metrics(
    lm: LanguageModel, clean: Prompts, metric: Metric, circuits: Any, ablated: Written, logits_at: Any
) -> tuple[jax.Array, jax.Array]:
    """The metric ``[b]`` of the model, and ``[n, b]`` of the circuits."""

    def measured(lm: LanguageModel) -> jax.Array:
        return per_row(metric, forward(lm.arch, lm.params, clean, logits_at=logits_at), clean.shape[0])

    def of_circuit(kept: jax.Array) -> jax.Array:
        return measured(circuit_model(lm, kept, ablated))

    with precise():
        return measured(lm), jax.lax.map(of_circuit, jnp.asarray(circuits))
