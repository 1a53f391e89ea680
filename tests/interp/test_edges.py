"""The edge graph, the choice of edges and the files of circuits, against loops over labels."""

import itertools
import json
import re

import numpy as np
import pytest

from jmi.errors import ArgumentError, JmiError
from jmi.interp.edges.circuit_files import load_circuit, save_circuit
from jmi.interp.edges.eap import EdgeScores
from jmi.interp.edges.graph import EdgeGraph, graph_of
from jmi.interp.edges.selection import edges_above, greedy_edges, prune, top_edges
from jmi_models.rwkv.architecture import Rwkv
from tests.support.committed import arch_of

GRAPHS = {
    "sequential": EdgeGraph(3, 2, 2, 4),
    "parallel": EdgeGraph(3, 2, 2, 4, parallel=True),
    "grouped": EdgeGraph(2, 4, 2, 4),
}
each_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


def place(label):
    """Layer and rank (attention before the MLP) of a node or of a reader's node."""
    if label in ("input", "logits"):
        return (-1, 0) if label == "input" else (10**6, 0)
    return int(re.match(r"[am](\d+)", label)[1]), label.startswith("m")


def random_scores(graph, seed=0):
    values = np.random.default_rng(seed).normal(size=graph.exists.shape)
    return EdgeScores(np.where(graph.exists, values, 0), graph)


def random_edges(graph, share, seed=0):
    return graph.exists & (np.random.default_rng(seed).random(graph.exists.shape) < share)


def nodes_of(graph, reader):
    """The heads or the MLP that read through a reader, by its label."""
    label = graph.readers[reader].split("<")[0]
    layer, _, kv = label.partition(".kv")
    if not kv:
        return {label}
    size = graph.n_heads // graph.n_kv_heads
    return {f"{layer}.h{h}" for h in range(int(kv) * size, (int(kv) + 1) * size)}


def test_sizes_of_gpt2_small():
    graph = EdgeGraph(12, 12, 12, 768)
    assert (graph.n_writers, graph.n_readers, graph.n_edges) == (157, 445, 32_491)
    assert len(graph.writers) == 157
    assert len(graph.readers) == 445


@each_graph
def test_writers_reach_the_readers_behind_them(graph):
    for (w, writer), (r, reader) in itertools.product(enumerate(graph.writers), enumerate(graph.readers)):
        behind = place(writer)[0] < place(reader)[0]
        if not graph.parallel:
            behind |= place(writer) < place(reader)
        assert graph.exists[w, r] == behind, (writer, reader)
        if behind:
            assert graph.index(f"{writer}->{reader}") == (w, r)


@each_graph
def test_readers_know_whose_inputs_they_are(graph):
    for (r, _), (w, writer) in itertools.product(enumerate(graph.readers), enumerate(graph.writers)):
        assert graph.inputs_of[r, w] == (writer in nodes_of(graph, r))


def test_labels_and_order():
    assert GRAPHS["grouped"].writers[:6] == ("input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0")
    q, k, v = ["a0.h0<q>", "a0.h1<q>"], ["a0.h0<k>", "a0.h1<k>"], ["a0.h0<v>", "a0.h1<v>"]
    assert GRAPHS["sequential"].readers[:7] == (*q, *k, *v, "m0")
    assert GRAPHS["grouped"].readers[4:9] == ("a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>", "m0")
    assert GRAPHS["grouped"].name(0, 4) == "input->a0.kv0<k>"


@pytest.mark.parametrize("name", ["m0->a0.h0<q>", "m0", "a0.h9->logits", "input->a0.h0", "m1->input"])
def test_unknown_edges_are_named(name):
    with pytest.raises(ArgumentError, match=f"{re.escape(name)}: .*no such edge.*input->a0.h0<q>"):
        GRAPHS["sequential"].index(name)


def test_graphs_of_models():
    assert graph_of(arch_of("gpt2/plain")) == EdgeGraph(2, 4, 4, 16)
    assert graph_of(arch_of("gemma2/capped")) == EdgeGraph(4, 2, 1, 12)
    assert graph_of(arch_of("gptj/plain")).parallel
    with pytest.raises(ArgumentError, match="normalises its residual stream after each module"):
        graph_of(arch_of("opt/post_norm"))


