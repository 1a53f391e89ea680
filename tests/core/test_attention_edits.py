import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmi
from jmi.errors import InterventionError
from jmi.model.sites import PATTERN, SCORES, Site

AXES = ("batch", "head", "query", "key")
AT_PATTERN = Site(PATTERN, AXES, (None, 2, None, None))
AT_SCORES = Site(SCORES, AXES, (None, 2, None, None))
UNIFORM = jnp.full((1, 2, 4, 4), 0.25)


def cut(**edges):
    out = jmi.Knockout(**edges)(jnp.zeros((1, 2, 4, 4)), AT_SCORES)
    return np.asarray(out == -jnp.inf)


def test_one_edge_of_one_head_is_one_entry():
    assert np.flatnonzero(cut(queries=2, keys=1, heads=0)).tolist() == [9]


def test_edges_are_pairs_not_a_product():
    found = np.argwhere(cut(edges=np.array([[2, 1], [-1, 0]]))[0, 1])
    assert found.tolist() == [[2, 1], [3, 0]]


def test_whole_queries_and_whole_keys():
    assert cut(queries=2)[0].sum() == 8
    assert cut(keys=jnp.array([0, 1]))[0].sum() == 16


def test_mask_broadcasts_and_narrows():
    assert cut(mask=np.eye(4, dtype=bool), heads=1)[0].sum((1, 2)).tolist() == [0, 4]


def test_scaling_renormalises_the_row_it_touches():
    out = jmi.ScaleAttention(jnp.float32(2), queries=2, keys=1, heads=0)(UNIFORM, AT_PATTERN)
    np.testing.assert_allclose(out[0, 0, 2], [0.2, 0.4, 0.2, 0.2], rtol=1e-6)
    untouched = np.delete(np.asarray(out).reshape(8, 4), 2, 0)
    np.testing.assert_array_equal(untouched, 0.25)


def test_setting_takes_from_the_others_in_proportion():
    out = jmi.SetAttention(jnp.float32(0.5), queries=2, keys=1)(UNIFORM, AT_PATTERN)
    np.testing.assert_allclose(out[0, 0, 2], [1 / 6, 0.5, 1 / 6, 1 / 6], rtol=1e-6)
    rows = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.7, 0.0], jnp.float32), (1, 2, 4, 4))
    out = jmi.SetAttention(jnp.float32(0.6), queries=2, keys=1)(rows, AT_PATTERN)
    np.testing.assert_allclose(out[0, 0, 2], [0.05, 0.6, 0.35, 0], rtol=1e-6)


def test_setting_never_gives_attention_to_the_future():
    causal = jnp.asarray(np.tri(4) / np.tri(4).sum(1, keepdims=True), jnp.float32)[None, None]
    causal = jnp.broadcast_to(causal, (1, 2, 4, 4))
    out = jmi.SetAttention(jnp.float32(0.1), queries=1, keys=0)(causal, AT_PATTERN)
    np.testing.assert_allclose(out[0, 0, 1], [0.1, 0.9, 0, 0], rtol=1e-6)
    ahead = jmi.SetAttention(jnp.float32(0.1), queries=1, keys=[0, 3])(causal, AT_PATTERN)
    np.testing.assert_array_equal(ahead, out)


@given(
    weight=st.floats(0, 1, width=32),
    keys=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    logits=st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
)
def test_chosen_weights_are_what_was_asked_and_rows_sum_to_one(weight, keys, logits):
    row = np.exp(np.asarray(logits, np.float32) - max(logits))
    pattern = jnp.broadcast_to(jnp.asarray(row / row.sum()), (1, 2, 4, 4))
    each = np.float32(weight / len(keys))
    out = np.asarray(jmi.SetAttention(jnp.float32(each), queries=3, keys=np.array(keys))(pattern, AT_PATTERN))
    np.testing.assert_allclose(out[0, 0, 3].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(out[0, 0, 3, keys], each, rtol=1e-5, atol=1e-7)


def test_a_row_with_one_visible_key_keeps_attending_to_it():
    first = jnp.zeros((1, 2, 4, 4)).at[:, :, :, 0].set(1)
    np.testing.assert_array_equal(
        jmi.SetAttention(jnp.float32(0.3), queries=0, keys=0)(first, AT_PATTERN), first
    )


def test_rows_set_to_nothing_stay_finite():
    out = jmi.ScaleAttention(jnp.float32(0), queries=2)(UNIFORM, AT_PATTERN)
    assert (out[:, :, 2] == 0).all()


def test_a_knocked_out_edge_has_exactly_no_attention(lm, tokens):
    hooks = {"blocks.2.attn.hook_scores": jmi.Knockout(queries=-1, keys=[0, 3], heads=1)}
    pattern = lm.run(tokens, hooks, ["blocks.2.attn.hook_pattern"])["blocks.2.attn.hook_pattern"]
    assert (pattern[:, 1, -1, jnp.array([0, 3])] == 0).all()
    assert (pattern[:, 0, -1] > 0).all()
    np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-6)


def test_a_query_with_every_key_cut_attends_to_nothing_and_nothing_is_nan(lm, tokens):
    hooks = {"blocks.*.attn.hook_attn_scores": jmi.Knockout(queries=3)}
    out = lm.run(tokens, hooks, ["blocks.*.attn.hook_pattern", "blocks.*.attn.hook_z"])
    assert (out.stack("attn.hook_pattern")[:, :, :, 3] == 0).all()
    assert (out.stack("attn.hook_z")[:, :, 3] == 0).all()
    assert jnp.isfinite(out.logits).all()


def test_gradients_through_a_full_knockout_are_finite(arch, params, tokens):
    def loss(params):
        hooks = {"blocks.1.attn.hook_attn_scores": jmi.Knockout(queries=3)}
        return jmi.forward(arch, params, tokens, hooks=hooks).logits.sum()

    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ({}, "name the edges"),
        ({"queries": 7}, "queries=7"),
        ({"heads": 4}, "heads=4"),
        ({"edges": [[0, 9]]}, "keys=\\[9\\]"),
        ({"edges": [0, 1]}, "pairs"),
        ({"mask": np.ones((5, 5), bool)}, "broadcast"),
    ],
)
def test_edges_that_do_not_exist_are_refused(lm, tokens, edges, words):
    with pytest.raises(InterventionError, match=words):
        lm.run(tokens, {"blocks.0.attn.hook_attn_scores": jmi.Knockout(**edges)})


def test_attention_weights_are_edited_after_the_softmax_only(lm, tokens):
    with pytest.raises(InterventionError, match="hook_pattern"):
        lm.run(tokens, {"blocks.0.attn.hook_attn_scores": jmi.SetAttention(0.5, queries=0)})
