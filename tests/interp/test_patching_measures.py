"""What a patched run is measured by, and what is refused: metrics, effects, recovery, bad arguments."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

import jmi
from jmi import metrics
from jmi.errors import ArgumentError, HookError, InterventionError
from jmi.interp.patching.patch import patch
from jmi.sweeps.work import _program
from tests.interp.by_hand import CLEAN, CORRUPTED, MEASURES, diff, same, small


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def test_noising_denoising_and_recovery() -> None:
    lm = small()
    logits = {
        name: np.asarray(lm.run(t).logits[:, -1]) for name, t in (("base", CORRUPTED), ("source", CLEAN))
    }
    measures = {**MEASURES, "kl": metrics.KL(logits["base"])}
    found = patch(lm, CLEAN, CORRUPTED, "hook_resid_pre", metric=measures, over=("layer",))
    same(found.base["diff"], diff(logits["base"]))
    same(found.source["diff"], diff(logits["source"]))
    same(found.recovery["diff"], np.ones((3, 2)))
    same(found.effect["diff"], np.tile(diff(logits["source"]) - diff(logits["base"]), (3, 1)))
    p, q = softmax(logits["base"], -1), softmax(logits["source"], -1)
    same(found.patched["kl"], np.tile(rel_entr(p, q).sum(-1), (3, 1)))
    back = patch(lm, CLEAN, CORRUPTED, "hook_resid_pre", metric=measures, over=("layer",), into="clean")
    same(back.patched["kl"], np.zeros((3, 2)))
    same(back.base["diff"], diff(logits["source"]))
    same(back.source["diff"], diff(logits["base"]))
    assert (found.into, back.into) == ("corrupted", "clean")
    nothing = patch(lm, CORRUPTED, CORRUPTED, "attn.hook_z", metric=measures)
    same(nothing.effect["diff"], np.zeros((3, 5, 2)))
    assert np.isnan(nothing.recovery["diff"]).all()
    assert found.effect["rank"].dtype == np.float64


def test_metrics_are_the_functions_of_their_names() -> None:
    logits, other = np.random.default_rng(0).normal(size=(2, 3, 29))
    token = np.array([4, 0, 28])
    for metric, function in (
        (metrics.LogitDiff(token, 2), metrics.logit_diff(logits, token, 2)),
        (metrics.Prob(token), metrics.prob(jnp.asarray(logits), token)),
        (metrics.LogProb(7), metrics.log_prob(jnp.asarray(logits), 7)),
        (metrics.Rank(token), metrics.rank(jnp.asarray(logits), token)),
        (metrics.KL(other), metrics.kl_divergence(jnp.asarray(other), jnp.asarray(logits))),
    ):
        np.testing.assert_array_equal(metric(jmi.Output(jnp.asarray(logits), {})), function)
        every = np.stack([other, logits], axis=1)
        np.testing.assert_array_equal(metric(jmi.Output(jnp.asarray(every), {})), function)


def test_other_tokens_and_answers_compile_nothing_anew() -> None:
    lm = small()
    patch(lm, CLEAN, CORRUPTED, "hook_attn_out", metric={"diff": metrics.LogitDiff([0, 1], [2, 3])})
    known = _program.cache_info().misses
    patch(lm, CORRUPTED, CLEAN, "hook_attn_out", metric={"diff": metrics.LogitDiff([4, 5], [6, 7])})
    assert _program.cache_info().misses == known


def test_a_metric_may_be_one_or_several_or_return_a_dict() -> None:
    lm = small()
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, "hook_attn_out", over=("layer",))
    several, alone = run(metric=MEASURES), run(metric=MEASURES["diff"])
    same(alone.patched, several.patched["diff"])
    same(alone.effect, several.effect["diff"])
    same(alone.recovery, several.recovery["diff"])

    def both(out: jmi.Output) -> dict[str, jax.Array]:
        return {"last": out.logits[:, 0], "first": out.logits[:, 1]}

    found = run(metric={"logit": both, "diff": MEASURES["diff"]})
    same(found.patched["diff"], alone.patched)
    assert found.patched["logit"]["first"].shape == found.recovery["logit"]["last"].shape == (3, 2)
    assert repr(alone) == "PatchResult(into='corrupted', layer 3, rows 2)"


def test_what_does_not_fit_is_refused() -> None:
    lm = small()
    run = functools.partial(patch, lm, CLEAN, CORRUPTED, metric=MEASURES)
    with pytest.raises(ArgumentError, match="over='head': use one of"):
        run("hook_resid_pre", over=("layer", "head"))
    with pytest.raises(ArgumentError, match="must name one or more"):
        run("hook_resid_pre", over=())
    with pytest.raises(ArgumentError, match="it has no layer"):
        run("hook_embed", at={"layer": [0]})
    with pytest.raises(HookError, match="layers 0 to 2"):
        run("hook_resid_pre", at={"layer": [3]})
    with pytest.raises(HookError, match="no such point"):
        run("hook_resid_prae")
    with pytest.raises(InterventionError, match="out of range"):
        run("hook_resid_pre", at={"position": [5]})
    with pytest.raises(ArgumentError, match="comes after"):
        run("hook_final_norm")
    with pytest.raises(ArgumentError, match="one point at a time"):
        run("blocks.*.attn.*")
    with pytest.raises(ArgumentError, match="names its layer"):
        run("blocks.1.hook_resid_pre", at={"layer": [0]})
    with pytest.raises(ArgumentError, match="give a metric, or a dict"):
        run("hook_resid_pre", metric={})
    with pytest.raises(ArgumentError, match="token ids must be"):
        run("hook_resid_pre", metric={"p": metrics.Prob(29)})
    with pytest.raises(ArgumentError, match="one number per row"):
        run("hook_resid_pre", metric={"p": lambda out: out.logits.sum()})
    with pytest.raises(ArgumentError, match="give corrupted=None"):
        run("hook_resid_pre", using="zero")
    with pytest.raises(ArgumentError, match="give corrupted"):
        patch(lm, CORRUPTED, None, "hook_resid_pre", metric=MEASURES)
    with pytest.raises(ArgumentError, match="use one of 'source'"):
        run("hook_resid_pre", using="noise")
    with pytest.raises(ArgumentError, match="two rows"):
        patch(lm, CORRUPTED[:1], None, "hook_resid_pre", metric=metrics.Prob(3), using="resample")
    with pytest.raises(ArgumentError, match=r"token=.* give one id, or \[2\] of them"):
        run("hook_resid_pre", metric=metrics.Prob([1, 2, 3]))
    with pytest.raises(ArgumentError, match="give one for each"):
        patch(lm, np.concatenate([CLEAN] * 2)[:3], CORRUPTED, "hook_resid_pre", metric=MEASURES)
    with pytest.raises(ArgumentError, match="one vector per position"):
        run("attn.hook_pattern", using="random")
    with pytest.raises(ArgumentError, match="use one of 'clean', 'corrupted'"):
        run("hook_resid_pre", into="source")
    with pytest.raises(ArgumentError, match="needs a corrupted prompt"):
        patch(lm, CLEAN, None, "hook_resid_pre", metric=MEASURES, using="mean", into="corrupted")
    with pytest.raises(ArgumentError, match="at='heads': use one of"):
        run("attn.hook_z", at={"heads": 1})
    with pytest.raises(ArgumentError, match=r"positions: no such argument; .*at={'position': -1}"):
        run("attn.hook_z", positions=-1)
    with pytest.raises(ArgumentError, match="give a dict of axes"):
        run("attn.hook_z", at=[1])
    with pytest.raises(ArgumentError, match="give a LanguageModel"):
        patch(lm.arch, CLEAN, CORRUPTED, "hook_resid_pre", metric=MEASURES)
