"""Attribution: equal to patching where the model is linear, and to explicit loops where it is not.

Axis letters: l layers, b batch, s positions, h heads, g key/value heads, q query, t key.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from jmi.gradients import value_and_grad_at
from jmi.hooks.freeze import frozen
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.metrics import LogitDiff, log_prob
from tests.core.conftest import lively, tiny
from tests.oracles import grid
from tests.support import random_rwkv
from tests.support.committed import each, load
from tests.support.tolerances import assert_agree

LINEAR = ["gemma2/capped", "phi/qk_norm_grouped"]
"""Sandwich norms, soft-caps, windows; parallel blocks. Both have grouped heads."""

PATTERN = "blocks.*.attn.hook_pattern"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model in float64 with two batches of prompts."""

    lm: jmi.LanguageModel
    base: np.ndarray
    source: np.ndarray

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The base is the run that is changed by default, the corrupted one."""
        return self.lm, self.source, self.base

    def sites(self) -> list[str]:
        return [point for point, site in self.lm.arch.sites().items() if not site.derived]


@functools.cache
def case(name: str) -> Case:
    if name.startswith("rwkv"):
        return Case(random_rwkv.load(int(name[4])), random_rwkv.TOKENS, random_rwkv.TOKENS[::-1, ::-1])
    if name == "tiny":
        with jax.enable_x64(True):
            lm = jmi.LanguageModel(tiny(3), lively(tiny(3), jnp.float64))
        base = np.random.default_rng(0).integers(0, 29, (2, 6)).astype(np.int32)
        return Case(lm, base, base[::-1, ::-1])
    base = grid.committed(name).tokens[:, :7]
    return Case(load(name, "float64"), base, base[::-1, ::-1])


@functools.cache
def small() -> tuple[jmi.LanguageModel, Any]:
    """A tiny model in float32 and prompts."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 7)), jnp.int32)
    return jmi.LanguageModel(tiny(), lively(tiny())), tokens


def metric(out: jmi.Output) -> jax.Array:
    """Log-probability of token 3 at the end: not linear in anything."""
    return log_prob(out.logits[:, -1], 3)


def linear_metric(out: jmi.Output) -> jax.Array:
    """What the final stream has along a direction, at two positions."""
    stream = out["blocks.-1.hook_resid_post"]
    along = np.random.default_rng(0).normal(size=stream.shape[-1])
    return (stream[:, -1] + 2 * stream[:, 2]) @ along


assert_close = functools.partial(assert_agree, kind="gradients")


def captured(out: jmi.Output) -> dict[str, np.ndarray]:
    return {point: np.asarray(value) for point, value in out.captures.items()}


def nodes(case: Case, point: str) -> np.ndarray:
    """Layer, position and head (0 without heads) of every node, ``[n, 3]``."""
    site = case.lm.arch.sites()[point]
    shape = (case.lm.arch.n_layers, case.base.shape[1], site.sizes[2] if len(site.axes) == 4 else 1)
    return np.indices(shape).reshape(3, -1).T


def by_node(case: Case, point: str, found: Any) -> np.ndarray:
    """Numbers of each node ``[n, b]`` as ``[l, b, s, h]``, or ``[l, b, s]`` without heads."""
    size, with_heads = nodes(case, point).max(0) + 1, len(case.lm.arch.sites()[point].axes) == 4
    found = np.moveaxis(np.asarray(found).reshape(*size, -1), -1, 1)
    return found if with_heads else found[..., 0]


def with_patch(point: str, there: Any, node: jax.Array, with_heads: bool) -> dict[str, Any]:
    patch = jmi.Patch(there, positions=node[1], heads=node[2] if with_heads else None)
    return {point: jmi.At(node[0], jmi.PerLayer(patch))}


