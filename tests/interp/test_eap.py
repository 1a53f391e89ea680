"""Scores of edges in float64, against autodiff at what each reader reads and derivatives along paths."""

import functools
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import ArgumentError
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching
from jmi.interp.edges.circuits import circuit_model
from jmi.interp.edges.eap import eap
from jmi.interp.edges.faithfulness import faithfulness
from jmi.interp.edges.selection import edges_above, top_edges
from jmi.interp.edges.written import outputs, written
from tests.core.conftest import lively, tiny
from tests.interp.edge_models import LAST, Case, case, reader_gradients, relative, writer_outputs
from tests.support.committed import each
from tests.support.tolerances import assert_agree
from tests.support.trees import listed

FAMILIES = [
    "gpt2/plain",
    "llama/longrope_beyond",
    "gemma2/capped",
    "qwen3/tied",
    "olmo2/grouped",
    "gptj/plain",
    "gpt_neox/parallel",
]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def scores(given: Case, **kwargs):
    return eap(given.lm, given.clean, given.corrupted, metric=given.metric, **kwargs)


def embeddings(given: Case, tokens):
    names = [name for name in ("hook_embed", "hook_pos_embed") if name in given.arch.sites()]
    out = given.run(tokens, capture=names)
    return {name: out[name] for name in names}


def on_the_way(given: Case, alpha):
    """Hooks that put the embedding at ``alpha`` of the way from the corrupted to the clean one."""
    ends = [embeddings(given, tokens) for tokens in (given.corrupted, given.clean)]
    between = jax.tree.map(lambda a, b: a + alpha * (b - a), *ends)
    return {name: jmi.Replace(value) for name, value in between.items()}


def slope(given: Case, alpha: float) -> jax.Array:
    """Derivative of the metric towards the corrupted embedding there, ``[b]``."""
    ends = [embeddings(given, tokens) for tokens in (given.corrupted, given.clean)]

    @jax.jit
    def along(alpha):
        hooks = jax.tree.map(lambda a, b: jmi.Replace(a + alpha * (b - a)), *ends)
        return given.metric(jmi.forward(given.arch, given.params, given.clean, hooks=hooks))

    return -jax.jvp(along, (jnp.float64(alpha),), (jnp.float64(1),))[1]


@each(FAMILIES)
def test_scores_are_differences_times_gradients_at_the_readers(name):
    given = case(name)
    difference = writer_outputs(given, given.corrupted) - writer_outputs(given, given.clean)
    want = jnp.einsum("bswd,bsrd->bwr", difference, reader_gradients(given))
    want = np.where(given.graph.exists, want, 0)
    found = scores(given, per_example=True)
    assert np.abs(want).max() > 1e-3
    assert_agree(found.values, want, "gradients")
    if name in ("gpt2/plain", "gemma2/capped"):
        assert_agree(found.values[:, 0].sum(-1), slope(given, 1), "gradients")
    if name == "gpt2/plain":
        assert_agree(scores(given, remat=False).values, want.mean(0), "gradients")
        assert_agree(found["a0.h1->a1.h2<k>"], want[:, 2, 13 + 4 + 2], "gradients")


@each(["gpt2/plain"])
def test_integrated_scores_average_gradients_along_the_path(name):
    given, steps = case(name), 3
    difference = writer_outputs(given, given.corrupted) - writer_outputs(given, given.clean)
    gradients = [reader_gradients(given, on_the_way(given, k / steps)) for k in (1, 2, 3)]
    want = jnp.einsum("bswd,bsrd->bwr", difference, sum(gradients) / steps)
    found = scores(given, steps=steps, per_example=True)
    assert_agree(found.values, np.where(given.graph.exists, want, 0), "gradients")
    assert_agree(
        scores(given, steps=1, per_example=True).values, scores(given, per_example=True).values, "gradients"
    )


@each(["gpt2/plain"])
def test_integrated_scores_out_of_the_input_sum_to_the_change_of_the_metric(name):
    given = case(name)
    change = given.metric(given.run(given.corrupted)) - given.metric(given.run(given.clean))
    errors = []
    for steps in (16, 32, 64):
        total = scores(given, steps=steps, per_example=True).values[:, 0].sum(-1)
        errors.append(np.abs(total - change))
    # A sum over right ends is off by half a step times the difference of the slopes at both ends.
    assert (errors[2] < 0.05 * np.abs(change)).all()
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.1)
    np.testing.assert_allclose(errors[2] / errors[1], 0.5, atol=0.05)


@each(["gemma2/capped"])
def test_either_run_may_be_the_one_that_is_changed(name):
    given = case(name)
    pair = (given.corrupted, given.clean)
    for steps in (None, 3):
        found = scores(given, into="corrupted", steps=steps)
        swapped = eap(given.lm, *pair, metric=given.metric, steps=steps)
        assert_agree(found.values, swapped.values, "gradients")
        assert found.into == "corrupted"
        assert relative(found.values, scores(given, steps=steps).values) > 0.1
    with pytest.raises(ArgumentError, match="into='base'"):
        scores(given, into="base")