def test_a_model_without_heads_has_no_edges():
    rwkv = Rwkv(6, 3, 24, 2, 12, 40, 31, (("rank_mix", 4), ("rank_decay", 5)))
    with pytest.raises(ArgumentError, match="no hook_q_input, hook_k_input"):
        graph_of(rwkv)


@each_graph
def test_strongest_edges(graph):
    scores = random_scores(graph)
    kept = top_edges(scores, 7)
    strength = np.abs(scores.values)
    assert kept.sum() == 7
    assert strength[kept].min() > strength[graph.exists & ~kept].max()
    np.testing.assert_array_equal(edges_above(scores, strength[kept].min()), kept)
    names = {graph.name(w, r) for w, r in np.argwhere(kept)}
    assert {name for name, _ in scores.top(7)} == names
    name, score = scores.top(1)[0]
    assert abs(score) == strength.max()
    assert scores[name] == score
    assert not top_edges(scores, 0).any()
    zeros = EdgeScores(np.zeros_like(scores.values), graph)
    np.testing.assert_array_equal(top_edges(zeros, graph.n_edges), graph.exists)
    assert not (top_edges(zeros, 5) & ~graph.exists).any()


@each_graph
def test_greedy_adds_the_strongest_edge_into_what_is_reached(graph):
    scores = random_scores(graph, 1)
    strength, kept = np.abs(scores.values), np.zeros_like(graph.exists)
    reached = {"logits"}
    for n in range(graph.n_edges + 1):
        np.testing.assert_array_equal(greedy_edges(scores, n), kept)
        readers = np.array([bool(nodes_of(graph, r) & reached) for r in range(graph.n_readers)])
        open_edges = graph.exists & ~kept & readers
        if n < graph.n_edges:
            w, r = np.unravel_index(np.where(open_edges, strength, -1).argmax(), strength.shape)
            kept[w, r] = True
            reached.add(graph.writers[w])


@each_graph
@pytest.mark.parametrize("share", [0.08, 0.2, 0.5])
def test_pruning_leaves_what_survives_removing_dead_ends(graph, share):
    for seed in range(20):
        given = random_edges(graph, share, seed)
        kept = given.copy()
        while True:
            ends = [(graph.writers[w], nodes_of(graph, r)) for w, r in np.argwhere(kept)]
            into = {"input"}.union(*(nodes for _, nodes in ends))
            out_of = {"logits", *(writer for writer, _ in ends)}
            dead = [not (writer in into and nodes & out_of) for writer, nodes in ends]
            if not any(dead):
                break
            kept[tuple(np.argwhere(kept)[dead].T)] = False
        np.testing.assert_array_equal(prune(graph, given), kept)


def test_edges_are_chosen_by_means_and_within_the_model():
    graph = GRAPHS["sequential"]
    for choose in (top_edges, greedy_edges):
        for n in (-1, graph.n_edges + 1):
            with pytest.raises(JmiError, match=f"n={n}: "):
                choose(random_scores(graph), n)
        with pytest.raises(ArgumentError, match="mean scores"):
            choose(EdgeScores(np.zeros((2, *graph.exists.shape)), graph), 1)


@each_graph
def test_files_give_back_what_was_written(graph, tmp_path):
    scores, kept = random_scores(graph), random_edges(graph, 0.3)
    save_circuit(tmp_path / "circuit.json", scores, kept)
    back = load_circuit(tmp_path / "circuit.json", graph)
    np.testing.assert_array_equal(back.scores.values, scores.values)
    np.testing.assert_array_equal(back.kept, kept)


def test_the_layout_is_that_of_eap_ig(tmp_path):
    graph = EdgeGraph(1, 2, 2, 4)
    scores, kept = random_scores(graph), np.zeros_like(graph.exists)
    for name in ("input->a0.h0<v>", "a0.h0->m0", "m0->logits", "a0.h1->logits"):
        kept[graph.index(name)] = True
    save_circuit(tmp_path / "circuit.json", scores, kept)
    stored = json.loads((tmp_path / "circuit.json").read_text())
    assert stored["cfg"] == {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4}
    nodes = {"input": True, "a0.h0": True, "a0.h1": False, "m0": True, "logits": True}
    assert stored["nodes"] == {name: {"in_graph": held} for name, held in nodes.items()}
    heads = [f"input->a0.h{h}<{end}>" for h in range(2) for end in "qkv"]
    rest = [
        "input->m0",
        "a0.h0->m0",
        "a0.h1->m0",
        *(f"{n}->logits" for n in ("input", "a0.h0", "a0.h1", "m0")),
    ]
    assert stored["edges"].keys() == {*heads, *rest}
    want = {"score": scores["a0.h0->m0"], "in_graph": True}
    assert stored["edges"]["a0.h0->m0"] == want


