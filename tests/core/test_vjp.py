"""One linearisation, many cotangents: against torch's Jacobians, `value_and_grad_at` and differences."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
RECORDED = SHARED / "oracles" / "interp" / "jacobian_lens.npz"


@pytest.mark.skipif(not RECORDED.exists(), reason="jacobian_lens.npz is not here; set JMI_SHARED")
def test_the_jacobian_of_the_last_stream_is_that_of_torch():
    """Cotangents at all valid target positions at once, mean over source positions, then over texts."""
    held = np.load(RECORDED)
    want = next(held[key] for key in held if key.startswith("J_skip16"))
    lm = jmi_models.load("atlas")
    last, sources = (
        "blocks.-1.hook_resid_post",
        ["hook_embed", *(f"blocks.{i}.hook_resid_post" for i in range(5))],
    )
    texts = held["fit_tokens"]
    valid = np.arange(16, texts.shape[1] - 1)
    mean = jax.tree_util.Partial(lambda grads: {name: x[:, valid].mean((0, 1)) for name, x in grads.items()})
    _, pull = jmi.vjp_at(lm, texts, last, sources, chunk=32, reduce=mean)
    rows = np.zeros((128, *texts.shape, 128), np.float32)
    for out in range(128):
        rows[out, :, valid, out] = 1
    found = pull({last: rows})
    for source, name in enumerate(sources):
        gap = np.abs(found[name] - want[source]).max() / np.abs(want[source]).max()
        assert gap < 2e-6, (name, gap)


@pytest.fixture(scope="module")
def lm():
    with jax.enable_x64(True):
        yield jmi.LanguageModel(tiny(), lively(tiny(), jnp.float64))


TOKENS = np.random.default_rng(2).integers(0, 29, (2, 6)).astype(np.int32)
HOOKS = {"blocks.1.hook_mlp_out": jmi.Scale(1.5, positions=2)}


def test_a_pull_is_a_gradient_of_what_the_cotangents_weigh(lm):
    of, wrt = ["hook_logits", "blocks.2.attn.hook_z"], ["blocks.*.hook_resid_mid", "blocks.1.mlp.hook_post"]
    out, pull = jmi.vjp_at(lm, TOKENS, of, wrt, hooks=HOOKS, chunk=2)
    draw = np.random.default_rng(0).normal
    cotangents = {name: draw(size=(5, *out[name].shape)) for name in of}
    found = pull(cotangents)

    @jax.jit
    def weighed(lm, weights):
        metric = lambda run: sum((run[name] * weights[name]).sum() for name in of)
        return jmi.value_and_grad_at(lm, TOKENS, metric, wrt, hooks=HOOKS, capture=of).grads

    for i in range(5):
        want = weighed(lm, {name: x[i] for name, x in cotangents.items()})
        assert_agree(found[wrt[0]][i], want.stack("hook_resid_mid"))
        assert_agree(found[wrt[1]][i], want[wrt[1]])
    # A name left out has cotangents of zero.
    alone = pull({of[0]: cotangents[of[0]]})
    both = pull({of[0]: cotangents[of[0]], of[1]: 0 * cotangents[of[1]]})
    jax.tree.map(assert_agree, alone, both)
    norms = jmi.vjp_at(
        lm, TOKENS, of, wrt, hooks=HOOKS, reduce=lambda g: {k: (x**2).sum() for k, x in g.items()}
    )
    jax.tree.map(
        assert_agree, norms[1](cotangents), {k: (x**2).sum(range(1, x.ndim)) for k, x in found.items()}
    )


def test_it_is_linearised_once_and_jits_and_maps(lm, monkeypatch):
    traces = []
    block = type(lm.arch).block
    monkeypatch.setattr(type(lm.arch), "block", lambda *args: traces.append(1) or block(*args))
    jax.clear_caches()
    out, pull = jmi.vjp_at(lm, TOKENS, "hook_logits", "hook_embed")
    once = len(traces)
    rows = np.random.default_rng(1).normal(size=(3, *out.logits.shape))
    first = pull({"hook_logits": rows})["hook_embed"]
    pull({"hook_logits": rows + 1})
    assert len(traces) == once > 0

    @jax.jit
    def jacobian_rows(lm, scale):
        _, pull = jmi.vjp_at(lm, TOKENS, "hook_logits", "hook_embed", hooks={"hook_embed": jmi.Scale(scale)})
        return pull({"hook_logits": rows})["hook_embed"]

    scales = jnp.asarray([1.0, 2.0])
    assert_agree(jax.vmap(jacobian_rows, (None, 0))(lm, scales)[0], first)


def test_frozen_patterns_and_norms_make_it_linear(lm):
    """What is left between streams is linear but for the MLPs; without these it is the direct path."""
    hooks = {**jmi.frozen(lm.arch, patterns=True, norms=True), "blocks.*.hook_mlp_out": jmi.Zero()}
    out, pull = jmi.vjp_at(lm, TOKENS, "hook_logits", "hook_embed", hooks=hooks)
    row = np.random.default_rng(1).normal(size=(1, *out.logits.shape))
    slope = pull({"hook_logits": row})["hook_embed"][0]
    captured = ["blocks.*.attn.hook_pattern", "blocks.*.ln1.hook_scale", "ln_final.hook_scale", "hook_embed"]
    plain = lm.run(TOKENS, {"blocks.*.hook_mlp_out": jmi.Zero()}, captured)
    held = {name: jmi.PerLayer(jmi.Replace(plain[name])) for name in captured[:2]}
    held |= {captured[2]: jmi.Replace(plain[captured[2]]), "blocks.*.hook_mlp_out": jmi.Zero()}
    step = 1e-3 * np.random.default_rng(4).normal(size=slope.shape)
    moved = lm.run(TOKENS, {**held, "hook_embed": jmi.Add(step)}).logits
    np.testing.assert_allclose(((moved - plain.logits) * row[0]).sum(), (slope * step).sum(), rtol=1e-9)


def test_what_cannot_be_pulled_is_refused(lm):
    with pytest.raises(HookError, match="Nearest"):
        jmi.vjp_at(lm, TOKENS, "hook_logit", "hook_embed")
    with pytest.raises(ArgumentError, match="one point"):
        jmi.vjp_at(lm, TOKENS, "blocks.*.attn.*", "hook_embed")
    with pytest.raises(ArgumentError, match="different names"):
        jmi.vjp_at(lm, TOKENS, ["hook_logits", "hook_logits"], "hook_embed")
    with pytest.raises(ArgumentError, match="chunk=0"):
        jmi.vjp_at(lm, TOKENS, "hook_logits", "hook_embed", chunk=0)
    with pytest.raises(ArgumentError, match="LanguageModel"):
        jmi.vjp_at(lm.arch, TOKENS, "hook_logits", "hook_embed")
    _, pull = jmi.vjp_at(lm, TOKENS, "hook_logits", "hook_embed")
    with pytest.raises(ArgumentError, match=r"give \['n', 2, 6, 29\]"):
        pull({"hook_logits": np.zeros((2, 6, 29))})
    with pytest.raises(ArgumentError, match="dict of cotangents"):
        pull(np.zeros((1, 2, 6, 29)))
