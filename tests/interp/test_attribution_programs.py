"""Programs of attribution: traced once, small in memory, sharded; logits of one position; bad arguments."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from jmi.interp.attribution.atp_star import atp_star
from jmi.interp.attribution.attribution_patching import attribution_patching, integrated_gradients
from jmi.metrics import LogitDiff, log_prob
from tests.core.conftest import lively, tiny
from tests.interp.attribution_cases import LINEAR, assert_close, case, metric, small


@pytest.mark.parametrize(
    ("name", "method", "same"),
    [
        ("tiny", attribution_patching, -1),
        ("tiny", atp_star, [-1, 5]),
        ("tiny", functools.partial(integrated_gradients, steps=2), [5, -1]),
        (LINEAR[0], attribution_patching, [-1, -1]),
    ],
)
def test_logits_of_one_position_are_enough_for_a_metric_that_reads_one(
    name: str, method: Any, same: Any
) -> None:
    one, sites = case(name), ["blocks.1.attn.hook_q", "blocks.0.mlp.hook_post"]
    diff = LogitDiff(3, np.array([4, 5]))
    with jax.enable_x64(True):
        want = method(*one.arguments, sites, metric=diff)
        got = method(*one.arguments, sites, metric=diff, logits_at=same)
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
    params = jax.eval_shape(lambda: jmi_models.init(arch, 0))
    tokens = np.zeros((4, length), np.int32)
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
    with pytest.raises(ArgumentError, match=r"returned a dict: .* several metrics as a dict of them"):
        run("hook_embed", metric=lambda out: {"one": out.logits[:, -1, 0]})
    with pytest.raises(ArgumentError, match="whole queries and keys"):
        atp_star(lm, tokens, tokens, "blocks.*.attn.hook_q", metric=metric, keep=("batch", "d_head"))
    shallow = jmi.LanguageModel(tiny(1), lively(tiny(1)))
    with pytest.raises(ArgumentError, match="model of one layer"):
        atp_star(shallow, tokens, tokens, "hook_embed", metric=metric)