def changes_one_by_one(case: Case, point: str, hooks: Any, there: Any) -> np.ndarray:
    """Change of the linear metric when a node gets its value of ``there``, a run for each node."""
    capture, with_heads = ["blocks.-1.hook_resid_post"], len(case.lm.arch.sites()[point].axes) == 4

    @jax.jit
    def run(params: Any, base: Any, hooks: Any, there: Any) -> Any:
        def measured(edit: Any) -> jax.Array:
            run = jmi.forward(case.lm.arch, params, base, hooks={**hooks, **edit}, capture=capture)
            return linear_metric(run)

        change = lambda node: measured(with_patch(point, there, node, with_heads)) - measured({})
        return jax.lax.map(change, jnp.asarray(nodes(case, point)))

    return by_node(case, point, run(case.lm.params, case.base, hooks, there))


SILENT = {"blocks.*.hook_mlp_out": jmi.Zero()}


def held_at_base(case: Case, points: list[str]) -> dict[str, Any]:
    """Hooks that put what the base run has at ``points`` there: frozen, and patching goes on."""
    out = case.lm.run(case.base, SILENT, points)
    return {p: jmi.PerLayer(jmi.Replace(out[p])) if "*" in p else jmi.Replace(out[p]) for p in points}


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


@each(["tiny", "rwkv7"])
def test_scores_are_the_sums_of_differences_times_gradients(name: str) -> None:
    one = case(name)
    states = ["blocks.*.rwkv.hook_states", "blocks.*.rwkv.hook_r", "blocks.*.mlp.hook_shift_in"]
    sites = one.sites() if name == "tiny" else states
    keep = ("batch", "query", "kv_head", "d_head", "d_mlp", "d_key")
    with jax.enable_x64(True):
        scores = attribution_patching(*one.arguments, sites, metric=metric, keep=keep)
        found = value_and_grad_at(one.lm, one.base, metric, sites)
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


def complete(scores: dict[int, jmi.Output], change: np.ndarray) -> None:
    """The scores of a row sum to ``change``, with an error that falls with the square of the steps."""
    sums = {}
    for steps, scored in scores.items():
        parts = [
            np.moveaxis(np.asarray(x), int("*" in p), 0).reshape(len(change), -1).sum(1)
            for p, x in scored.captures.items()
        ]
        sums[steps] = np.abs(sum(parts) - change)
    few, many = sorted(sums)
    assert many == 4 * few
    assert (sums[many] < 1e-3 * np.abs(change)).all()
    np.testing.assert_allclose(sums[few] / sums[many], 16, rtol=0.1)


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


@each(["tiny", LINEAR[0]])
def test_logits_of_one_position_are_enough_for_a_metric_that_reads_one(name: str) -> None:
    one, sites = case(name), ["blocks.1.attn.hook_q", "blocks.0.mlp.hook_post"]
    diff = LogitDiff(3, np.array([4, 5]))
    with jax.enable_x64(True):
        for method in (attribution_patching, atp_star, functools.partial(integrated_gradients, steps=2)):
            got = method(*one.arguments, sites, metric=diff, logits_at=-1)
            want = method(*one.arguments, sites, metric=diff)
            at_each = method(*one.arguments, sites, metric=diff, logits_at=[-1, 2])
            for site in sites:
                assert_close(got[site], want[site])
                assert_close(at_each[site][0], want[site][0])
                assert not np.allclose(at_each[site][1], want[site][1])
            with pytest.raises(ArgumentError, match="logits_at=99"):
                method(*one.arguments, sites, metric=diff, logits_at=99)
            with pytest.raises(HookError, match="drop logits_at="):
                method(*one.arguments, "hook_final_norm", metric=diff, logits_at=-1)


@jmi.tree.dataclass
class Target:
    """Metric with its tokens as data, that counts its traces."""

    token: Any

    def __call__(self, out: jmi.Output) -> jax.Array:
        TRACES.append(1)
        return log_prob(out.logits[:, -1], self.token)


TRACES: list[int] = []