@each(["gemma2/capped", "gptj/plain"])
def test_scores_are_the_first_order_of_removing_an_edge(name):
    given = case(name)
    clean, corrupted = (written(given.lm, x) for x in (given.clean, given.corrupted))
    chosen = np.random.default_rng(0).choice(np.argwhere(given.graph.exists), 12, replace=False)

    def removed(place, amount):
        kept = jnp.asarray(given.graph.exists).at[place[0], place[1]].set(False)
        ablated = jax.tree.map(lambda a, b: a + amount * (b - a), clean, corrupted)
        return given.metric(circuit_model(given.lm, kept, ablated).run(given.clean)).mean()

    effects = jax.jit(jax.vmap(jax.grad(removed, argnums=1), (0, None)))(jnp.asarray(chosen), jnp.float64(0))
    assert_agree(effects, scores(given).values[tuple(chosen.T)], "gradients")


@each(["qwen3/tied"])
def test_padding_changes_nothing(name):
    given = case(name)
    pad = lambda tokens: np.concatenate([np.full((2, 3), 7, np.int32), tokens], axis=1)
    mask = np.concatenate([np.zeros((2, 3), bool), np.ones((2, 6), bool)], axis=1)
    pair = (jmi.Prompts(pad(tokens), mask) for tokens in (given.clean, given.corrupted))
    padded = eap(given.lm, *pair, metric=given.metric)
    right = np.concatenate([given.corrupted, np.full((2, 4), 7, np.int32)], axis=1)
    mixed = jmi.Prompts(pad(given.clean), mask), jmi.Prompts(right, np.arange(10) < [[6], [6]])
    last = jmi.metrics.LogitDiff([3, 5], 7)
    for into in ("clean", "corrupted"):
        want = eap(given.lm, given.clean, given.corrupted, metric=last, into=into).values
        assert_agree(eap(given.lm, *mixed, metric=last, into=into).values, want, "gradients")
    shifted = np.tile(np.arange(6, dtype=np.int32) + 5, (2, 1))
    assert_agree(padded.values, scores(given).values, "gradients")
    pair = (jmi.Prompts(tokens, None, shifted) for tokens in (given.clean, given.corrupted))
    assert relative(eap(given.lm, *pair, metric=given.metric).values, scores(given).values) <= 1e-8


def test_pairs_may_be_mapped_over_and_layers_listed():
    arch = tiny(n_layers=2)
    params = lively(arch, jnp.float64)
    lm = jmi.LanguageModel(arch, params)
    clean, corrupted = np.random.default_rng(0).integers(0, 29, (2, 4, 5)).astype(np.int32)
    goals = jnp.asarray([3, 8, 11, 2], jnp.int32)
    metric = lambda goals, out: jmi.metrics.logit_diff(out.logits[:, -1], goals, 0)
    in_list = jmi.LanguageModel(arch, listed(params))
    whole = eap(in_list, clean, corrupted, metric=jax.tree_util.Partial(metric, goals))

    def one(pair):
        clean, corrupted, goal = (x[None] for x in pair)
        return eap(lm, clean, corrupted, metric=lambda out: metric(goal, out)).values

    each = jax.lax.map(one, (jnp.asarray(clean), jnp.asarray(corrupted), goals))
    assert_agree(each.mean(0), whole.values, "gradients")


@pytest.mark.parametrize("steps", [None, 2])
def test_logits_of_one_position_are_enough_for_a_metric_that_reads_one(steps):
    arch = tiny(n_layers=2)
    params = lively(arch, jnp.float64)
    clean, corrupted = np.random.default_rng(0).integers(0, 29, (2, 4, 5)).astype(np.int32)
    lm, diff = jmi.LanguageModel(arch, params), jmi.metrics.LogitDiff(3, 8)
    run = functools.partial(eap, lm, clean, corrupted, metric=diff, steps=steps)
    assert_agree(run(logits_at=-1).values, run().values, "gradients")
    assert relative(run(logits_at=2).values, run().values) > 0.1
    with pytest.raises(ArgumentError, match="logits_at=5"):
        run(logits_at=5)


def test_other_prompts_and_targets_do_not_compile_again_and_scores_of_bfloat16_are_float32():
    arch = tiny(n_layers=2)
    traces = []

    def metric(goals, out):
        traces.append(1)
        return jmi.metrics.logit_diff(out.logits[:, -1], goals, 0).astype(jnp.float32)

    def run(seed, dtype):
        clean, corrupted, goals = np.random.default_rng(seed).integers(1, 29, (3, 2, 5)).astype(np.int32)
        goal = jax.tree_util.Partial(metric, goals[:, 0])
        return eap(jmi.LanguageModel(arch, lively(arch, dtype)), clean, corrupted, metric=goal).values

    first = run(0, jnp.float32)
    once = len(traces)
    assert not np.array_equal(first, run(1, jnp.float32))
    assert len(traces) == once
    low = run(0, jnp.bfloat16)
    assert low.dtype == first.dtype == jnp.float32
    assert relative(low, first) < 0.1


