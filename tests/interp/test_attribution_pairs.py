"""Attribution between two prompts: which one is changed, where tokens meet, and several metrics at once."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.interp.repadded import repadded
from jmi.metrics import LogitDiff, LogProb
from tests.core.conftest import lively, tiny
from tests.interp.attribution_cases import case, complete, metric
from tests.support.committed import load
from tests.support.tolerances import assert_agree

SITES = ["blocks.*.attn.hook_q", "blocks.*.attn.hook_k", "blocks.1.mlp.hook_post"]
METHODS = pytest.mark.parametrize(
    "method", [attribution_patching, atp_star, functools.partial(integrated_gradients, steps=2)]
)


@METHODS
def test_into_says_which_of_the_two_runs_is_changed(method: Any) -> None:
    one = case("tiny")
    with jax.enable_x64(True):
        pair = (one.lm, one.base, one.source, SITES)
        denoised, noised = method(*pair, metric=metric), method(*pair, metric=metric, into="clean")
        swapped = method(one.lm, one.source, one.base, SITES, metric=metric, into="clean")
    assert (denoised.into, noised.into) == ("corrupted", "clean")
    assert_agree(swapped.captures, denoised.captures)
    key = "blocks.*.attn.hook_q"
    assert not np.allclose(np.abs(noised[key]), np.abs(denoised[key]), rtol=0.01)


METRICS = {"difference": LogitDiff(4, np.array([5, 6])), "own": metric}


@pytest.mark.parametrize(
    "method",
    [
        attribution_patching,
        functools.partial(attribution_patching, steps=2),
        functools.partial(integrated_gradients, steps=2),
        atp_star,
        functools.partial(atp_star, grad_drop=False),
    ],
)
def test_each_of_several_metrics_has_the_scores_that_it_has_alone(method: Any) -> None:
    one = case("tiny")
    with jax.enable_x64(True):
        found = method(*one.arguments, SITES, metric=METRICS)
        assert sorted(found) == sorted(METRICS)
        for name, alone in METRICS.items():
            want = method(*one.arguments, SITES, metric=alone)
            assert_agree(found[name].captures, want.captures, "gradients")
            assert found[name].names() == want.names()
    assert not np.allclose(found["difference"][SITES[0]], found["own"][SITES[0]], rtol=0.01)


def test_several_metrics_share_the_runs() -> None:
    one, traces = case("tiny"), []

    def count(value: Any, site: Any) -> Any:
        traces.append(site)
        return value

    def traced(metric: Any) -> int:
        traces.clear()
        # A new object, so that nothing is known of it.
        hook = {"blocks.*.hook_resid_mid": lambda value, site: count(value, site)}
        attribution_patching(*one.arguments, SITES, metric=metric, hooks=hook)
        return len(traces)

    with jax.enable_x64(True):
        assert traced(METRICS) == traced(metric) > 0


LENGTHS = (4, 6)


def padded(ids: np.ndarray, starts: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `LENGTHS` tokens that begin at ``starts``, and their mask."""
    tokens, mask = np.full((2, size), 7, np.int32), np.zeros((2, size), bool)
    for row, (start, n) in enumerate(zip(starts, LENGTHS, strict=True)):
        tokens[row, start : start + n], mask[row, start : start + n] = ids[row, :n], True
    return tokens, mask


@METHODS
@pytest.mark.parametrize("starts", [((4, 2), 8), ((0, 0), 6), ((1, 3), 9)])
def test_the_source_may_be_padded_on_another_side(method: Any, starts: Any) -> None:
    one = case("tiny")
    base, alike = padded(one.base, (0, 1), 7), padded(one.source, (0, 1), 7)
    with jax.enable_x64(True):
        want = method(one.lm, alike, base, SITES, metric=metric)
        got = method(one.lm, padded(one.source, *starts), base, SITES, metric=metric)
    assert_agree(got.captures, want.captures)


def test_positions_move_with_their_tokens() -> None:
    one = case("tiny")
    tokens, mask = padded(one.source, (2, 0), 6)
    positions = np.where(mask, np.arange(6) + 10, 0).astype(np.int32)
    base = jmi.Prompts(*padded(one.base, (1, 2), 8))
    moved = repadded(jmi.Prompts(tokens, mask, positions), base)
    for row, (start, n) in enumerate(zip((1, 2), LENGTHS, strict=True)):
        here, there = np.s_[row, start : start + n], np.s_[row, (2, 0)[row] : (2, 0)[row] + n]
        np.testing.assert_array_equal(moved.tokens[here], tokens[there])
        np.testing.assert_array_equal(moved.positions[here], positions[there])
    np.testing.assert_array_equal(moved.mask, base.mask)


def test_rows_of_other_lengths_have_no_scores_where_masks_are_traced() -> None:
    lm = jmi.LanguageModel(tiny(2), lively(tiny(2)))
    tokens = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
    mask = np.arange(6) < np.array([[4], [6]])
    other = np.arange(6) < np.array([[5], [6]])
    run = lambda mask, other: attribution_patching(
        lm, (tokens, mask), (tokens[::-1], other), "hook_embed", metric=metric
    )["hook_embed"]
    found = np.asarray(jax.jit(run)(mask, other))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    with pytest.raises(ArgumentError, match="in row 0 one has 4 tokens, the other 5"):
        run(mask, other)


