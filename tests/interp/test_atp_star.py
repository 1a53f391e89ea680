"""AtP*: the change of a pattern that one node makes, and the mean over layers whose additions are dropped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi.gradients import value_and_grad_at
from jmi.hooks.freeze import frozen
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching
from tests.interp.attribution_cases import (
    LINEAR,
    PATTERN,
    SILENT,
    Case,
    assert_close,
    by_node,
    captured,
    case,
    changes_one_by_one,
    held_at_base,
    linear_metric,
    metric,
    nodes,
    with_patch,
)
from tests.support.committed import each
from tests.support.tolerances import assert_agree


@each(LINEAR)
def test_where_values_are_linear_the_qk_fix_is_patching(name: str) -> None:
    """In the last layer, without its MLP and with the norms behind frozen, only the softmax bends."""
    one, last = case(name), case(name).lm.arch.n_layers - 1
    with jax.enable_x64(True):
        stopped = frozen(one.lm.arch, norms=True)
        capture, hooks = ["blocks.-1.hook_resid_post"], {**SILENT, **stopped}
        sites = ["blocks.*.attn.hook_q", "blocks.*.attn.hook_k"]
        got = atp_star(
            *one.arguments, sites, metric=linear_metric, grad_drop=False, hooks=hooks, capture=capture
        )
        there, held = one.lm.run(one.source, SILENT, sites), held_at_base(one, list(stopped))
        for site in sites:
            want = changes_one_by_one(one, site, {**SILENT, **held}, there[site])
            assert_close(got[site][last], want[last])


def test_rows_are_pairs_of_their_own():
    one = case("tiny")
    with jax.enable_x64(True):
        sites = ["hook_embed", "blocks.*.attn.hook_k"]
        whole = atp_star(*one.arguments, sites, metric=metric)
        pairs = [(one.source[i : i + 1], one.base[i : i + 1]) for i in range(2)]
        rows = [atp_star(one.lm, *pair, sites, metric=metric) for pair in pairs]
        for name in whole.names():
            assert_agree(whole[name], np.concatenate([row[name] for row in rows]))


def test_padding_has_no_score_and_changes_none():
    one = case("tiny")
    pads = lambda x: np.pad(x, ((0, 0), (2, 0)), constant_values=5)
    mask = np.pad(np.ones((2, 6), bool), ((0, 0), (2, 0)))
    sites = ["blocks.*.attn.hook_q", "blocks.*.attn.hook_k", "blocks.*.mlp.hook_out"]
    with jax.enable_x64(True):
        want = atp_star(*one.arguments, sites, metric=metric)
        padded = ((pads(one.source), mask), (pads(one.base), mask))
        got = atp_star(one.lm, *padded, sites, metric=metric)
        for site in sites:
            assert_close(got[site][:, :, 2:], want[site])
            assert not np.asarray(got[site][:, :, :2]).any()


def gradients(case: Case, points: list[str], dropped: Any) -> dict[str, np.ndarray]:
    """Gradients of the metric ``[n, ...]``, those through what the ``dropped`` layers add stopped.

    Args:
      dropped: bool ``[n, layers]``.
    """
    stop = jax.tree_util.Partial(lambda value, site: jax.lax.stop_gradient(value))

    @jax.jit
    def run(params: Any, dropped: Any) -> Any:
        def one(layers: Any) -> Any:
            hooks = {f"blocks.*.hook_{name}_out": jmi.At(layers, stop) for name in ("attn", "mlp")}
            lm = jmi.LanguageModel(case.lm.arch, params)
            return value_and_grad_at(lm, case.base, metric, points, hooks=hooks).grads

        return jax.lax.map(one, dropped).captures

    return {point: np.array(value) for point, value in run(case.lm.params, dropped).items()}


def effects_one_by_one(case: Case, point: str, slopes: np.ndarray) -> list[np.ndarray]:
    """Change of the pattern of a node's layer, when it alone is patched, times each of ``slopes``."""

    @jax.jit
    def run(params: Any, there: Any, slopes: Any) -> Any:
        def pattern(hooks: Any) -> jax.Array:
            return jmi.forward(case.lm.arch, params, case.base, hooks=hooks, capture=[PATTERN])[PATTERN]

        def effect(node: jax.Array) -> jax.Array:
            change = pattern(with_patch(point, there, node, True)) - pattern({})
            return jnp.einsum("bhqt,nbhqt->nb", change[node[0]], slopes[:, node[0]])

        return jax.lax.map(effect, jnp.asarray(nodes(case, point)))

    there = case.lm.run(case.source, capture=[point])[point]
    found = np.asarray(run(case.lm.params, there, slopes))
    return [by_node(case, point, found[:, n]) for n in range(len(slopes))]


