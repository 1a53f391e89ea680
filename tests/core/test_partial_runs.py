"""Runs of some layers, and logits of some positions: what whole runs have there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from tests.core.conftest import tiny
from tests.core.test_engine import count_traces, gradient_memory
from tests.support.tolerances import assert_agree


def test_gradients_of_a_partial_run_do_not_store_the_weights_of_each_layer():
    arch = tiny(n_layers=16)
    params, tokens = jmi_models.init(arch, 0), jnp.zeros((1, 2), jnp.int32)
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    carry = jnp.zeros((1, 2, 16))
    assert gradient_memory(arch, params, tokens, start_at_layer=jnp.int32(3), carry=carry) < 2 * weights


def test_start_at_a_layer_resumes_exactly(arch, params, tokens, lm):
    whole = lm.run(tokens, capture=["blocks.*.hook_resid_pre"])
    for layer in range(4):
        carry = whole.stack("hook_resid_pre")[layer]
        resumed = lm.run(tokens, start_at_layer=layer, carry=carry)
        assert_agree(resumed.logits, whole.logits)


def test_stop_at_a_layer_returns_its_input(tokens, lm):
    whole = lm.run(tokens, capture=["blocks.*.hook_resid_pre"])
    for layer in range(1, 4):
        stopped = lm.run(tokens, stop_at_layer=layer)
        assert stopped.logits is None
        assert_agree(stopped.carry, whole.stack("hook_resid_pre")[layer])


def test_start_and_stop_take_a_traced_layer_without_retracing(arch, params, tokens):
    carry = jmi.forward(arch, params, tokens, stop_at_layer=1).carry

    def run(start, stop):
        out = jmi.forward(arch, params, tokens, start_at_layer=start, carry=carry, stop_at_layer=stop)
        return out.carry

    counted, traces = count_traces(run)
    compiled = jax.jit(counted)
    for start, stop in ((1, 3), (0, 4), (2, 2)):
        assert_agree(compiled(start, stop), run(start, stop))
    assert len(traces) == 1
    slope = jax.grad(
        lambda c: jmi.forward(arch, params, tokens, start_at_layer=jnp.int32(2), carry=c).logits.sum()
    )
    assert jnp.isfinite(slope(carry)).all()


def test_layers_outside_a_partial_run_are_nan_not_stale(tokens, lm):
    out = lm.run(tokens, capture=["blocks.*.hook_resid_post"], stop_at_layer=2)
    finite = jnp.isfinite(out.stack("hook_resid_post")).all((1, 2, 3))
    assert finite.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"start_at_layer": 1}, ArgumentError),
        ({"stop_at_layer": 5}, ArgumentError),
        ({"stop_at_layer": 2, "capture": ["hook_logits"]}, HookError),
        ({"stop_at_layer": 2, "capture": ["ln_final.hook_normalized"]}, HookError),
        ({"stop_at_layer": 2, "hooks": {"unembed.hook_out": jmi.Zero()}}, HookError),
        ({"stop_at_layer": 2, "capture": ["blocks.3.hook_resid_pre"]}, HookError),
        ({"stop_at_layer": 2, "hooks": {"blocks.2.hook_resid_pre": jmi.Zero()}}, HookError),
        ({"start_at_layer": 1, "carry": 0, "hooks": {"hook_embed": jmi.Zero()}}, HookError),
        ({"start_at_layer": 3, "stop_at_layer": 2, "carry": np.zeros((2, 7, 16), np.float32)}, ArgumentError),
        ({"start_at_layer": 1, "carry": np.zeros((2, 6, 16), np.float32)}, ArgumentError),
        ({"start_at_layer": 1, "carry": np.zeros((2, 7, 16), np.float16)}, ArgumentError),
    ],
)
def test_what_a_run_would_ignore_is_refused(tokens, lm, arguments, error):
    with pytest.raises(error):
        lm.run(tokens, **arguments)


def test_logits_of_one_position_are_those_of_all(lm, arch, params, tokens):
    hooks = {"blocks.1.hook_resid_pre": jmi.Add(np.ones(16), positions=2)}
    every = lm.run(tokens, hooks).logits
    for at in (-1, 3, np.array([-2, 0])):
        one = lm.run(tokens, hooks, logits_at=at).logits
        assert_agree(one, every[np.arange(2), np.broadcast_to(at, 2)])
    traced = jax.jit(lambda at: jmi.forward(arch, params, tokens, hooks=hooks, logits_at=at).logits)
    assert_agree(traced(jnp.int32(-2)), every[:, -2])
    assert np.isnan(traced(jnp.int32(7))).all()
    assert np.isnan(traced(jnp.int32(-8))).all()
    jaxpr = jax.make_jaxpr(lambda p: jmi.forward(arch, p, tokens, logits_at=-1).logits)(params)
    assert "f32[2,7,29]" not in str(jaxpr), "no other logits are computed"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"logits_at": 7}, "7 positions"),
        ({"logits_at": [0, 1, 2]}, "2 rows"),
        ({"logits_at": 1.0}, "one position"),
        ({"logits_at": -1, "capture": ["hook_final_norm"]}, "hook_final_norm: logits_at="),
        ({"logits_at": -1, "capture": ["unembed.hook_in"]}, "unembed.hook_in: logits_at="),
        ({"logits_at": -1, "hooks": {"unembed.hook_out": jmi.Scale(2.0)}}, "unembed.hook_out: logits_at="),
        ({"logits_at": -1, "hooks": {"hook_logits": jmi.Scale(2.0)}}, "hook_logits: logits_at="),
        ({"logits_at": -1, "stop_at_layer": 2}, "exclude each other"),
    ],
)
def test_wrong_positions_of_logits(lm, tokens, kwargs, words):
    with pytest.raises((ArgumentError, HookError), match=words):
        lm.run(tokens, **kwargs)