def sizes_within(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from sizes_within(inner)


def test_nothing_has_an_axis_of_edges_and_positions():
    arch = tiny(n_layers=3)
    params = lively(arch, jnp.float64)
    tokens = np.zeros((2, 40), np.int32)
    metric = lambda out: out.logits[:, -1, 0]
    run = lambda params: eap(jmi.LanguageModel(arch, params), tokens, tokens, metric=metric, steps=3)
    jaxpr = jax.make_jaxpr(run)(params)
    graph = jax.eval_shape(run, params).graph
    written_in_all = graph.n_writers * tokens.size * arch.d_model
    largest = max(x.size for x in sizes_within(jaxpr.jaxpr))
    assert largest == written_in_all < graph.n_writers * graph.read_by_layer * tokens.size * arch.d_model / 8


def test_mistakes_are_named():
    given = case("gpt2/plain")
    with pytest.raises(
        ArgumentError, match="must line up token by token: in row 0 one has 5 tokens, the other 6"
    ):
        eap(given.lm, given.clean, given.corrupted[:, :5], metric=given.metric)
    for steps in (0, 2.5):
        with pytest.raises(ArgumentError, match=f"steps={steps}: give a whole number"):
            scores(given, steps=steps)
    with pytest.raises(ArgumentError, match=r"the metric gave .*\[\]; .* \(2,\)"):
        eap(given.lm, given.clean, given.corrupted, metric=lambda out: out.logits.sum())


@each(["llama/longrope_beyond", "gemma2/capped"])
def test_what_is_written_is_kept_compactly_and_sums_to_the_stream(name):
    given = case(name)
    final = given.run(given.clean, capture=[LAST])[LAST]
    assert_agree(writer_outputs(given, given.clean).sum(2), final, "gradients")
    run = written(given.lm, given.clean)
    assert run.heads.shape == (given.arch.n_layers, 2, 6, given.arch.n_heads, given.arch.d_head)
    assert_agree(
        outputs(given.lm, run),
        jnp.moveaxis(writer_outputs(given, given.clean), 2, 1),
        "gradients",
    )


@jmi.tree.dataclass
class Spoilt:
    """A difference of logits, and ``beside``, and the root of ``under``, which has no slope at 0."""

    beside: Any = np.float32(0)
    under: Any = np.float32(1)

    def __call__(self, out):
        root = jnp.sqrt(self.under + 0 * out.logits[:, -1, 0])
        return jmi.metrics.LogitDiff(3, 8)(out) + self.beside + root


def test_what_is_nan_is_never_shown_as_a_score():
    arch = tiny(n_layers=2)
    params = lively(arch)
    clean, corrupted = np.random.default_rng(0).integers(0, 29, (2, 2, 5)).astype(np.int32)
    metric, beside, root = Spoilt(), Spoilt(beside=np.float32(np.nan)), Spoilt(under=np.float32(0))
    broken = jax.tree.map(lambda x: x, params)
    broken["blocks"]["attn"]["W_V"] = broken["blocks"]["attn"]["W_V"].at[1, 0, 0, 0].set(jnp.nan)
    # Only the corrupted prompt has token 28: its embedding is not a number.
    lacking = {**params, "embed": {"W_E": params["embed"]["W_E"].at[28].set(jnp.nan)}}
    clean, corrupted = np.minimum(clean, 27), corrupted.copy()
    corrupted[1, 2] = 28
    for given, read, steps, words in (
        (broken, metric, None, "clean run gives logits that are NaN"),
        (lacking, metric, None, "corrupted run gives logits that are NaN"),
        (lacking, metric, 2, "corrupted run gives logits that are NaN"),
        (params, beside, None, "metric of the clean run is NaN"),
        (params, root, None, "its gradient has no value"),
    ):
        with pytest.raises(ArgumentError, match=words):
            eap(jmi.LanguageModel(arch, given), clean, corrupted, metric=read, steps=steps)
    found = jax.jit(lambda lm: eap(lm, clean, corrupted, metric=metric))(jmi.LanguageModel(arch, broken))
    assert jnp.isnan(found.values[found.graph.exists]).all()
    for read in (lambda: found.top(3), lambda: top_edges(found, 3), lambda: edges_above(found, 0.1)):
        with pytest.raises(ArgumentError, match="scores that are NaN"):
            read()
    graph = np.ones((1, *found.graph.exists.shape), bool)
    with pytest.raises(ArgumentError, match="the metric of the model is NaN"):
        faithfulness(jmi.LanguageModel(arch, broken), clean, corrupted, graph, metric=metric)
    with pytest.raises(ArgumentError, match="the metric of no edges is NaN"):
        faithfulness(jmi.LanguageModel(arch, lacking), clean, corrupted, graph, metric=metric)
    for technique, given, read, words in (
        (attribution_patching, broken, metric, "clean run gives logits that are NaN"),
        (attribution_patching, params, beside, "metric of the clean run is NaN"),
        (atp_star, lacking, metric, "corrupted run gives logits that are NaN"),
    ):
        run = functools.partial(technique, sites="blocks.0.attn.hook_z", into="clean")
        with pytest.raises(ArgumentError, match=words):
            run(jmi.LanguageModel(arch, given), clean, corrupted, metric=read)