def test_texts_are_prompts() -> None:
    lm = jmi_models.load("atlas")
    clean, corrupted = "The capital of France is", "The capital of Italy is"
    diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
    site = "blocks.*.attn.hook_z"
    text = attribution_patching(lm, clean, corrupted, site, metric=diff)
    tokens = attribution_patching(lm, lm.encode(clean), lm.encode(corrupted), site, metric=diff)
    several = attribution_patching(lm, [clean, corrupted], [corrupted, clean], site, metric=diff)
    assert_agree(text.captures, tokens.captures)
    assert_agree(several.stack("attn.hook_z")[:, :1], text.stack("attn.hook_z"), "gradients")


def test_other_positions_of_the_source_are_a_part_of_its_embedding() -> None:
    """Learned positions lie on the line from base to source, too: scores sum to the whole change."""
    lm, one = load("gpt2/plain", "float64"), case("gpt2/plain")
    source = jmi.Prompts(
        one.source, positions=np.arange(7, dtype=np.int32)[None] + np.array([[0], [3]], np.int32)
    )
    with jax.enable_x64(True):
        scores = {
            steps: attribution_patching(
                lm, source, one.base, ["hook_embed", "hook_pos_embed"], metric=metric, steps=steps
            )
            for steps in (128, 512)
        }
        before, after = (np.asarray(metric(lm.run(prompts))) for prompts in (one.base, source))
    assert np.asarray(scores[128]["hook_pos_embed"])[1].any()
    complete(scores, after - before)


def test_scores_can_be_kept_as_json_and_are_shown_in_a_line() -> None:
    one = case("tiny")
    with jax.enable_x64(True):
        scores = attribution_patching(*one.arguments, SITES[1:], metric=metric)
    kept = json.loads(scores.to_json())
    assert kept["into"] == "corrupted"
    assert sorted(kept["scores"]) == sorted(scores.names())
    for name, values in kept["scores"].items():
        assert values["axes"] == ["batch", "pos", "kv_head"][: scores[name].ndim]
        np.testing.assert_array_equal(values["values"], scores[name])
    assert repr(scores) == (
        "NodeScores(into='corrupted': blocks.*.attn.hook_k [3, 2, 6, 2], blocks.*.mlp.hook_post [1, 2, 6])"
    )


@pytest.mark.parametrize("technique", [attribution_patching, atp_star])
def test_scores_that_are_no_numbers_are_one_error_that_says_where_it_began(technique: Any) -> None:
    arch = tiny(2)
    params, tokens = lively(arch), np.random.default_rng(0).integers(0, 28, (2, 2, 5)).astype(np.int32)
    clean, corrupted = tokens
    # Only the corrupted prompt has token 28: its embedding is not a number.
    corrupted[1, 2] = 28
    lacking = {**params, "embed": {"W_E": params["embed"]["W_E"].at[28].set(jnp.nan)}}
    diff = LogitDiff(3, 8)
    beside = lambda out: out.logits[:, -1, 0] + jnp.where(out.logits[:, 0, 0] < 1e9, jnp.nan, 0)
    root = lambda out: jnp.sqrt(0 * out.logits[:, -1, 0])
    for weights, into, measure, words in (
        (lacking, "clean", diff, "the corrupted run gives logits that are NaN"),
        (lacking, "corrupted", diff, "the corrupted run gives logits that are NaN"),
        (params, "corrupted", beside, "the metric of the corrupted run is NaN"),
        (params, "clean", {"diff": diff, "beside": beside}, "the metric 'beside' of the clean run is NaN"),
        (params, "clean", root, "its gradient has no value"),
    ):
        lm = jmi.LanguageModel(arch, weights)
        with pytest.raises(ArgumentError, match=words):
            technique(lm, clean, corrupted, "blocks.0.attn.hook_z", metric=measure, into=into)


def test_what_is_no_pair_or_no_metric_is_refused() -> None:
    lm = jmi.LanguageModel(tiny(), lively(tiny()))
    tokens = np.random.default_rng(0).integers(0, 29, (2, 7)).astype(np.int32)
    run = functools.partial(attribution_patching, lm, tokens, tokens[::-1], "hook_embed")
    with pytest.raises(ArgumentError, match="in row 0 one has 7 tokens, the other 6"):
        attribution_patching(lm, tokens, tokens[:, 1:], "hook_embed", metric=metric)
    with pytest.raises(ArgumentError, match="1 and 2 rows"):
        attribution_patching(lm, tokens[:1], tokens, "hook_embed", metric=metric)
    with pytest.raises(ArgumentError, match=r"make one with jmi\.LanguageModel"):
        attribution_patching(lm.arch, tokens, tokens, "hook_embed", metric=metric)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="into='base': use one of 'clean', 'corrupted'"):
        run(metric=metric, into="base")
    with pytest.raises(ArgumentError, match="a dict with one or more"):
        run(metric={})
    with pytest.raises(ArgumentError, match="metric 'diff'=3: give a function"):
        run(metric={"diff": 3})
    with pytest.raises(ArgumentError, match="token ids of LogProb must be 0 to 28; found 29"):
        run(metric={"diff": LogitDiff(3, 4), "other": LogProb(29)})
