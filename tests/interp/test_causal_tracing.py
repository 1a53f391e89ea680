"""Noise, and causal traces against runs written by hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import jmi
import jmi_models
from jmi import metrics
from jmi.align import find_span
from jmi.errors import ArgumentError
from jmi.hooks.noise import Noise
from jmi.interp.patching.causal_tracing import causal_trace, embedding_std
from jmi.sweeps.work import _program
from tests.core.conftest import lively, tiny
from tests.support.committed import load
from tests.support.tolerances import assert_agree

TOKENS = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
SUBJECT = [1, 2]


@functools.cache
def small() -> jmi.LanguageModel:
    with jax.enable_x64(True):
        arch = tiny(n_layers=3)
        return jmi.LanguageModel(arch, lively(arch, jnp.float64), name="tiny")


@pytest.mark.parametrize(("site", "window"), [("hook_resid_post", 1), ("hook_mlp_out", 2)])
def test_traces_equal_runs_written_by_hand(site: str, window: int) -> None:
    lm = small()
    with jax.enable_x64(True):
        trace = causal_trace(lm, TOKENS, SUBJECT, site=site, window=window, scale=0.7, seeds=(3, 4))
        clean = lm.run(TOKENS, capture=["hook_embed", f"blocks.*.{site}"])
        answer = np.asarray(clean.logits)[:, -1].argmax(-1)

        def p(out: Any) -> np.ndarray:
            return softmax(np.asarray(out.logits)[:, -1], axis=-1)[[0, 1], answer]

        assert_agree(trace.source, p(clean))
        assert trace.patched.shape == (2, 3, 6, 2)
        for i, seed in enumerate((3, 4)):
            noise = jax.random.normal(jax.random.key(seed), (2, 6, 16), jnp.float64)
            embed = clean["hook_embed"].at[:, 1:3].add(0.7 * noise[:, 1:3])
            noised = {"hook_embed": jmi.Replace(embed)}
            assert_agree(trace.base[i, 0, 0], p(lm.run(TOKENS, noised)))
            for layer, position in ((0, 2), (1, 1), (2, 5)):
                restored = range(max(0, layer - window // 2), min(3, layer + (window + 1) // 2))
                hooks = {
                    f"blocks.{j}.{site}": jmi.Patch(clean.stack(site)[j], positions=position)
                    for j in restored
                }
                want = p(lm.run(TOKENS, {**noised, **hooks}))
                assert_agree(trace.patched[i, layer, position], want)


def test_seeds_are_an_axis_of_one_sweep() -> None:
    """Neither programs nor traces of the metric grow with them."""
    lm, traced = small(), []

    def first_logit(out: jmi.Output) -> jax.Array:
        traced.append(out.logits.shape)
        return out.logits[:, 0]

    def traces(seeds: Any) -> tuple[int, int]:
        known, before = _program.cache_info().misses, len(traced)
        causal_trace(lm, TOKENS, SUBJECT, metric=first_logit, scale=1.0, seeds=seeds, at={"layer": [0, 2]})
        return _program.cache_info().misses - known, len(traced) - before

    with jax.enable_x64(True):
        one, several = traces([7]), traces([8, 9, 10])
    assert several[0] <= one[0]
    assert several[1] <= one[1]


def test_each_row_has_its_own_subject_and_metrics_may_be_several() -> None:
    lm = small()
    with jax.enable_x64(True):
        measures = {"diff": metrics.LogitDiff(1, 2), "rank": metrics.Rank(1)}
        run = functools.partial(
            causal_trace,
            lm,
            TOKENS,
            metric=measures,
            scale=1.0,
            seeds=(0,),
            at={"layer": [1], "position": [2, 5]},
        )
        found = run([[1, 2], [3, 3]])
        for row, subject in enumerate(([1, 2], [3])):
            assert_agree(found.patched["diff"][..., row], run(subject).patched["diff"][..., row])
    with pytest.raises(ArgumentError, match="seeds="):
        causal_trace(lm, TOKENS, SUBJECT, seeds=())


def test_the_default_noise_is_three_deviations_of_the_embeddings() -> None:
    for lm, scale in (
        (small(), 1.0),
        (load("gemma2/capped", "float64"), load("gemma2/capped").arch.embed_scale),
    ):
        with jax.enable_x64(True):
            table = np.asarray(lm.params["embed"]["W_E"]) * scale
            assert embedding_std(lm) == pytest.approx(table.std(), rel=1e-6)
    with jax.enable_x64(True):
        run = functools.partial(
            causal_trace, small(), TOKENS, SUBJECT, seeds=(1,), at={"layer": [0], "position": [0, 1]}
        )
        default, said = run(), run(scale=3 * embedding_std(small()))
    np.testing.assert_array_equal(default.patched, said.patched)


def test_the_capital_passes_from_the_subject_to_the_last_token() -> None:
    lm = jmi_models.load("atlas")
    text = "The capital of France is"
    start, stop = find_span(lm, text, "France")
    trace = causal_trace(lm, text, range(start, stop), seeds=range(3))
    found = trace.patched.mean(0)[..., 0]
    noised, clean = trace.base.mean(), trace.source.item()
    assert clean > 0.9
    assert noised < 0.2
    assert found[0, stop - 1] > 0.8 * clean
    assert found[-1, stop - 1] < noised + 0.1
    assert found[0, -1] < noised + 0.1
    assert found[-1, -1] == pytest.approx(clean, abs=1e-4)
    others = [i for i in range(found.shape[1]) if i not in (*range(start, stop), found.shape[1] - 1)]
    assert (np.abs(found[:, others] - noised) < 0.1).all()


def test_noise_is_gaussian_selected_and_of_its_seed() -> None:
    lm = jmi_models.load("atlas")
    tokens = np.tile(lm.encode("The capital of France is"), (16, 1))

    def added(noise: Noise, point: str = "hook_embed") -> np.ndarray:
        before, after = (
            np.asarray(lm.run(tokens, {point: noise}, [jmi.Capture(point, when=when, label=when)])[when])
            for when in ("before", "after")
        )
        return after - before

    given = added(Noise(0.5, 3, positions=[1, -1], rows=range(1, 16)))
    chosen = given[1:, [1, -1]]
    assert (given[0] == 0).all()
    assert (np.delete(given, [1, given.shape[1] - 1], axis=1) == 0).all()
    # 5 standard errors of the mean and of the deviation.
    n = chosen.size
    assert abs(chosen.mean()) < 5 * 0.5 / np.sqrt(n)
    assert chosen.std() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2 * n))
    flat = chosen.reshape(-1, chosen.shape[-1])
    assert len(np.unique(flat[:, 0])) == len(flat)
    np.testing.assert_array_equal(given, added(Noise(0.5, 3, positions=[1, -1], rows=range(1, 16))))
    np.testing.assert_allclose(given, added(Noise(0.5, 3))[...] * (given != 0), atol=1e-6)
    assert (added(Noise(0.5, 4))[1:, 1] != given[1:, 1]).mean() > 0.99
    assert (added(Noise(0.0, 4)) == 0).all()


def test_layers_are_drawn_independently_and_seeds_can_be_swept() -> None:
    lm = small()
    with jax.enable_x64(True):
        before = lm.run(TOKENS, capture=["hook_embed"])["hook_embed"]
        zero = {"blocks.*.hook_attn_out": jmi.Zero(), "blocks.*.hook_mlp_out": jmi.Zero()}
        out = lm.run(
            TOKENS, {**zero, "blocks.*.hook_resid_post": Noise(1.0, 7)}, ["blocks.*.hook_resid_post"]
        )
        stream = np.concatenate([np.asarray(before)[None], np.asarray(out.stack("hook_resid_post"))])
        steps = np.diff(stream, axis=0).reshape(3, -1)
        assert np.abs(np.corrcoef(steps) - np.eye(3)).max() < 0.4
        assert np.abs(steps[0] - steps[1]).min() > 0
        grid = jmi.Grid(cell=[0, 1])
        hooks = {"hook_embed": Noise(grid.take("cell", [1.0, 2.0]), grid.take("cell", [5, 6]))}
        swept = jmi.sweep(lm, TOKENS, hooks, last, logits_at=-1)
        for i in range(2):
            want = lm.run(TOKENS, {"hook_embed": Noise(i + 1.0, 5 + i)}).logits[:, -1]
            assert_agree(swept[i], want)


def last(out: jmi.Output) -> jax.Array:
    return out.logits
