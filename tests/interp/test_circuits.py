"""Circuits of edges in float64, against the plain model with hooks that take writers away by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError
from jmi.interp.edges.circuits import circuit_model
from jmi.interp.edges.faithfulness import area, faithfulness
from jmi.interp.edges.graph import READS
from jmi.interp.edges.written import Written, written
from tests.interp.edge_models import LAST, Case, case, relative, writer_outputs
from tests.support.committed import each, listed, load
from tests.support.tolerances import assert_agree

FAMILIES = ["gpt2/plain", "llama/longrope_beyond", "gemma2/capped", "gptj/plain"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def corrupted(given: Case) -> Written:
    return written(given.lm, given.corrupted)


@jax.jit
def _run(lm, prompts, kept, ablated, hooks):
    return circuit_model(lm, kept, ablated).run(prompts, hooks, [f"blocks.*.{name}" for name in READS])


def run(given: Case, kept, ablated, tokens=None, hooks=None, mask=None, positions=None):
    tokens = given.clean if tokens is None else tokens
    return _run(given.lm, jmi.Prompts(tokens, mask, positions), kept, ablated, hooks)


def some_edges(given: Case, share: float, seed: int = 0) -> np.ndarray:
    return given.graph.exists & (np.random.default_rng(seed).random(given.graph.exists.shape) < share)


def without(given: Case, *names: str) -> np.ndarray:
    kept = given.graph.exists.copy()
    for name in names:
        kept[given.graph.index(name)] = False
    return kept


def moved(given: Case, missed) -> dict:
    """Hooks of the plain model that add ``missed`` ``[b, s, r, d]`` to what readers read."""
    graph = given.graph
    layers = missed[:, :, :-1].reshape(*missed.shape[:2], graph.n_layers, graph.read_by_layer, -1)
    ends = np.cumsum([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])
    parts = [jnp.moveaxis(x, 2, 0) for x in jnp.split(layers, ends, axis=3)]
    parts[3] = parts[3][:, :, :, 0]
    hooks = {f"blocks.*.{name}": jmi.PerLayer(jmi.Add(x)) for name, x in zip(READS, parts, strict=True)}
    return {**hooks, LAST: jmi.Add(missed[:, :, -1])}


def by_hand(given: Case, kept, other) -> jax.Array:
    """Logits of a circuit, ``other`` ``[b, s, w, d]`` along removed edges: one more layer right at a time."""
    removed = jnp.asarray(given.graph.exists & ~kept, float)
    missed = jnp.zeros((*given.clean.shape, given.graph.n_readers, given.arch.d_model))
    for _ in range(2 * given.arch.n_layers + 1):
        differs = other - writer_outputs(given, given.clean, moved(given, missed))
        missed = jnp.einsum("wr,bswd->bsrd", removed, differs)
    return given.run(given.clean, hooks=moved(given, missed)).logits


@each(FAMILIES)
def test_circuits_are_what_hooks_on_the_model_do(name):
    given = case(name)
    ablated, other = corrupted(given), writer_outputs(given, given.corrupted)
    plain, patched = given.run(given.clean), given.run(given.corrupted)
    whole, none = (
        run(given, given.graph.exists, ablated),
        run(given, np.zeros_like(given.graph.exists), ablated),
    )
    assert_agree(whole.logits, plain.logits)
    assert_agree(none.logits, patched.logits)
    for share in (0.3, 0.8):
        kept = some_edges(given, share)
        want = by_hand(given, kept, other)
        assert_agree(run(given, kept, ablated).logits, want)
        assert relative(plain.logits, want) > 1e-2


@each(["gpt2/plain"])
@pytest.mark.parametrize(
    ("edge", "point", "heads"),
    [
        ("a0.h1->a1.h2<q>", "blocks.1.hook_q_input", 2),
        ("m0->a1.h0<k>", "blocks.1.hook_k_input", 0),
        ("input->a1.h3<v>", "blocks.1.hook_v_input", 3),
        ("a1.h2->m1", "blocks.1.hook_mlp_in", None),
        ("a0.h0->logits", LAST, None),
    ],
)
def test_a_removed_edge_is_one_patched_path(name, edge, point, heads):
    given = case(name)
    writer, _ = given.graph.index(edge)
    own, other = (writer_outputs(given, x)[:, :, writer] for x in (given.clean, given.corrupted))
    step = (other - own)[:, :, None] if heads is not None else other - own
    want = given.run(given.clean, hooks={point: jmi.Add(step, heads=heads)}).logits
    found = run(given, without(given, edge), corrupted(given)).logits
    assert_agree(found, want)
    assert relative(given.run(given.clean).logits, want) > 1e-4


@each(["gpt2/plain"])
def test_removed_to_nothing_or_to_means(name):
    given = case(name)
    nothing, none = Written(0.0, 0.0, 0.0), np.zeros_like(given.graph.exists)
    silent = {"hook_embed": jmi.Zero(), "hook_pos_embed": jmi.Zero(), "blocks.*.attn.hook_z": jmi.Zero()}
    want = given.run(given.clean, hooks={**silent, "blocks.*.hook_mlp_out": jmi.Zero()}).logits
    assert_agree(run(given, none, nothing).logits, want)
    held = corrupted(given)
    means = Written(held.input.mean(0), held.heads.mean(1, keepdims=True), held.mlps.mean(1, keepdims=True))
    kept = some_edges(given, 0.5)
    other = writer_outputs(given, given.corrupted).mean(0, keepdims=True)
    assert_agree(run(given, kept, means).logits, by_hand(given, kept, other))


@each(["gpt2/plain"])
def test_hooks_and_captures_see_the_circuit(name):
    given, ablated = case(name), corrupted(case(name))
    silenced = {"blocks.0.attn.hook_z": jmi.Zero(heads=1), "blocks.1.hook_k_input": jmi.Scale(0.5, heads=2)}
    found, want = (
        run(given, given.graph.exists, ablated, hooks=silenced),
        given.run(given.clean, hooks=silenced),
    )
    assert_agree(found.logits, want.logits)
    # A removed edge carries what it did, whatever a hook does to its writer.
    cut = without(given, "a0.h1->logits")
    own = writer_outputs(given, given.clean, silenced)[:, :, 2]
    step = writer_outputs(given, given.corrupted)[:, :, 2] - own
    want = given.run(given.clean, hooks={**silenced, LAST: jmi.Add(step)})
    assert_agree(run(given, cut, ablated, hooks=silenced).logits, want.logits)
    out = run(given, without(given, "m0->a1.h3<v>"), ablated)
    stream = given.run(given.clean, capture=["blocks.1.hook_resid_pre"])["blocks.1.hook_resid_pre"]
    mlp = [writer_outputs(given, x)[:, :, 5] for x in (given.corrupted, given.clean)]
    assert_agree(out["blocks.1.hook_v_input"][:, :, 3], stream + mlp[0] - mlp[1])
    assert_agree(out["blocks.1.hook_v_input"][:, :, 2], stream)


@each(["qwen3/tied"])
def test_mapped_listed_and_padded_circuits_are_the_same(name):
    given, ablated = case(name), corrupted(case(name))
    circuits = np.stack([some_edges(given, share, 3) for share in (0.2, 0.5, 0.9)])
    each_logits = np.stack([run(given, kept, ablated).logits for kept in circuits])
    together = jax.vmap(lambda kept: run(given, kept, ablated).logits)(circuits)
    assert_agree(together, each_logits)
    in_list = listed(load(name, "float64")).params
    circuit = circuit_model(jmi.LanguageModel(given.arch, in_list), circuits[0], ablated)
    one = circuit.run(given.clean, logits_at=-1)
    assert_agree(one.logits, each_logits[0, :, -1])
    pad = lambda tokens: np.concatenate([np.full((2, 3), 7, np.int32), tokens], axis=1)
    mask = np.concatenate([np.zeros((2, 3), bool), np.ones((2, 6), bool)], axis=1)
    other = written(given.lm, jmi.Prompts(pad(given.corrupted), mask))
    padded = run(given, circuits[1], other, tokens=pad(given.clean), mask=mask).logits
    assert_agree(padded[:, 3:], each_logits[1])


@each(["gpt2/plain", "gemma2/capped"])
def test_a_circuit_lists_its_sites_generates_and_is_swept(name, monkeypatch):
    monkeypatch.setattr("jmi.sweeps.chunks.PASS", 0)
    given, kept = case(name), some_edges(case(name), 0.6)
    means = Written(
        corrupted(given).input.mean((0, 1), keepdims=True),
        corrupted(given).heads.mean((1, 2), keepdims=True),
        corrupted(given).mlps.mean((1, 2), keepdims=True),
    )
    circuit = circuit_model(given.lm, kept, means)
    assert circuit.sites(2, 6) == given.lm.sites(2, 6)
    text = circuit.generate(given.clean, 4, capture=["hook_logits"])
    whole = circuit.run(np.concatenate([given.clean, text.tokens], 1)).logits
    assert_agree(np.moveaxis(np.asarray(text.captures["hook_logits"])[:, :, 0], 0, 1), whole[:, 6:])
    grid = jmi.Grid(layer=range(given.arch.n_layers), position=[1, 4])
    hooks = {"blocks.*.mlp.hook_out": jmi.At(grid["layer"], jmi.Scale(2.0, positions=grid["position"]))}
    last = lambda out: out.logits
    got = jmi.sweep(circuit, given.clean, hooks, last, logits_at=-1, progress=False)
    want = [
        circuit.run(
            given.clean, {f"blocks.{i}.mlp.hook_out": jmi.Scale(2.0, positions=p)}, logits_at=-1
        ).logits
        for i in range(given.arch.n_layers)
        for p in (1, 4)
    ]
    assert_agree(got.reshape(len(want), *got.shape[2:]), np.stack(want))
    plan = jmi.plan(circuit, given.clean, hooks, last, logits_at=-1)
    assert max(program.first for program in plan.programs) > 0, "cells share the positions before their first"


def measured(given: Case, kept, ablated) -> np.ndarray:
    return np.asarray(given.metric(run(given, kept, ablated)))


@each(["gpt2/plain"])
def test_faithfulness_compares_circuits_with_the_model(name):
    given, ablated, traces = case(name), corrupted(case(name)), []

    def metric(out):
        traces.append(1)
        return given.metric(out)

    exists = given.graph.exists
    circuits = np.stack([np.zeros_like(exists), some_edges(given, 0.4), some_edges(given, 0.8), exists])
    judge = functools.partial(faithfulness, given.lm, given.clean)
    found = judge(given.corrupted, circuits, metric=metric)
    once = len(traces)
    each_metric = np.stack([measured(given, kept, ablated) for kept in circuits])
    model, none = given.metric(given.run(given.clean)), given.metric(given.run(given.corrupted))
    assert_agree(found.metrics, each_metric)
    assert_agree(found.model, model)
    diff = jmi.metrics.LogitDiff(3, 8)
    last, every = (judge(given.corrupted, circuits, metric=diff, logits_at=at) for at in (-1, None))
    assert_agree(last.metrics, every.metrics)
    assert_agree(found.ablated, none)
    want = (each_metric.mean(1) - none.mean()) / (model.mean() - none.mean())
    np.testing.assert_allclose(found.values, want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.values[[0, 3]], [0, 1], atol=1e-10)
    np.testing.assert_allclose(found.fractions, circuits.sum((1, 2)) / exists.sum())
    widths = np.diff(found.fractions)
    assert found.cpr == pytest.approx(sum(widths * (want[1:] + want[:-1]) / 2))
    gaps = abs(1 - want)
    assert found.cmd == pytest.approx(sum(widths * (gaps[1:] + gaps[:-1]) / 2))
    again = judge(None, circuits[::-1], metric=metric, ablated=ablated)
    np.testing.assert_allclose(again.values, found.values[::-1], rtol=1e-10, atol=1e-12)
    assert again.cpr == pytest.approx(found.cpr)
    assert len(traces) == once, "other circuits are data"


def test_areas_of_known_curves():
    assert area([0, 0.5, 1], [0, 1, 1]) == 0.75
    assert area([1, 0], [1, 0]) == 0.5
    assert area([0.1, 0.3], [2, 2]) == pytest.approx(0.4)


def test_mistakes_are_named():
    given = case("gpt2/plain")
    exists, ablated = given.graph.exists, corrupted(given)
    make = functools.partial(circuit_model, given.lm)
    with pytest.raises(
        ArgumentError, match=r"kept= is an array of float64 \[11, 27\]; it must be booleans \[11, 27\]"
    ):
        make(exists.astype(float), ablated)
    with pytest.raises(ArgumentError, match=r"kept= is .*bool.*\[27, 11\]"):
        make(exists.T, ablated)
    with pytest.raises(ArgumentError, match=r"ablated\.heads of shape \(2, 2, 6, 3, 4\) does not fit"):
        make(exists, Written(ablated.input, ablated.heads[..., :3, :], ablated.mlps))
    shorter = written(given.lm, given.corrupted[:, :5])
    with pytest.raises(ArgumentError, match=r"ablated= is of prompts \(2, 5\); this run is of \(2, 6\)"):
        run(given, exists, shorter)
    judge = functools.partial(faithfulness, given.lm, given.clean)
    with pytest.raises(ArgumentError, match=r"circuits= are bool\[11, 27\]"):
        judge(given.corrupted, exists, metric=given.metric)
    with pytest.raises(ArgumentError, match="1 and 2 rows"):
        judge(given.corrupted[:1], exists[None], metric=given.metric)
    with pytest.raises(ArgumentError, match="same with all edges and with none"):
        judge(given.clean, exists[None], metric=given.metric)
