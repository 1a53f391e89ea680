"""Each intervention against the same edit written by hand in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given
from hypothesis import strategies as st

import jmi
from jmi.engine.forward import plan_run
from jmi.errors import HookError, InterventionError
from jmi.hooks.selection import axis_mask
from jmi.model.sites import Site
from tests.support.tolerances import assert_agree

RESID = Site("blocks.*.hook_resid_post", ("batch", "pos", "d_model"), (None, None, 5))
HEADS = Site("blocks.*.attn.hook_z", ("batch", "pos", "head", "d_head"), (None, None, 3, 5))


@pytest.fixture
def resid():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5)), jnp.float32)


@pytest.fixture
def z():
    return jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 3, 5)), jnp.float32)


def edited(value, index, to):
    value = np.array(value)
    value[index] = to
    return value


def test_replace_writes_one_position(resid):
    out = jmi.Replace(jnp.arange(5.0), positions=-1)(resid, RESID)
    np.testing.assert_array_equal(out, edited(resid, (slice(None), -1), np.arange(5)))


def test_add_with_scale_and_rows(resid):
    out = jmi.Add(jnp.ones(5), scale=jnp.float32(2), rows=1)(resid, RESID)
    np.testing.assert_allclose(out, edited(resid, 1, np.asarray(resid)[1] + 2), rtol=1e-6)


def test_scale_units(resid):
    out = jmi.Scale(jnp.float32(3), units=jnp.array([0, 2]))(resid, RESID)
    np.testing.assert_allclose(out, np.asarray(resid) * [3, 1, 3, 1, 1], rtol=1e-6)


def test_zero_one_head_at_two_positions(z):
    out = jmi.Zero(heads=1, positions=jnp.array([0, -1]))(z, HEADS)
    np.testing.assert_array_equal(out, edited(z, (slice(None), [0, -1], 1), 0))


def test_zero_is_zero_even_of_infinity():
    out = jmi.Zero()(jnp.full((1, 1, 5), jnp.inf), RESID)
    assert (out == 0).all()


def test_positions_may_differ_by_batch_row(resid):
    out = jmi.Zero(positions=jnp.array([[0], [2]]))(resid, RESID)
    expected = edited(edited(resid, (0, 0), 0), (1, 2), 0)
    np.testing.assert_array_equal(out, expected)


def test_patch_copies_chosen_rows_positions_heads(z):
    source = z + 1
    out = jmi.Patch(source, rows=0, positions=2, heads=1)(z, HEADS)
    np.testing.assert_array_equal(out, edited(z, (0, 2, 1), np.asarray(source)[0, 2, 1]))


def test_patch_aligns_positions_of_another_length(resid):
    source = jnp.arange(2 * 6 * 5, dtype=jnp.float32).reshape(2, 6, 5)
    patch = jmi.Patch(source, positions=jnp.array([1, 3]), source_positions=jnp.array([4, -1]))
    expected = edited(resid, (slice(None), [1, 3]), np.asarray(source)[:, [4, 5]])
    np.testing.assert_array_equal(patch(resid, RESID), expected)


def test_project_removes_or_keeps_a_subspace(resid):
    directions = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5)), jnp.float32)
    removed = jmi.Project(directions)(resid, RESID)
    kept = jmi.Project(directions, keep=True)(resid, RESID)
    np.testing.assert_allclose(removed @ directions.T, 0, atol=1e-5)
    np.testing.assert_allclose(removed + kept, resid, atol=1e-6)
    basis = np.linalg.svd(directions)[2][:2]
    np.testing.assert_allclose(kept, np.asarray(resid) @ basis.T @ basis, atol=1e-5)


def test_a_dependent_direction_removes_nothing_more(resid):
    one, other = np.asarray(np.random.default_rng(3).normal(size=(2, 5)), np.float32)
    two = jmi.Project(jnp.stack([one, other]))(resid, RESID)
    three = jmi.Project(jnp.stack([one, 1000 * one, other]))(resid, RESID)
    np.testing.assert_allclose(three, two, atol=1e-5)


def test_gradients_through_a_projection_are_right_and_finite_at_zero(resid):
    removed = lambda d: (jmi.Project(d)(resid, RESID) ** 2).sum()
    direction, step = jnp.asarray([1.0, 2, 0, -1, 0.5]), jnp.asarray([0.3, -1, 2, 0, 1.0])
    slope = (removed(direction + 1e-2 * step) - removed(direction - 1e-2 * step)) / 2e-2
    np.testing.assert_allclose(jax.grad(removed)(direction) @ step, slope, rtol=1e-2)
    assert jnp.isfinite(jax.grad(removed)(jnp.zeros(5))).all()


def test_a_traced_source_position_out_of_range_reads_nan(resid):
    read = jax.jit(lambda p: jmi.Patch(resid, positions=1, source_positions=p)(resid, RESID))
    assert jnp.isnan(read(4)[:, 1]).all()
    np.testing.assert_array_equal(read(-1)[:, 1], resid[:, -1])


def test_whole_numbers_and_fractions_are_one_program(monkeypatch, lm, tokens):
    traces = []
    block = type(lm.arch).block
    monkeypatch.setattr(type(lm.arch), "block", lambda *a: traces.append(1) or block(*a))
    for factor in (1, 1.5, np.int64(2)):
        lm.run(tokens, {"blocks.1.hook_mlp_out": jmi.Scale(factor, positions=4)})
        traces.append("run")
    assert traces.index("run") == len(traces) - 3


EACH = (
    *(jmi.Replace(1.0), jmi.Scale(1.0), jmi.Add(1.0), jmi.Patch(1.0), jmi.Project(1.0), jmi.Zero()),
    *(jmi.Knockout(keys=1), jmi.SetAttention(1.0), jmi.ScaleAttention(1.0)),
    *(jmi.Norm(), jmi.IsFinite(), jmi.Dot(1.0), jmi.Select(position=1)),
)


def test_tree_structures_tell_classes_apart():
    structures = [jax.tree.structure(hook) for hook in EACH]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


def test_a_run_tells_apart_what_jax_takes_for_one_structure(lm, tokens):
    """JAX compares dataclass nodes without their class; a run must not."""

    @struct.dataclass
    class Double:
        by: float = 2.0

        def __call__(self, value, site):
            return value * jnp.asarray(self.by, value.dtype)

    @struct.dataclass
    class Shift:
        by: float = 2.0

        def __call__(self, value, site):
            return value + jnp.asarray(self.by, value.dtype)

    plans = [plan_run(lm.arch, tokens, {"blocks.1.hook_mlp_out": kind()})[0] for kind in (Double, Shift)]
    assert plans[0].static != plans[1].static


@given(
    indices=st.lists(st.integers(-6, 5), max_size=8),
)
def test_index_and_boolean_selectors_agree(indices):
    mask = np.zeros(6, bool)
    mask[indices] = True
    selected = axis_mask(np.asarray(indices, np.int32), 6)
    np.testing.assert_array_equal(selected, mask)
    np.testing.assert_array_equal(axis_mask(mask, 6), mask)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (jmi.Add(np.zeros(17)), ["(17,)", "d_model 16", "(16,)"]),
        (jmi.Add(np.zeros(16, complex)), ["complex", "real numbers"]),
        (jmi.Replace(np.zeros((3, 7, 16))), ["(3, 7, 16)", "batch 2"]),
        (jmi.Zero(positions=7), ["positions=7", "-7 to 6"]),
        (jmi.Zero(positions=0.5), ["integers"]),
        (jmi.Zero(heads=0), ["heads=", "batch, pos, d_model"]),
        (jmi.Zero(rows=[True]), ["mask", "2 entries"]),
        (jmi.Patch(np.zeros(16)), ["whole tensor", "Replace"]),
        (jmi.Patch(np.zeros((2, 9, 16)), positions=1, source_positions=[1, 2]), ["one to one"]),
        (jmi.Patch(np.zeros((2, 1, 16))), ["(2, 7, 16)", "(2, 1, 16)"]),
        (jmi.Patch(np.zeros((3, 7, 16))), ["one batch row", "(3, 7, 16)"]),
        (jmi.Patch(np.zeros((2, 9, 16)), positions=1, source_positions=9), ["positions=9", "-9 to 8"]),
        (jmi.Patch(np.zeros((2, 7, 16)), positions=[True] * 7, source_positions=1), ["one to one"]),
        (jmi.Project(np.zeros(15)), ["(15,)", "[16]"]),
        (jmi.Project(np.zeros(16)), ["zero"]),
        (jmi.Project(np.stack([np.ones(16), np.zeros(16)])), ["zero"]),
        (jmi.Knockout(queries=0), ["hook_attn_scores", "hook_resid_pre"]),
        (jmi.PerLayer(jmi.Add(np.zeros((3, 16)))), ["4 layers"]),
        (jmi.PerLayer(jmi.Zero(positions=[0, 1, 2, 7])), ["positions=7"]),
        (lambda v, s: v[:, 0], ["returned", "[2, 7, 16]"]),
        (lambda v, s: v.astype(jnp.bfloat16), ["bfloat16", "float32"]),
        (lambda v, s: None, ["returned None"]),
    ],
)
def test_what_does_not_fit_is_one_clear_error(lm, tokens, hook, words):
    with pytest.raises(InterventionError) as raised:
        lm.run(tokens, {"blocks.1.hook_resid_pre": hook})
    for word in [*words, "hook_resid_pre"]:
        assert word in str(raised.value)


def test_what_is_not_callable_is_refused(lm, tokens):
    with pytest.raises(HookError, match="not an intervention"):
        lm.run(tokens, {"blocks.1.hook_resid_pre": 3.0})


def test_at_and_a_layer_name_contradict(lm, tokens):
    with pytest.raises(HookError, match="At"):
        lm.run(tokens, {"blocks.1.hook_resid_pre": jmi.At(2, jmi.Zero())})


@pytest.mark.parametrize("layers", [4, [0, -5], 0.5, [True, False]])
def test_at_refuses_layers_that_are_not_there(lm, tokens, layers):
    with pytest.raises(HookError, match="layers"):
        lm.run(tokens, {"blocks.*.hook_resid_pre": jmi.At(layers, jmi.Zero())})


def test_payload_is_cast_to_the_dtype_of_the_site():
    value = jnp.ones((1, 2, 5), jnp.bfloat16)
    out = jmi.Add(np.full(5, 0.5))(value, RESID)
    assert out.dtype == jnp.bfloat16
    assert (out == 1.5).all()


def test_interventions_are_pytrees_whose_arrays_are_leaves():
    hook = jmi.Add(jnp.ones(5), positions=jnp.int32(2))
    doubled = jax.tree.map(lambda x: x * 2, hook)
    np.testing.assert_array_equal(doubled.vector, 2 * np.ones(5))
    assert doubled.positions == 4


@pytest.mark.parametrize("layers", [jnp.int32(99), jnp.array([1.5]), jnp.array([True, False])])
def test_at_checks_layers_on_the_device_too(lm, tokens, layers):
    with pytest.raises(HookError, match="layers"):
        lm.run(tokens, {"blocks.*.hook_resid_pre": jmi.At(layers, jmi.Zero())})


def test_at_neither_nests_nor_takes_a_list(lm, tokens):
    for hook in (
        jmi.At(0, jmi.At(1, jmi.Zero())),
        jmi.At(0, [jmi.Zero()]),
        jmi.PerLayer(jmi.At(0, jmi.Zero())),
    ):
        with pytest.raises(HookError, match=r"At\(\)"):
            lm.run(tokens, {"blocks.*.hook_resid_pre": hook})


def test_per_layer_vectors_share_a_scalar_strength(lm, tokens):
    vectors = np.arange(64.0).reshape(4, 16) / 50
    one = lm.run(tokens, {"blocks.*.hook_resid_pre": jmi.PerLayer(jmi.Add(vectors, scale=2.0))}).logits
    each = {f"blocks.{i}.hook_resid_pre": jmi.Add(2 * v) for i, v in enumerate(vectors)}
    assert_agree(one, lm.run(tokens, each).logits)


def test_arrays_for_some_layers_act_in_these_alone(lm, tokens):
    vectors, site = np.arange(32.0).reshape(2, 16) / 50, "blocks.*.hook_resid_pre"
    hook = jmi.PerLayer(jmi.Add(vectors), slots=[-1, 1, -1, 0])
    want = {
        "blocks.1.hook_resid_pre": jmi.Add(vectors[1]),
        "blocks.3.hook_resid_pre": jmi.Add(vectors[0]),
    }
    assert_agree(lm.run(tokens, {site: hook}).logits, lm.run(tokens, want).logits)
    for at in (jmi.At([1, 3], hook), jmi.At([True] * 4, hook)):
        assert_agree(lm.run(tokens, {site: at}).logits, lm.run(tokens, want).logits)
    for named in ({"blocks.2.hook_resid_pre": hook}, {site: jmi.At([1, 2], hook)}):
        with pytest.raises(HookError, match=r"no row for layers \[2\]"):
            lm.run(tokens, named)
    for slots, words in (
        ([0, 1, 2, -1], "there are 2"),
        ([0, 1], "each of 4 layers"),
        ([0.0] * 4, "there are 2"),
    ):
        with pytest.raises(InterventionError, match=words):
            lm.run(tokens, {site: jmi.PerLayer(jmi.Add(vectors), slots=slots)})


def test_random_directions_are_seeded_have_the_length_of_the_one_they_stand_for_and_no_preference():
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)) * [[1.0], [5.0], [0.1]], jnp.float32)
    drawn = np.asarray(jmi.random_directions(range(2000), vectors))
    assert drawn.shape == (2000, 3, 8)
    lengths = np.linalg.norm(vectors, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), np.broadcast_to(lengths, (2000, 3)), rtol=1e-5)
    unit = drawn / lengths[:, None]
    # The mean of n unit vectors in d dimensions is about 1 / sqrt(n d) in each; the covariance is 1 / d.
    assert np.abs(unit.mean(0)).max() < 5 / np.sqrt(2000 * 8)
    covariance = np.einsum("nvd,nve->vde", unit, unit) / 2000
    assert np.abs(covariance - np.eye(8) / 8).max() < 0.02
    np.testing.assert_allclose(jmi.random_directions([7], vectors)[0], drawn[7], rtol=1e-6)
