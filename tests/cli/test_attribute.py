"""``jmi attribute`` as a person types it."""

import json

import numpy as np
import pytest

import jmi_models
from jmi.interp.edges.circuit_files import load_circuit
from jmi.interp.edges.graph import edge_graph
from tests.cli.command_line import jmi, refused


def test_scores_of_heads_are_close_to_what_patching_them_does(tmp_path):
    estimate, truth, plot = (tmp_path / name for name in ("a.json", "p.json", "a.png"))
    done = jmi("attribute", "--steps", 8, "--output", estimate, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    done = jmi("patch", "--into", "clean", "--output", truth)
    assert done.returncode == 0, done.stderr
    shares = np.asarray(json.loads(estimate.read_text())["shares"])
    recovery = np.asarray(json.loads(truth.read_text())["recovery"])
    assert shares.shape == recovery.shape
    assert np.corrcoef(shares.reshape(-1), recovery.reshape(-1))[0, 1] > 0.98
    assert recovery.max() > 0.3
    assert shares.argmax() == recovery.argmax()


def test_few_edges_are_the_circuit(tmp_path):
    output, circuit = tmp_path / "edges.json", tmp_path / "circuit.json"
    done = jmi("attribute", "--edges", 60, "--steps", 5, "--output", output, "--circuit", circuit)
    assert done.returncode == 0, done.stderr
    assert "a circuit of the 60 strongest edges keeps" in done.stdout
    record = json.loads(output.read_text())
    assert record["faithfulness"] > 0.8
    held = load_circuit(circuit, edge_graph(jmi_models.load("atlas")))
    assert held.kept.sum() == 60
    strongest = record["edges"][0]
    assert float(held.scores[strongest["edge"]]) == pytest.approx(strongest["score"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metric", "rank"), "logit-diff"),
        (("--circuit", "c.json"), "--edges"),
        (("--edges", 5, "--plot", "p.png"), "--circuit"),
        (("--edges", 5, "--circuit", "nowhere/c.json"), "does not exist"),
        (("--edges", 100_000), "edges"),
        (("--site", "hook_embed"), "hook_embed"),
        (("The capital of France is", "The capital of South Korea is"), "jmi patch"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, words):
    assert words in refused("attribute", *arguments)
