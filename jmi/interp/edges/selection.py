"""Which edges make a circuit: by score, by score from the logits down, and only those on a whole path.

Each function gives bool ``[w, r]`` (writers, readers) for `circuit_model` and `faithfulness`; numpy.
"""

import heapq
from typing import Any

import numpy as np

from jmi.checks import as_array, real_number, shown, whole_number
from jmi.errors import ArgumentError
from jmi.interp.edges.eap import EdgeScores
from jmi.interp.edges.graph import EdgeGraph


def top_edges(scores: EdgeScores, n: int) -> np.ndarray:
    """The ``n`` edges with the largest absolute scores, by mean scores ``[w, r]``; the first among equals."""
    n = _checked(scores, n)
    kept = np.zeros(scores.graph.exists.size, bool)
    strength = np.where(scores.graph.exists, _strength(scores), -1.0)
    kept[np.argsort(-strength, axis=None, kind="stable")[:n]] = True
    return kept.reshape(scores.graph.exists.shape)


def edges_above(scores: EdgeScores, threshold: float) -> np.ndarray:
    """The edges whose absolute score is at least ``threshold``."""
    strength = _strength(scores)
    return scores.graph.exists & (strength >= real_number("threshold", threshold))


def greedy_edges(scores: EdgeScores, n: int) -> np.ndarray:
    """``n`` edges from the logits down: always the strongest of those into a node already reached.

    A head is reached as a whole: with any edge out of it all edges into its query, key and value may follow
    (Hanna et al. 2024, arXiv:2403.17806). Every edge then leads on to the logits, though not every one
    comes from the input: `prune`.
    """
    n = _checked(scores, n)
    graph, strength = scores.graph, _strength(scores)
    kept, reached = np.zeros_like(graph.exists), np.zeros(graph.n_readers, bool)
    waiting: list[tuple[float, int, int]] = []

    def reach(readers: np.ndarray) -> None:
        for reader in readers[~reached[readers]]:
            reached[reader] = True
            for writer in np.flatnonzero(graph.exists[:, reader]):
                heapq.heappush(waiting, (-strength[writer, reader], int(writer), int(reader)))

    reach(np.array([graph.n_readers - 1]))
    for _ in range(n):
        _, writer, reader = heapq.heappop(waiting)
        kept[writer, reader] = True
        reach(np.flatnonzero(graph.inputs_of[:, writer]))
    return kept


def prune(graph: EdgeGraph, kept: Any) -> np.ndarray:
    """The edges of ``kept`` that lie on a path from the input to the logits."""
    if not isinstance(graph, EdgeGraph):
        raise ArgumentError(f"graph={shown(graph)}: give an EdgeGraph, such as edge_graph(arch)")
    kept = np.asarray(as_array("kept", kept))
    if kept.dtype != bool or kept.shape != graph.exists.shape:
        raise ArgumentError(f"kept={shown(kept)}: give booleans {list(graph.exists.shape)}")
    kept = kept & graph.exists
    from_input = np.zeros(graph.n_writers, bool)
    from_input[0] = True
    # Indices of writers run with the model, so whatever one reads from was decided before it.
    for writer in range(1, graph.n_writers):
        from_input[writer] = (kept[:, graph.inputs_of[:, writer]] & from_input[:, None]).any()
    to_logits = np.zeros(graph.n_readers, bool)
    to_logits[-1] = True
    for writer in reversed(range(1, graph.n_writers)):
        if (kept[writer] & to_logits).any():
            to_logits |= graph.inputs_of[:, writer]
    return kept & from_input[:, None] & to_logits


def _strength(scores: EdgeScores) -> np.ndarray:
    _check_scores(scores)
    values = np.abs(scores.known())
    if values.shape != scores.graph.exists.shape:
        raise ArgumentError(
            f"scores of shape {values.shape}: choose edges by mean scores, [writers, readers]"
        )
    return values


def _checked(scores: EdgeScores, n: int) -> int:
    _check_scores(scores)
    return whole_number("n", n, 0, scores.graph.n_edges)


def _check_scores(scores: Any) -> None:
    if not isinstance(scores, EdgeScores):
        raise ArgumentError(f"scores={shown(scores)}: give EdgeScores, such as eap(...) returns")
