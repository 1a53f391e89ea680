"""The engine's promises: nothing for nothing, no retrace for data, the same under every transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import HookError
from jmi.model.tap import SILENT
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree
from tests.support.trees import listed, scaled, stacked

ALL_HOOKS = {
    "hook_embed": jmi.Scale(0.5),
    "blocks.1.hook_resid_pre": jmi.Add(np.ones(16), positions=2),
    "blocks.2.attn.hook_attn_scores": jmi.Knockout(queries=-1, keys=0),
    "blocks.*.attn.hook_pattern": jmi.ScaleAttention(2.0, queries=3, keys=1),
    "blocks.0.mlp.hook_post": [jmi.Zero(units=3), jmi.Scale(1.5, units=4)],
    "ln_final.hook_scale": jmi.Scale(2.0),
}

ALL_CAPTURES = ["hook_embed", "blocks.*.hook_resid_post", "blocks.1.attn.hook_z", "hook_logits"]


def plain_forward(arch, params, tokens):
    """A forward pass with no engine: embed, scan the blocks, read out."""
    tap = SILENT
    with jax.default_matmul_precision("highest"):
        context = arch.context(params, jmi.Prompts(tokens))
        carry = arch.embed(params, jmi.Prompts(tokens), context, tap)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def layer(layer_params, carry, index):
            inside = SILENT
            return arch.block(layer_params, carry, context, index, inside)

        body = lambda carry, xs: (layer(xs[1], carry, xs[0]), None)
        index = jnp.arange(arch.n_layers, dtype=jnp.int32)
        carry, _ = jax.lax.scan(body, carry, (index, params["blocks"]))
        return arch.unembed(params, carry, tap)


def test_no_hooks_and_no_captures_cost_nothing(arch, params, tokens):
    hooked = lambda p, t: jmi.forward(arch, p, t, hooks={}, capture=[]).logits
    plain = lambda p, t: plain_forward(arch, p, t)
    assert str(jax.make_jaxpr(hooked)(params, tokens)) == str(jax.make_jaxpr(plain)(params, tokens))


def test_untouched_points_are_not_computed(arch, params, tokens):
    jaxpr = jax.make_jaxpr(lambda p, t: jmi.forward(arch, p, t).logits)(params, tokens)
    wanted = jax.make_jaxpr(
        lambda p, t: jmi.forward(arch, p, t, capture=["blocks.0.attn.hook_result"]).captures
    )(params, tokens)
    result = "f32[2,7,4,16]"
    assert result not in str(jaxpr)
    assert result in str(wanted)


def count_traces(fn):
    traces = []

    @functools.wraps(fn)
    def counted(*args, **kwargs):
        traces.append(1)
        return fn(*args, **kwargs)

    return counted, traces


CHANGES = [
    lambda i: {f"blocks.{i}.hook_resid_post": jmi.Add(np.full(16, i), scale=float(i), positions=i)},
    lambda i: {f"blocks.{i}.attn.hook_attn_scores": jmi.Knockout(queries=-1 - i, keys=0, heads=i)},
    lambda i: {f"blocks.{i}.attn.hook_attn_scores": jmi.Knockout(mask=np.eye(7, dtype=bool) ^ bool(i))},
    lambda i: {"blocks.*.mlp.hook_post": jmi.At([i], jmi.Zero(units=i))},
    lambda i: {"blocks.*.mlp.hook_post": jmi.At(np.arange(4) <= i, jmi.Scale(0.5 * i))},
    lambda i: {"blocks.*.hook_mlp_out": jmi.PerLayer(jmi.Replace(np.full((4, 16), float(i))))},
]


@pytest.mark.parametrize("hooks", CHANGES)
def test_another_layer_position_head_vector_or_mask_does_not_retrace(
    monkeypatch, arch, params, tokens, hooks
):
    counted, traces = count_traces(type(arch).block)
    monkeypatch.setattr(type(arch), "block", counted)
    lm = jmi.LanguageModel(arch, params)
    results = [lm.run(tokens, hooks(0), ["blocks.3.hook_resid_post"]).logits]
    first = len(traces)
    assert first >= 1
    results += [lm.run(tokens, hooks(i), [f"blocks.{i}.hook_resid_post"]).logits for i in (1, 2, 3)]
    assert len(traces) == first
    assert len({np.asarray(r).tobytes() for r in results}) == 4, "every change must change the logits"


@pytest.mark.parametrize("hooks", CHANGES)
def test_a_users_own_jit_is_traced_once(arch, params, tokens, hooks):
    counted, traces = count_traces(lambda h: jmi.forward(arch, params, tokens, hooks=h).logits)
    compiled = jax.jit(counted)
    for i in range(4):
        prepared = jmi.prepare(arch, hooks(i), tokens.shape)
        assert_agree(compiled(prepared), jmi.forward(arch, params, tokens, hooks=hooks(i)).logits)
    assert len(traces) == 1


def test_jitted_equals_eager(arch, params, tokens, lm):
    eager = jmi.forward(arch, params, tokens, hooks=ALL_HOOKS, capture=ALL_CAPTURES)
    assert_agree(lm.run(tokens, ALL_HOOKS, ALL_CAPTURES), eager)


def test_unscanned_execution_agrees(arch, params, tokens):
    scanned = jmi.forward(arch, params, tokens, hooks=ALL_HOOKS, capture=ALL_CAPTURES)
    with jax.disable_jit():
        walked = jmi.forward(arch, params, tokens, hooks=ALL_HOOKS, capture=ALL_CAPTURES)
    assert_agree(scanned, walked)


def test_listed_layers_equal_stacked_layers(arch, params, tokens):
    stacked = jmi.forward(arch, params, tokens, hooks=ALL_HOOKS, capture=ALL_CAPTURES)
    walked = jmi.forward(arch, listed(params), tokens, hooks=ALL_HOOKS, capture=ALL_CAPTURES)
    assert_agree(walked, stacked)


def test_vmap_over_vectors_layers_and_positions_equals_the_loop(arch, params, tokens):
    def run(vector, layer, position):
        hooks = {"blocks.*.hook_resid_pre": jmi.At(layer, jmi.Add(vector, positions=position))}
        return jmi.forward(arch, params, tokens, hooks=hooks, capture=["blocks.2.hook_resid_post"])

    cells = (
        jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32),
        jnp.arange(4),
        -jnp.arange(4) - 1,
    )
    mapped = jax.vmap(run)(*cells)
    looped = [run(*(c[i] for c in cells)) for i in range(4)]
    assert_agree(mapped.logits, jnp.stack([o.logits for o in looped]))
    name = "blocks.2.hook_resid_post"
    assert_agree(mapped[name], jnp.stack([o[name] for o in looped]))


def test_vmap_over_models_with_random_weights(arch, tokens):
    seeds = [lively(arch), scaled(lively(arch), -1)]
    mapped = jax.vmap(lambda p: jmi.forward(arch, p, tokens).logits)(stacked(*seeds))
    for one, params in zip(mapped, seeds, strict=True):
        assert_agree(one, jmi.forward(arch, params, tokens).logits)


def test_gradient_and_jvp_of_a_hook_match_finite_differences():
    with jax.enable_x64(True):
        arch = tiny()
        params = lively(arch, jnp.float64)
        tokens = jnp.arange(7)[None]

        def loss(vector):
            hooks = {"blocks.1.attn.hook_z": jmi.Add(vector, positions=3, heads=2)}
            out = jmi.forward(arch, params, tokens, hooks=hooks, capture=["blocks.2.attn.hook_pattern"])
            return out.logits[0, -1, 5] + out["blocks.2.attn.hook_pattern"][0, 1, -1, 3]

        rng = np.random.default_rng(0)
        at, along = rng.normal(size=(2, 6))
        step = 1e-6
        slope = (loss(at + step * along) - loss(at - step * along)) / (2 * step)
        np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(at)) @ along, slope, rtol=1e-7)
        np.testing.assert_allclose(
            jax.jvp(loss, (jnp.asarray(at),), (jnp.asarray(along),))[1], slope, rtol=1e-7
        )


def test_rematerialised_gradients_equal_stored_ones(arch, params, tokens):
    def loss(params, remat):
        return jmi.forward(arch, params, tokens, hooks=ALL_HOOKS, remat=remat).logits.sum()

    assert_agree(jax.grad(loss)(params, True), jax.grad(loss)(params, False), "gradients")


def gradient_memory(arch, params, tokens, **run):
    """Bytes of temporaries of a compiled gradient with respect to a steering vector."""

    def loss(vector, params):
        hooks = {"blocks.*.hook_resid_pre": jmi.Add(vector)}
        return jmi.forward(arch, params, tokens, hooks=hooks, **run).logits.sum()

    compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros(16), params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_gradients_does_not_hold_the_insides_of_every_layer():
    arch = tiny(n_layers=16)
    params, tokens = jmi_models.init(arch, 0), jnp.zeros((4, 32), jnp.int32)
    residual = 4 * 32 * 16 * 4
    recomputed, stored = (gradient_memory(arch, params, tokens, remat=r) for r in (True, False))
    one_more = gradient_memory(tiny(n_layers=32), jmi_models.init(tiny(n_layers=32), 0), tokens) - recomputed
    assert stored > 5 * recomputed
    # Another layer costs the residual stream entering it, and little more.
    assert one_more / 16 < 3 * residual


@pytest.mark.parametrize("what", ["tokens", "hooks"])
def test_shard_map_over_batch_or_sweep_equals_one_device(arch, params, tokens, what):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
    captures = ["blocks.*.hook_resid_post", "blocks.1.attn.hook_pattern"]

    def run(tokens, vectors):
        hooks = {"blocks.2.hook_resid_pre": jmi.Add(vectors[0])}
        out = jmi.forward(arch, params, tokens, hooks=hooks, capture=captures)
        return out.logits, out["blocks.1.attn.hook_pattern"]

    spec = jax.P("x")
    by_tokens = what == "tokens"
    specs = (spec, jax.P()) if by_tokens else (jax.P(), spec)
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(spec, spec))(tokens, vectors)
    parts = [
        run(tokens[i : i + 1] if by_tokens else tokens, vectors if by_tokens else vectors[i:]) for i in (0, 1)
    ]
    assert_agree(sharded, jax.tree.map(lambda *p: jnp.concatenate(p), *parts))


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "hook_embed", "hook_logits"])
def test_an_architecture_that_skips_a_listed_point_is_caught(monkeypatch, arch, params, tokens, name):
    monkeypatch.setattr(type(arch), "block", lambda self, p, carry, context, layer, tap: carry)
    monkeypatch.setattr(type(arch), "embed", lambda self, p, x, context, tap: p["embed"]["W_E"][x.tokens])
    monkeypatch.setattr(type(arch), "unembed", lambda self, p, carry, tap: carry)
    with pytest.raises(HookError, match="never reached"):
        jmi.forward(arch, params, tokens, capture=[name])


def test_matmul_precision_is_full_unless_the_user_chose(arch, params, tokens):
    run = lambda p, t: jmi.forward(arch, p, t).logits
    assert "HIGHEST" in str(jax.make_jaxpr(run)(params, tokens))
    with jax.default_matmul_precision("bfloat16"):
        assert "HIGHEST" not in str(jax.make_jaxpr(run)(params, tokens))


def test_gradients_of_what_differs_by_layer_leave_the_scan_as_its_outputs(arch, params, tokens):
    """Not as a buffer of all layers that each layer adds to."""

    def loss(zeros):
        hooks = {"blocks.*.hook_resid_post": jmi.PerLayer(jmi.Add(zeros))}
        return jmi.forward(arch, params, tokens, hooks=hooks, logits_at=-1).logits.sum()

    zeros = jnp.zeros((4, 2, 7, 16))
    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(zeros))
    assert "f32[4,2,7,16] = add_any" not in jaxpr
    assert "f32[4,2,7,16] = dynamic_update_slice" not in jaxpr
    assert np.abs(jax.grad(loss)(zeros)).max() > 0


def test_each_heads_own_input_reaches_that_head_alone(lm, tokens):
    names = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
    capture = [f"blocks.2.{name}" for name in names]
    plain = lm.run(tokens, capture=capture)
    for moved in names:
        site = f"blocks.2.hook_{moved[-1]}_input"
        out = lm.run(tokens, {site: jmi.Scale(1.5, heads=1, positions=3, units=2)}, capture)
        for name in names:
            got, want = (np.array(x[f"blocks.2.{name}"]) for x in (out, plain))
            if name == moved:
                assert np.abs(got - want)[:, 3, 1].max(-1).min() > 1e-3
                want[:, 3, 1] = got[:, 3, 1]
            assert_agree(got, want)
    site, read = "blocks.2.hook_mlp_in", "blocks.2.mlp.hook_in"
    capture = [read, "blocks.2.hook_resid_mid"]
    plain, out = lm.run(tokens, capture=capture), lm.run(tokens, {site: jmi.Scale(2.0, units=1)}, capture)
    assert np.abs(out[read] - plain[read]).max() > 0.1
    assert_agree(out[capture[1]], plain[capture[1]])
