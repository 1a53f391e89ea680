"""Circuits as JSON files, in the layout of EAP-IG and the MIB benchmark.

``{"cfg": sizes, "nodes": {"a0.h0": {"in_graph"}}, "edges": {"input->a0.h0<q>": {"score", "in_graph"}}}``.
The layout knows no shared keys and values: an edge into those of a group stands once for every query
head of the group, each time with its whole score, and is kept or removed in all of them.
"""

import reprlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmi.artefacts import write_json
from jmi.errors import ArgumentError, printable
from jmi.interp.edges.eap import EdgeScores
from jmi.interp.edges.graph import EdgeGraph
from jmi.reading import read_object


class StoredCircuit(NamedTuple):
    """A circuit read from a file.

    Attributes:
      scores: of every edge.
      kept: bool ``[writers, readers]``, the edges of the circuit.
    """

    scores: EdgeScores
    kept: np.ndarray


def save_circuit(path: str | Path, scores: EdgeScores, kept: Any) -> None:
    """Write scores and the edges that are kept, bool ``[w, r]``; atomically.

    A head or MLP counts as in the graph when edges into it and out of it are kept.

    Raises:
      ArgumentError: scores or kept edges of another shape, scores that are not finite.
      OutputError: an unwritable path.
    """
    graph, kept = scores.graph, np.asarray(kept)
    values = np.asarray(scores.values, np.float64)
    for name, given in (("scores", values), ("kept", kept)):
        if given.shape != graph.exists.shape:
            raise ArgumentError(f"{name} have shape {given.shape}; a file takes {graph.exists.shape}")
    if not np.isfinite(values[graph.exists]).all():
        raise ArgumentError("a score is not finite")
    kept = kept.astype(bool) & graph.exists
    entered = (kept.any(0)[:, None] & graph.inputs_of).any(0)
    entered[0] = True
    nodes = dict(zip(graph.writers, (entered & kept.any(1)).tolist(), strict=True)) | {"logits": True}
    edges = {
        name: {"score": float(values[w, r]), "in_graph": bool(kept[w, r])}
        for name, (w, r) in _stored_edges(graph).items()
    }
    stored = {name: {"in_graph": held} for name, held in nodes.items()}
    write_json(path, {"cfg": _sizes(graph), "nodes": stored, "edges": edges})


def load_circuit(path: str | Path, graph: EdgeGraph) -> StoredCircuit:
    """Read a file written by `save_circuit` or by EAP-IG for a model with the edges ``graph``.

    What is said of nodes is not read: it follows from the edges.

    Raises:
      ArgumentError: no such layout, another model, edges that are missing or surplus, or query heads that
        share keys and disagree about an edge into them.
    """
    stored = read_object(Path(path), ArgumentError)
    if not all(isinstance(stored.get(k), dict) for k in ("cfg", "edges")):
        raise ArgumentError(f"{path}: a circuit has cfg and edges, see {__name__}")
    sizes = {name: stored["cfg"].get(name) for name in _sizes(graph)}
    if sizes != _sizes(graph):
        raise ArgumentError(
            f"{path}: the circuit is of a model with {reprlib.repr(sizes)}; this one has {_sizes(graph)}"
        )
    places, edges = _stored_edges(graph), stored["edges"]
    wrong = [*(f"no {name}" for name in places.keys() - edges.keys()), *(edges.keys() - places.keys())]
    if wrong:
        shown = printable(", ".join(sorted(wrong)[:5]))
        raise ArgumentError(f"{path}: {len(wrong)} edges missing or unknown: {shown}")
    values, kept = np.full(graph.exists.shape, np.nan), np.zeros(graph.exists.shape, bool)
    for name, place in places.items():
        score, held = _entry(path, name, edges[name])
        if not np.isnan(values[place]) and (values[place], kept[place]) != (score, held):
            raise ArgumentError(f"{path}: {name}: query heads that share keys and values disagree")
        values[place], kept[place] = score, held
    return StoredCircuit(EdgeScores(np.where(graph.exists, values, 0), graph), kept)


def _entry(path: str | Path, name: str, entry: Any) -> tuple[float, bool]:
    score: Any
    score, held = (entry.get("score"), entry.get("in_graph")) if isinstance(entry, dict) else (None, None)
    # NaN is not smaller than any float, and a whole number may be larger.
    number = isinstance(score, (int, float)) and abs(score) <= sys.float_info.max
    if not number or isinstance(score, bool) or not isinstance(held, bool):
        got = reprlib.repr(entry)
        raise ArgumentError(f"{path}: {name}: needs a score (finite) and in_graph (true or false); got {got}")
    return float(score), held


def _sizes(graph: EdgeGraph) -> dict[str, Any]:
    return {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": graph.d_model,
    }


def _stored_edges(graph: EdgeGraph) -> dict[str, tuple[int, int]]:
    """Name in a file -> indices of the edge, in the order of the files."""
    found = {}
    for reader, label in enumerate(graph.readers):
        end = label[label.index("<") :] if "<" in label else ""
        nodes = [graph.writers[w] for w in np.flatnonzero(graph.inputs_of[reader])] if end else [label]
        for writer in np.flatnonzero(graph.exists[:, reader]):
            found.update({f"{graph.writers[writer]}->{node}{end}": (int(writer), reader) for node in nodes})
    return found
