"""Ids that are no tokens, prompts that are too long: refused by name, or NaN where only the program knows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jmi
import jmi_models
from jmi import metrics
from jmi.errors import ArgumentError
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.interp.decompose.decomposition import accumulated_resid, decompose
from jmi.interp.decompose.direct_logit import direct_logit_attribution
from jmi.interp.decompose.heads import head_scores
from jmi.interp.edges.circuits import circuit_model
from jmi.interp.edges.eap import eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.edges.graph import edge_graph
from jmi.interp.edges.written import written
from jmi.interp.patching.knockout import knockout
from jmi.interp.patching.patch import patch
from jmi.interp.patching.path_patching import path_patch
from tests.support import committed
from tests.support.random_rwkv import ARCHS

VOCABULARY, CONTEXT = 29, 64
GOOD = np.random.default_rng(0).integers(0, VOCABULARY, (2, 7)).astype(np.int32)
SITE = "blocks.*.attn.hook_z"
MEASURE = metrics.LogitDiff(3, 8)
AS = {"prob": metrics.Prob(3)}


def swept(lm, tokens, measure=MEASURE):
    grid = jmi.Grid(layer=range(4))
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    return jmi.sweep(lm, tokens, hooks, measure, progress=False)


def circuits(lm):
    return np.zeros((1, *edge_graph(lm).exists.shape), bool)


RUNS = {
    "forward": lambda lm, x: jmi.forward(lm.arch, lm.params, x),
    "run": lambda lm, x: lm.run(x),
    "generate": lambda lm, x: jmi.generate(lm.arch, lm.params, x, 2),
    "lm.generate": lambda lm, x: lm.generate(x, 2),
    "sweep": swept,
    "gradients": lambda lm, x: jmi.value_and_grad_at(lm, x, MEASURE, SITE),
    "written": lambda lm, x: written(lm, x),
    "eap, clean": lambda lm, x: eap(lm, x, GOOD, metric=MEASURE),
    "eap, corrupted": lambda lm, x: eap(lm, GOOD, x, metric=MEASURE),
    "faithfulness, clean": lambda lm, x: faithfulness(lm, x, GOOD, circuits(lm), metric=MEASURE),
    "faithfulness, corrupted": lambda lm, x: faithfulness(lm, GOOD, x, circuits(lm), metric=MEASURE),
    "attribution, clean": lambda lm, x: attribution_patching(lm, x, GOOD, SITE, metric=MEASURE),
    "attribution, corrupted": lambda lm, x: attribution_patching(lm, GOOD, x, SITE, metric=MEASURE),
    "integrated": lambda lm, x: integrated_gradients(lm, GOOD, x, SITE, metric=MEASURE, steps=2),
    "atp*": lambda lm, x: atp_star(lm, GOOD, x, SITE, metric=MEASURE),
    "patch, corrupted": lambda lm, x: patch(lm, GOOD, x, "hook_mlp_out", metric=AS),
    "decompose": lambda lm, x: decompose(lm, x),
    "accumulated": lambda lm, x: accumulated_resid(lm, x),
    "direct logits": lambda lm, x: direct_logit_attribution(lm, x, 3),
    "heads": lambda lm, x: head_scores(lm, x),
    "knockout": lambda lm, x: knockout(lm, x[:1]),
}


@pytest.fixture(scope="module")
def unread(lm):
    """A model that fails where anything is traced or run."""

    class Unread(jmi_models.Transformer):
        def embed(self, *args):
            raise AssertionError("the model was run")

    given = {field.name: getattr(lm.arch, field.name) for field in dataclasses.fields(lm.arch)}
    return jmi.LanguageModel(Unread(**given), lm.params)


def spoiled(seed):
    """Tokens of which one is none, and that one."""
    rng = np.random.default_rng(seed)
    kind = [np.int32, np.int64][rng.integers(2)]
    wrong = [-1, -VOCABULARY, VOCABULARY, VOCABULARY + 1, 2**31 - 1, -(2**31)]
    wrong += [2**32 + 1, -(2**32) + 1, 2**33] if kind is np.int64 else []
    tokens, bad = GOOD.astype(kind), wrong[rng.integers(len(wrong))]
    tokens[0, rng.integers(7)] = bad
    return tokens, bad


@pytest.mark.parametrize("run", RUNS)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_ids_that_are_no_tokens_are_refused_before_anything_is_run(run, unread, seed):
    tokens, bad = spoiled(seed)
    with pytest.raises(ArgumentError, match=f"token ids must be 0 to 28; found {bad}$"):
        RUNS[run](unread, tokens)


@pytest.mark.parametrize("run", RUNS)
def test_prompts_that_are_too_long_are_refused_before_anything_is_run(run, unread):
    with pytest.raises(ArgumentError, match=r"must line up|has 65 tokens|of one shape|use one shape"):
        RUNS[run](unread, np.zeros((2, CONTEXT + 1), np.int32))


def test_a_source_and_a_circuit_read_tokens_only(lm):
    tokens, _ = spoiled(0)
    graph = np.zeros(edge_graph(lm).exists.shape, bool)
    circuit = circuit_model(lm, graph, written(lm, GOOD))
    for run in (
        lambda: patch(lm, tokens, GOOD, "hook_mlp_out", metric=AS),
        lambda: path_patch(lm, tokens, GOOD, metric=AS),
        lambda: circuit.run(tokens),
    ):
        with pytest.raises(ArgumentError, match="token ids must be"):
            run()
    with pytest.raises(ArgumentError, match="has 65 tokens"):
        circuit.run(np.zeros((2, CONTEXT + 1), np.int32))


def models(lm):
    yield lm.arch, lm.params
    for version in (6, 7):
        arch = ARCHS[version]
        yield arch, jmi_models.init(arch, 0)
    yield (gpt2 := committed.load("gpt2/plain")).arch, gpt2.params


def test_where_they_are_traced_they_give_nan_in_their_row_and_no_token(lm):
    for arch, params in models(lm):
        run = jax.jit(lambda x, arch=arch, params=params: jmi.forward(arch, params, x).logits)
        more = jax.jit(lambda x, arch=arch, params=params: jmi.generate(arch, params, x, 3).tokens)
        tokens = GOOD % arch.d_vocab
        want, text = run(tokens), more(tokens)
        assert jnp.isfinite(want).all()
        assert (text >= 0).all()
        for bad in (-1, -arch.d_vocab, arch.d_vocab, 2**31 - 1):
            spoilt = tokens.copy()
            spoilt[0, 3] = bad
            got = run(spoilt)
            assert jnp.isnan(got[0, 3:]).all()
            np.testing.assert_array_equal(got[1], want[1])
            found = more(spoilt)
            assert (found[0] == -1).all()
            np.testing.assert_array_equal(found[1], text[1])


def test_a_model_that_gives_nan_generates_no_text(lm):
    params = {**lm.params, "ln_final": jax.tree.map(lambda x: x * jnp.nan, lm.params["ln_final"])}
    broken = jmi.LanguageModel(lm.arch, params)
    for seed in (None, 1):
        with pytest.raises(ArgumentError, match="logits that are NaN"):
            broken.generate(GOOD, 2, seed=seed)


def test_positions_are_those_of_the_context(lm):
    places = np.tile(np.arange(7, dtype=np.int32), (2, 1))
    mask = places >= 2
    wrong = places.copy()
    wrong[0, 4] = -1
    with pytest.raises(ArgumentError, match="positions= has -1"):
        lm.run(jmi.Prompts(GOOD, mask, wrong))
    # What stands at padding is no position; and learned positions have no row for one that is traced.
    gpt2 = committed.load("gpt2/plain")
    tokens, run = GOOD % gpt2.arch.d_vocab, jax.jit(lambda p: gpt2.run(jmi.Prompts(tokens, mask, p)).logits)
    want = run(jnp.maximum(places - 2, 0))
    np.testing.assert_array_equal(run(places - 2)[:, 2:], want[:, 2:])
    for bad in (-1, gpt2.arch.n_ctx):
        got = run(jnp.asarray(places - 2).at[0, 4].set(bad))
        assert jnp.isnan(got[0, 4:]).all()
        np.testing.assert_array_equal(got[1], want[1])


KINDS = {
    "one": lambda x: metrics.LogitDiff(x, 3),
    "other": lambda x: metrics.LogitDiff(3, x),
    "prob": lambda x: metrics.Prob(x),
    "log prob": lambda x: metrics.LogProb(np.array([3, x])),
    "rank": lambda x: metrics.Rank(x),
}
BAD = [-1, -VOCABULARY, VOCABULARY, VOCABULARY + 1, 2**31, 2**32 + 3]
READ = {
    "sweep": lambda lm, measure: swept(lm, GOOD, measure),
    "eap": lambda lm, measure: eap(lm, GOOD, GOOD, metric=measure),
    "faithfulness": lambda lm, measure: faithfulness(lm, GOOD, GOOD, circuits(lm), metric=measure),
    "attribution": lambda lm, measure: attribution_patching(lm, GOOD, GOOD, SITE, metric=measure),
    "atp*": lambda lm, measure: atp_star(lm, GOOD, GOOD, SITE, metric=measure),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", READ)
def test_metrics_of_what_is_no_token_are_refused_before_anything_is_run(kind, read, unread):
    for bad in BAD:
        with pytest.raises(ArgumentError, match=rf"must be 0 to 28; found {bad}$"):
            READ[read](unread, KINDS[kind](bad))


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_of_a_run_refuses_what_is_no_token_and_traced_it_gives_nan(kind, lm):
    out = lm.run(GOOD)
    for bad in BAD:
        with pytest.raises(ArgumentError, match=f"found {bad}$"):
            KINDS[kind](bad)(out)
    with pytest.raises(ArgumentError, match="must be 0 to 28"):
        patch(lm, GOOD, GOOD[::-1], "hook_mlp_out", metric={"bad": KINDS[kind](VOCABULARY)})

    def measured(token, logits):
        metric = jax.tree.map(lambda x: token if np.ndim(x) == 0 and x == 7 else x, KINDS[kind](7))
        if kind == "log prob":
            metric = metrics.LogProb(jnp.stack([jnp.int32(3), token]))
        return metric(dataclasses.replace(out, logits=logits))

    value = jax.jit(measured)
    slopes = jax.jit(jax.grad(lambda *given: measured(*given)[1].astype(jnp.float32), argnums=1))
    for bad in (-1, -VOCABULARY, VOCABULARY):
        if kind == "rank":
            assert (value(bad, out.logits) == -1).all()
            continue
        assert jnp.isnan(value(bad, out.logits)[1])
        assert jnp.isnan(slopes(bad, out.logits)[1]).any()
    np.testing.assert_allclose(value(7, out.logits), KINDS[kind](7)(out), rtol=1e-6)