@pytest.mark.parametrize("method", [attribution_patching, atp_star, integrated_gradients])
def test_another_pair_target_or_hook_does_not_trace_again(method: Any) -> None:
    lm, tokens = small()
    options = {"steps": 2} if method is integrated_gradients else {}
    sites = ["blocks.*.attn.hook_z", "blocks.1.attn.hook_k"]
    run = functools.partial(method, sites=sites, **options)
    hook = lambda scale, layer: {f"blocks.{layer}.hook_resid_mid": jmi.Scale(scale)}
    first = run(lm, tokens, tokens[::-1], metric=Target(jnp.asarray([3, 4])), hooks=hook(0.5, 1))
    traced = len(TRACES)
    renamed = lm.derived(lm.arch, lm.params, "under another name")
    other = run(renamed, tokens[:, ::-1], tokens, metric=Target(jnp.asarray([5, 1])), hooks=hook(0.7, 2))
    assert len(TRACES) == traced
    assert not np.allclose(first["blocks.1.attn.hook_z"], other["blocks.1.attn.hook_z"])


def temporaries(method: Any, sites: list[str], length: int = 8) -> int:
    arch = tiny(16)
    params, tokens = jmi_models.init(arch, 0), jnp.zeros((4, length), jnp.int32)
    run = jax.jit(lambda lm, clean, corrupted: method(lm, clean, corrupted, sites, metric=metric))
    lowered = run.lower(jmi.LanguageModel(arch, params), tokens, tokens)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_holds_the_source_and_no_gradients_of_full_width():
    narrow, wide = (
        temporaries(attribution_patching, s) for s in (["blocks.*.attn.hook_z"], ["blocks.*.mlp.*"])
    )
    # Post-activations, both inputs of the product and two of the width of the stream, of the source alone.
    held = 16 * 4 * 8 * (3 * 24 + 2 * 16) * 4
    assert wide - narrow < 1.1 * held


def test_memory_of_the_key_fix_does_not_grow_with_the_number_of_keys():
    fix = functools.partial(atp_star, grad_drop=False)
    short, long = (temporaries(fix, ["blocks.*.attn.hook_k"], length) for length in (8, 32))
    pattern = 16 * 4 * 4 * 32 * 32 * 4
    assert long - short < 6 * pattern


def test_shards_of_the_batch_have_the_scores_of_the_whole() -> None:
    one, key = case("tiny"), "blocks.*.attn.hook_k"
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(base: Any, source: Any) -> Any:
        arguments = (one.lm, source, base)
        along = attribution_patching(*arguments, "hook_embed", metric=metric, steps=2)
        return along["hook_embed"], atp_star(*arguments, key, metric=metric)[key]

    with jax.enable_x64(True):
        specs = (jax.P("x"), jax.P(None, "x"))
        sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=jax.P("x"), out_specs=specs))
        assert_close(sharded(one.base, one.source), run(one.base, one.source))


def test_scores_of_a_bfloat16_model_are_float32() -> None:
    tokens = small()[1]
    params = lively(tiny(), jnp.bfloat16)
    sites = ["blocks.*.attn.hook_q", "blocks.*.ln1.hook_scale"]
    run = lambda lm: atp_star(lm, tokens, tokens[::-1], sites, metric=metric)
    shapes = jax.eval_shape(run, jmi.LanguageModel(tiny(), params))
    dtypes = {x.dtype for x in shapes.captures.values()}
    assert dtypes == {jnp.dtype(jnp.float32)}


def test_what_cannot_be_attributed_is_refused() -> None:
    lm, tokens = small()
    run = functools.partial(attribution_patching, lm, tokens, tokens[::-1], metric=metric)
    with pytest.raises(ArgumentError, match="keep='position': use one of"):
        run("hook_embed", keep=("batch", "position"))
    with pytest.raises(ArgumentError, match="steps=0"):
        run("hook_embed", steps=0)
    with pytest.raises(HookError, match="no such point"):
        run("blocks.*.rwkv.hook_k")
    with pytest.raises(ArgumentError, match="one per row"):
        run("hook_embed", metric=lambda out: out.logits[:, -1])
    with pytest.raises(ArgumentError, match="whole queries and keys"):
        atp_star(lm, tokens, tokens, "blocks.*.attn.hook_q", metric=metric, keep=("batch", "d_head"))
    shallow = jmi.LanguageModel(tiny(1), lively(tiny(1)))
    with pytest.raises(ArgumentError, match="model of one layer"):
        atp_star(shallow, tokens, tokens, "hook_embed", metric=metric)
