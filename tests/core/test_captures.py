import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import HookError, InterventionError
from tests.support.tolerances import assert_agree

SITE = "blocks.1.hook_resid_post"


def test_after_is_what_flows_on_and_before_is_what_arrived(tokens, lm):
    clean = lm.run(tokens, capture=[SITE])[SITE]
    out = lm.run(tokens, {SITE: jmi.Scale(3.0)}, [SITE, jmi.Capture(SITE, when="before")])
    assert_agree(out[SITE + "@before"], clean)
    assert_agree(out[SITE], 3 * clean)


def test_hooks_on_one_point_run_in_order(tokens, lm):
    clean = lm.run(tokens, capture=[SITE])[SITE]
    one = lm.run(tokens, {SITE: [jmi.Add(np.ones(16)), jmi.Scale(2.0)]}, [SITE])[SITE]
    other = lm.run(tokens, {SITE: [jmi.Scale(2.0), jmi.Add(np.ones(16))]}, [SITE])[SITE]
    assert_agree(one, 2 * (clean + 1))
    assert_agree(other, 2 * clean + 1)


def test_wildcards_run_before_named_layers_whatever_the_order_of_the_dict(tokens, lm):
    clean = lm.run(tokens, capture=[SITE], hooks={"blocks.0.hook_resid_post": jmi.Add(np.ones(16))})[SITE]
    hooks = {SITE: jmi.Scale(2.0), "blocks.*.hook_resid_post": jmi.Add(np.ones(16))}
    out = lm.run(tokens, hooks, [SITE])[SITE]
    assert_agree(out, 2 * (clean + 1))