QK = {
    "tiny": ["blocks.*.hook_q_input", "blocks.*.hook_k_input"],
    "gemma2/capped": ["blocks.*.attn.hook_rot_q", "blocks.*.attn.hook_rot_k"],
    "falcon/alibi": ["blocks.*.attn.hook_q", "blocks.*.attn.hook_k"],
    "gpt2/plain": ["blocks.*.attn.hook_q", "blocks.*.attn.hook_k"],
}
"""Grouped heads; soft-cap and window; linear biases; no rotary embedding."""


@each(QK)
def test_the_qk_fix_is_the_change_of_the_pattern_of_each_node(name: str) -> None:
    one = case(name)
    with jax.enable_x64(True):
        got = atp_star(*one.arguments, QK[name], metric=metric, grad_drop=False)
        slopes = gradients(one, [PATTERN], np.zeros((1, one.lm.arch.n_layers), bool))[PATTERN]
        for site in QK[name]:
            assert_close(got[site], *effects_one_by_one(one, site, slopes))


def test_the_qk_fix_in_few_layers_and_summed_axes_is_part_of_the_whole():
    one, site = case("tiny"), "blocks.1.attn.hook_k"
    with jax.enable_x64(True):
        some = atp_star(*one.arguments, [site], metric=metric, grad_drop=False, keep=["batch"])
        every = atp_star(*one.arguments, ["blocks.*.attn.hook_k"], metric=metric, grad_drop=False)
        assert_close(some[site], every[site].sum((1, 2)))


DROPPED = {
    "tiny": (["hook_embed", "blocks.*.hook_mlp_out"], ["blocks.*.attn.hook_k"]),
    "gemma2/capped": (["blocks.*.attn.hook_z", "blocks.*.hook_mlp_out"], ["blocks.*.attn.hook_q"]),
    "gpt_neox/parallel": (["blocks.*.attn.hook_z", "blocks.*.hook_resid_post"], []),
    "rwkv6": (["blocks.*.rwkv.hook_z", "blocks.*.hook_mlp_out"], []),
}
"""Sites without and with the QK fix."""


@each(DROPPED)
def test_grad_drop_is_the_mean_over_layers_left_out(name: str) -> None:
    one, (plain, fixed) = case(name), DROPPED[name]
    others = one.lm.arch.n_layers - 1
    with jax.enable_x64(True):
        got = captured(atp_star(*one.arguments, [*plain, *fixed], metric=metric))
        base, source = (captured(one.lm.run(x, capture=plain)) for x in (one.base, one.source))
        slopes = gradients(one, [*plain, *[PATTERN] * len(fixed)], np.eye(others + 1, dtype=bool))
        for point in plain:
            if point == "blocks.*.hook_mlp_out":
                # The gradient at what the layer itself adds is one of those that are dropped.
                slopes[point][np.diag_indices(others + 1)] = 0
            sums = ((source[point] - base[point]) * slopes[point]).sum(-1)
            assert_close(got[point], np.abs(sums).sum(0) / others)
        for point in fixed:
            effects = effects_one_by_one(one, point, slopes[PATTERN])
            assert_close(got[point], sum(map(np.abs, effects)) / others)


def test_without_either_correction_atp_star_is_attribution_patching():
    one, sites = case("tiny"), ["blocks.*.attn.hook_q", "blocks.0.mlp.hook_post"]
    with jax.enable_x64(True):
        got = atp_star(*one.arguments, sites, metric=metric, qk_fix=False, grad_drop=False)
        want = attribution_patching(*one.arguments, sites, metric=metric)
        for site in sites:
            assert_agree(got[site], want[site])