def test_files_know_no_shared_keys(tmp_path):
    graph, path = GRAPHS["grouped"], tmp_path / "circuit.json"
    scores, kept = random_scores(graph), random_edges(graph, 0.5)
    save_circuit(path, scores, kept)
    stored = json.loads(path.read_text())
    assert len(stored["edges"]) == EdgeGraph(2, 4, 4, 4).n_edges
    shared = graph.index("m0->a1.kv1<k>")
    for head in (2, 3):
        want = {"score": scores.values[shared], "in_graph": bool(kept[shared])}
        assert stored["edges"][f"m0->a1.h{head}<k>"] == want
    stored["edges"]["m0->a1.h3<k>"]["score"] += 1
    path.write_text(json.dumps(stored))
    with pytest.raises(ArgumentError, match=r"m0->a1\.h3<k>: query heads .* disagree"):
        load_circuit(path, graph)


def remove(stored):
    del stored["edges"]["input->m0"]


def rename(stored):
    stored["edges"]["input->a7.h0<q>"] = stored["edges"].pop("input->m0")


def scored(value):
    return lambda stored: stored["edges"]["input->m0"].update(score=value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, "1 edges missing or unknown: no input->m0"),
        (rename, "2 edges missing or unknown: input->a7.h0<q>, no input->m0"),
        *((scored(x), "input->m0: needs a score") for x in (None, True, "1", 10**400, [[]])),
        *((scored(x), "which is no number") for x in (np.nan, np.inf)),
        (lambda stored: stored["edges"].update({"input->m0": {"score": 1.0}}), "input->m0: needs a score"),
        (lambda stored: stored["cfg"].update(n_heads=3), "'n_heads': 3"),
        (lambda stored: stored.pop("cfg"), "has cfg and edges"),
    ],
)
def test_spoilt_files_are_refused(spoil, message, tmp_path):
    graph, path = GRAPHS["sequential"], tmp_path / "circuit.json"
    save_circuit(path, random_scores(graph), graph.exists)
    stored = json.loads(path.read_text())
    spoil(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(ArgumentError, match=re.escape(message)):
        load_circuit(path, graph)


def test_files_with_bytes_changed_are_a_circuit_or_one_error(tmp_path):
    graph, path, rng = EdgeGraph(1, 1, 1, 2), tmp_path / "circuit.json", np.random.default_rng(0)
    save_circuit(path, random_scores(graph), graph.exists)
    whole, refused = path.read_bytes(), []
    for _ in range(300):
        text = bytearray(whole)
        at, n = rng.integers(0, len(text), 2)
        text[at : at + n % 4] = rng.bytes(rng.integers(0, 4)) if rng.random() < 0.5 else b"[" * 3000
        path.write_bytes(text)
        try:
            assert np.isfinite(load_circuit(path, graph).scores.values).all()
        except ArgumentError as error:
            refused.append(str(error))
    assert all(len(words.splitlines()) == 1 for words in refused)
    assert len(refused) > 200


def test_what_is_no_circuit_is_neither_read_nor_written(tmp_path):
    graph, path = GRAPHS["sequential"], tmp_path / "circuit.json"
    with pytest.raises(ArgumentError, match="cannot be read"):
        load_circuit(path, graph)
    for text in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b"[1,]",
        b"[]",
        b"{",
    ):
        path.write_bytes(text)
        with pytest.raises(ArgumentError, match=r"circuit\.json") as error:
            load_circuit(path, graph)
        assert len(str(error.value)) < 300
    with pytest.raises(ArgumentError, match=r"kept have shape \(3,\)"):
        save_circuit(path, random_scores(graph), np.zeros(3, bool))
    spoilt = EdgeScores(np.where(graph.exists, np.nan, 0), graph)
    with pytest.raises(ArgumentError, match="not finite"):
        save_circuit(path, spoilt, graph.exists)
    assert path.read_text() == "{"