def test_some_layers_all_layers_and_single_names_agree(tokens, lm):
    some = ["blocks.3.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
    few, every = lm.run(tokens, capture=some), lm.run(tokens, capture=["blocks.*.attn.hook_pattern"])
    assert few.layers("attn.hook_pattern") == (1, 3)
    assert few.names() == ["blocks.1.attn.hook_pattern", "blocks.3.attn.hook_pattern"]
    assert few.stack("attn.hook_pattern").shape == (2, 2, 4, 7, 7)
    for name in some:
        assert_agree(few[name], every[name])
    np.testing.assert_array_equal(every["blocks.-1.attn.hook_pattern"], every[some[0]])


REDUCERS = {
    "select": (jmi.Select(position=-1, head=2), lambda z: z[:, -1, 2]),
    "dot": (jmi.Dot(np.ones((3, 6))), lambda z: z @ np.ones((6, 3), np.float32)),
    "norm": (jmi.Norm(), lambda z: np.linalg.norm(z, axis=-1)),
    "finite": (jmi.IsFinite(), lambda z: np.isfinite(z).all()),
    "function": (lambda z, site: z[:, :2], lambda z: z[:, :2]),
}


@pytest.mark.parametrize("name", REDUCERS)
def test_reducers_reduce_inside_the_layer(tokens, lm, name):
    reduce, by_hand = REDUCERS[name]
    full = lm.run(tokens, capture=["blocks.*.attn.hook_z"])
    out = lm.run(tokens, capture=[jmi.Capture("blocks.*.attn.hook_z", reduce=reduce)])
    expected = np.stack([by_hand(np.asarray(z)) for z in full.stack("attn.hook_z")])
    assert_agree(out.stack("attn.hook_z"), expected)
    assert_agree(out["blocks.2.attn.hook_z"], expected[2])


def test_reducer_arrays_are_data(monkeypatch, tokens, lm):
    traces = []
    block = type(lm.arch).block
    monkeypatch.setattr(type(lm.arch), "block", lambda *a: traces.append(1) or block(*a))
    for position in (0, 3, -1):
        lm.run(tokens, capture=[jmi.Capture("blocks.*.hook_resid_pre", reduce=jmi.Select(position=position))])
        traces.append("run")
    assert traces.index("run") == len(traces) - 3


def test_labels_keep_two_captures_of_one_site_apart(tokens, lm):
    captures = [
        jmi.Capture("blocks.*.hook_resid_pre", reduce=jmi.Norm(), label="norms"),
        "blocks.2.hook_resid_pre",
    ]
    out = lm.run(tokens, capture=captures)
    assert out["norms"].shape == (4, 2, 7)
    norm = np.linalg.norm(out["blocks.2.hook_resid_pre"], axis=-1)
    assert_agree(out["norms"][2], norm)


def test_one_label_for_two_things_is_refused(tokens, lm):
    with pytest.raises(HookError, match="label="):
        lm.run(
            tokens,
            capture=["blocks.1.hook_resid_pre", jmi.Capture("blocks.1.hook_resid_pre", reduce=jmi.Norm())],
        )


def test_asking_for_what_was_not_captured_lists_what_was(tokens, lm):
    out = lm.run(tokens, capture=["blocks.1.hook_resid_pre"])
    for name in ("blocks.2.hook_resid_pre", "blocks.1.hook_resid_mid", "hook_embed"):
        with pytest.raises(HookError, match="captured here"):
            out[name]


def test_nan_is_found_in_the_layer_where_it_arises(tokens, lm):
    hooks = {"blocks.2.hook_mlp_out": jmi.Replace(np.nan)}
    out = lm.run(tokens, hooks, [jmi.Capture("blocks.*.hook_resid_post", reduce=jmi.IsFinite())])
    assert out.stack("hook_resid_post").tolist() == [True, True, False, False]


def memory(arch, params, tokens, capture):
    def run(params, tokens):
        out = jmi.forward(arch, params, tokens, capture=capture)
        return out.logits, out.captures

    return jax.jit(run).lower(params, tokens).compile().memory_analysis()


def test_few_captured_layers_allocate_only_their_rows(arch, params):
    tokens = jnp.zeros((4, 64), jnp.int32)
    row = 4 * 64 * 64 * 4 * 4
    none, one = (memory(arch, params, tokens, c) for c in ([], ["blocks.1.attn.hook_pattern"]))
    every = memory(arch, params, tokens, ["blocks.*.attn.hook_pattern"])
    assert one.output_size_in_bytes - none.output_size_in_bytes < 1.1 * row
    assert every.output_size_in_bytes - none.output_size_in_bytes < 4.1 * row
    # Temporaries: one row more than without captures, whether one or all layers are kept.
    assert one.temp_size_in_bytes - none.temp_size_in_bytes < 1.5 * row
    assert every.temp_size_in_bytes - none.temp_size_in_bytes < 1.5 * row


def test_reduced_captures_never_stack_the_whole(arch, params):
    tokens = jnp.zeros((4, 64), jnp.int32)
    row = 4 * 64 * 64 * 4 * 4
    last = jmi.Capture("blocks.*.attn.hook_pattern", reduce=jmi.Select(position=-1))
    kept, none = (memory(arch, params, tokens, c).output_size_in_bytes for c in ([last], []))
    assert kept - none < row / 8


@pytest.mark.parametrize(
    ("reduce", "words"),
    [
        (jmi.Select(position=7), "positions=7"),
        (jmi.Select(head=4), "heads=4"),
        (jmi.Select(position=[0, 1]), "one index"),
        (jmi.Select(position=True), "mask"),
    ],
)
def test_a_selection_out_of_range_is_refused(tokens, lm, reduce, words):
    with pytest.raises(InterventionError, match=words):
        lm.run(tokens, capture=[jmi.Capture("blocks.*.attn.hook_z", reduce=reduce)])


def test_a_traced_selection_out_of_range_is_nan(tokens, arch, params):
    @jax.jit
    def run(position):
        last = jmi.Capture("hook_logits", reduce=jmi.Select(position=position))
        return jmi.forward(arch, params, tokens, capture=[last])["hook_logits"]

    assert jnp.isnan(run(7)).all()
    assert jnp.isfinite(run(-7)).all()


def test_a_label_of_ones_own_stands_once_among_the_names(tokens, lm):
    out = lm.run(tokens, capture=[jmi.Capture("blocks.*.hook_resid_pre", label="x"), "blocks.1.hook_mlp_out"])
    assert out.names() == ["x", "blocks.1.hook_mlp_out"]
