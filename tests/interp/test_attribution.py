"""Attribution patching and integrated gradients: patching where a model is linear, loops where it is not."""

import jax
import numpy as np
import pytest

import jmi
from jmi.gradients import value_and_grad_at
from jmi.hooks.freeze import frozen
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from tests.interp.attribution_cases import (
    LINEAR,
    SILENT,
    assert_close,
    captured,
    case,
    changes_one_by_one,
    complete,
    held_at_base,
    linear_metric,
    metric,
)
from tests.support.committed import each


@pytest.mark.parametrize("into", ["clean", "corrupted"])
@each(LINEAR)
def test_where_the_model_is_linear_attribution_is_patching(name: str, into: str) -> None:
    """Without MLPs, with patterns and norm denominators frozen, the metric is linear in every node."""
    one = case(name)
    pair = (one.base, one.source) if into == "clean" else (one.source, one.base)
    sites = [f"blocks.*.{s}" for s in ("attn.hook_z", "attn.hook_v", "hook_resid_pre")]
    with jax.enable_x64(True):
        stopped = frozen(one.lm.arch, patterns=True, norms=True)
        run = {"hooks": {**SILENT, **stopped}, "capture": ["blocks.-1.hook_resid_post"]}
        got = attribution_patching(one.lm, *pair, sites, metric=linear_metric, into=into, **run)
        there, held = one.lm.run(one.source, SILENT, sites), held_at_base(one, list(stopped))
        for site in sites:
            want = changes_one_by_one(one, site, {**SILENT, **held}, there[site])
            assert_close(got[site], want)


@each(["tiny", "rwkv7"])
def test_scores_are_the_sums_of_differences_times_gradients(name: str) -> None:
    one = case(name)
    states = ["blocks.*.rwkv.hook_states", "blocks.*.rwkv.hook_r", "blocks.*.mlp.hook_shift_in"]
    sites, keep = states, ("batch", "d_head", "d_key")
    if name == "tiny":
        sites, keep = one.sites(), ("batch", "query", "kv_head", "d_head", "d_mlp")
    with jax.enable_x64(True):
        scores = attribution_patching(*one.arguments, sites, metric=metric, keep=keep)
        found = jax.jit(lambda lm: value_and_grad_at(lm, one.base, metric, sites))(one.lm)
        runs = [one.lm.run(tokens, capture=sites) for tokens in (one.base, one.source)]
        base, source, gradients, got = (captured(out) for out in (*runs, found.grads, scores))
    for point, site in ((p, one.lm.arch.sites()[p]) for p in sites):
        known = np.isfinite(base[point]) & np.isfinite(source[point])
        terms = np.where(known, source[point], 0) - np.where(known, base[point], 0)
        axes = [i - len(site.axes) for i, axis in enumerate(site.axes) if axis not in keep]
        assert_close(got[point], (terms * gradients[point]).sum(tuple(axes)))


def test_the_default_nodes_are_heads_at_positions_and_few_layers_are_some_of_all():
    one, names = case("tiny"), ["blocks.1.attn.hook_z", "blocks.*.attn.hook_k", "hook_embed"]
    every = ["blocks.*.attn.hook_z", *names[1:]]
    with jax.enable_x64(True):
        got, want = (attribution_patching(*one.arguments, sites, metric=metric) for sites in (names, every))
    assert got.names() == [names[0], *(f"blocks.{i}.attn.hook_k" for i in range(3)), "hook_embed"]
    got, want = captured(got), captured(want)
    shapes = {every[0]: (1, 2, 6, 4), every[1]: (3, 2, 6, 2), "hook_embed": (2, 6)}
    assert {point: scores.shape for point, scores in got.items()} == shapes
    want[every[0]] = want[every[0]][1:2]
    assert_close(got, want)


@each(["tiny", "gpt2/plain", "rwkv7"])
def test_steps_average_gradients_along_the_input_embedding(name: str) -> None:
    one, steps = case(name), 3
    sites = [site for site in one.sites() if site.endswith(("hook_embed", "hook_z", "hook_mlp_out"))]
    with jax.enable_x64(True):
        got = captured(
            attribution_patching(*one.arguments, sites, metric=metric, steps=steps, keep=("batch", "pos"))
        )
        base, source = (captured(one.lm.run(x, capture=sites)) for x in (one.base, one.source))
        change = {point: source[point] - base[point] for point in sites}
        total = dict.fromkeys(sites, 0.0)
        run = jax.jit(
            lambda embed: (
                value_and_grad_at(
                    one.lm, one.base, metric, sites, hooks={"hook_embed": jmi.Replace(embed)}
                ).grads.captures
            )
        )
        for step in range(steps):
            gradients = run(base["hook_embed"] + (step + 0.5) / steps * change["hook_embed"])
            total = {p: total[p] + np.asarray(gradients[p]) / steps for p in sites}
    for point in sites:
        axes = tuple(range(3 if "*" in point else 2, change[point].ndim))
        assert_close(got[point], (change[point] * total[point]).sum(axes))


@each(["tiny", "gpt2/plain"])
def test_scores_of_the_embeddings_sum_to_the_change_from_base_to_source(name: str) -> None:
    one = case(name)
    with jax.enable_x64(True):
        scores = {
            steps: attribution_patching(*one.arguments, "hook_embed", metric=metric, steps=steps)
            for steps in (128, 512)
        }
        before, after = (np.asarray(metric(one.lm.run(tokens))) for tokens in (one.base, one.source))
    complete(scores, after - before)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("gemma2/capped", ["blocks.1.hook_resid_mid"]),
        ("tiny", ["blocks.*.attn.hook_v", "blocks.0.attn.hook_q"]),
    ],
)
def test_integrated_gradients_sum_to_the_change_by_patching(name: str, sites: list[str]) -> None:
    one = case(name)
    with jax.enable_x64(True):
        scores = {
            steps: integrated_gradients(*one.arguments, sites, metric=metric, steps=steps)
            for steps in (128, 512)
        }
        there = one.lm.run(one.source, capture=sites)
        whole = {name: jmi.Patch(there[name]) for name in there.names()}
        before, after = (np.asarray(metric(one.lm.run(one.base, hooks))) for hooks in (None, whole))
    complete(scores, after - before)
