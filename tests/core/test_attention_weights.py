"""Edits of attention weights and scores, against what they mean for the scores, in numpy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jmi
from jmi.errors import InterventionError
from jmi.model.sites import PATTERN, SCORES, Site
from tests.support import committed
from tests.support.committed import relative

BATCH, HEADS, LENGTH = 2, 2, 6
AXES = ("batch", "head", "query", "key")
AT_PATTERN = Site(PATTERN, AXES, (None, HEADS, None, None))
AT_SCORES = Site(SCORES, AXES, (None, HEADS, None, None))
SHAPE = (BATCH, HEADS, LENGTH, LENGTH)


def random_scores(rng):
    """Scores with what hides keys: later positions, and at random a window, padding, cut edges and rows."""
    scores = rng.normal(size=SHAPE) * rng.choice([0.1, 1, 3])
    places = np.arange(LENGTH)
    hidden = np.broadcast_to(places[:, None] < places, SHAPE).copy()
    if rng.random() < 0.5:
        hidden |= places[:, None] - places >= rng.integers(1, LENGTH)
    if rng.random() < 0.5:
        hidden |= (places < rng.integers(0, 3, BATCH)[:, None])[:, None, None]
    if rng.random() < 0.5:
        hidden |= rng.random(SHAPE) < 0.3
    hidden[0, 0, rng.integers(LENGTH)] = True
    return np.where(hidden, -np.inf, scores)


def softmax(scores, sinks):
    """Patterns of scores ``[b, h, q, t]`` with the sink of each head ``[h]``, -inf for none."""
    weights, sink = np.exp(scores), np.exp(sinks)[None, :, None, None]
    total = weights.sum(-1, keepdims=True) + sink
    return weights / np.where(total == 0, 1, total)


def drawn(seed):
    """Generator, scores, sinks and chosen edges."""
    rng = np.random.default_rng(seed)
    scores = random_scores(rng)
    sinks = rng.normal(size=HEADS) if rng.random() < 0.5 else np.full(HEADS, -np.inf)
    return rng, scores, sinks, rng.random(SHAPE) < rng.choice([0.1, 0.5, 1])


@functools.partial(jax.jit, static_argnums=0)
def edited(kind, payload, mask, pattern):
    return kind(payload, mask=mask)(pattern, AT_PATTERN)


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_factor_on_weights_is_its_logarithm_on_the_scores(seed):
    rng, scores, sinks, mask = drawn(seed)
    each = rng.choice([np.zeros(SHAPE), np.ones(SHAPE), np.exp(rng.normal(size=SHAPE) * 3)])
    factor = each if rng.random() < 0.5 else np.full(SHAPE, each[0, 0, 0, 0])
    with np.errstate(divide="ignore"):
        want = softmax(scores + np.where(mask, np.log(factor), 0), sinks)
    with jax.enable_x64(True):
        pattern = jnp.asarray(softmax(scores, sinks))
        got = np.asarray(edited(jmi.ScaleAttention, factor, mask, pattern))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)
    unmoved = ~(mask & (scores > -np.inf)).any(-1)
    np.testing.assert_array_equal(got[unmoved], np.asarray(pattern)[unmoved])
    if np.isinf(sinks).all():
        # In float32, too, keys keep their proportions where almost all the weight is taken away.
        low = softmax(scores, sinks).astype(np.float32)
        got = np.asarray(edited(jmi.ScaleAttention, factor.astype(np.float32), mask, jnp.asarray(low)))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-30)


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_that_are_set_are_those_of_moved_scores_and_the_rest_keeps_its_proportions(seed):
    rng, scores, sinks, mask = drawn(seed)
    mask &= scores > -np.inf
    asked = np.where(mask, rng.random(SHAPE) * rng.choice([0.1, 0.5, 1]), 0)
    others = np.exp(np.where(mask, -np.inf, scores)).sum(-1) + np.exp(sinks)[None, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = 1 - asked.sum(-1)
        moved = np.log(asked / left[..., None]) + np.log(others)[..., None]
        definite = (others > 0) & (left > 1e-3)
        want = softmax(np.where(mask & definite[..., None], moved, scores), sinks)
    with jax.enable_x64(True):
        pattern = jnp.asarray(softmax(scores, sinks))
        got = np.asarray(edited(jmi.SetAttention, asked, mask, pattern))
    np.testing.assert_allclose(got[definite], want[definite], rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(got[~mask.any(-1)], np.asarray(pattern)[~mask.any(-1)])
    full = ((left < 0) | (others == 0)) & (asked.sum(-1) > 0)
    np.testing.assert_allclose(got[full], asked[full] / asked.sum(-1)[full][:, None], rtol=1e-10)


@committed.each(["gpt_oss/alternating", "gemma2/capped", "mistral/window"])
def test_in_a_model_factors_are_added_logarithms_and_zero_is_a_knockout(name):
    lm = committed.load(name, "float64")
    tokens = np.random.default_rng(0).integers(0, lm.arch.d_vocab, (2, 10)).astype(np.int32)
    mask = np.arange(10) >= np.array([[0], [3]])
    chosen = np.tile(np.isin(np.arange(10), [2, 4]), (10, 1))
    edges = {"mask": chosen, "heads": 1}

    def run(point, hook):
        return lm.run(jmi.Prompts(tokens, mask), {point: hook}).logits[mask]

    with jax.enable_x64(True):
        plain = lm.run(jmi.Prompts(tokens, mask)).logits[mask]
        for factor in (0.3, 5.0):
            scaled = run(PATTERN, jmi.ScaleAttention(factor, **edges))
            assert relative(scaled, run(SCORES, jmi.Add(chosen * np.log(factor), heads=1))) < 1e-12
            assert relative(scaled, plain) > 1e-4
        assert relative(run(PATTERN, jmi.ScaleAttention(1, **edges)), plain) < 1e-13
        cut = run(SCORES, jmi.Knockout(**edges))
        assert relative(run(PATTERN, jmi.ScaleAttention(0, **edges)), cut) < 1e-12
        early = run(PATTERN, jmi.ScaleAttention(7.0, mask=np.arange(10) == 8))
        assert relative(early[:8], plain[:8]) < 1e-13


SUMS = np.eye(LENGTH)[:2] + 1
CHANGES = {
    "zero": (jmi.Zero(), lambda x: 0 * x),
    "no factor": (jmi.Scale(0.0), lambda x: 0 * x),
    "negative factor": (jmi.Scale(-2.0), lambda x: -2 * x),
    "factors": (jmi.Scale(np.arange(LENGTH) - 2.0), lambda x: x * (np.arange(LENGTH) - 2)),
    "added": (jmi.Add(3.0), lambda x: x + 3),
    "removed": (jmi.Project(SUMS), lambda x: x - x @ np.linalg.pinv(SUMS) @ SUMS),
    "kept": (jmi.Project(SUMS, keep=True), lambda x: x @ np.linalg.pinv(SUMS) @ SUMS),
}


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_masked_stays_so_and_the_rest_is_acted_on(change, seed):
    scores = random_scores(np.random.default_rng(seed))
    hook, act = CHANGES[change]
    want = np.where(scores == -np.inf, -np.inf, act(np.where(scores == -np.inf, 0, scores)))
    got = hook(jnp.asarray(scores, jnp.float32), AT_SCORES)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_noise_and_gradients_beside_a_mask_are_finite():
    scores = jnp.asarray(random_scores(np.random.default_rng(1)), jnp.float32)
    hidden = scores == -jnp.inf
    noisy = jmi.Noise(1.0, seed=1)(scores, AT_SCORES)
    np.testing.assert_array_equal(noisy == -jnp.inf, hidden)
    assert (noisy != scores)[~hidden].all()
    for hook in (jmi.Scale(0.0), jmi.Scale(-1.0), jmi.Zero(), jmi.Project(SUMS)):
        slope = jax.grad(lambda x, hook=hook: jax.nn.softmax(hook(x, AT_SCORES), where=~hidden).sum())(scores)
        assert jnp.isfinite(slope[~hidden]).all()


def test_only_zero_with_masked_opens_the_mask_and_what_is_given_is_written(lm, tokens):
    later = np.triu(np.ones((7, 7), bool), 1)

    def ahead(hook, point="blocks.1.attn.hook_scores"):
        pattern = lm.run(tokens, {point: hook}, [PATTERN])["blocks.1.attn.hook_pattern"]
        assert jnp.isfinite(pattern).all()
        return np.asarray(pattern)[:, :, later]

    for hook in (jmi.Zero(), jmi.Scale(0), jmi.Scale(-1), jmi.Add(5.0), jmi.Noise(1.0), jmi.Zero(heads=1)):
        assert (ahead(hook) == 0).all()
    opened = ahead(jmi.Zero(masked=True, heads=1))
    np.testing.assert_allclose(opened[:, 1], 1 / 7, rtol=1e-6)
    assert (opened[:, 0] == 0).all()
    np.testing.assert_allclose(ahead(jmi.Replace(0.0)), 1 / 7, rtol=1e-6)
    np.testing.assert_allclose(ahead(jmi.Patch(np.zeros((2, 4, 7, 7)))), 1 / 7, rtol=1e-6)
    with pytest.raises(InterventionError, match="masked= has no meaning here"):
        ahead(jmi.Zero(masked=True), "blocks.1.hook_mlp_out")


def test_lengths_and_products_of_scores_are_those_of_the_keys_a_query_sees(lm, tokens):
    reads = {"norm": jmi.Norm(), "dot": jmi.Dot(np.arange(7.0))}
    capture = [SCORES, *(jmi.Capture(SCORES, reduce=r, label=label) for label, r in reads.items())]
    out = lm.run(tokens, capture=capture)
    scores = np.asarray(out[SCORES])
    finite = np.where(np.isinf(scores), 0, scores)
    np.testing.assert_allclose(out["norm"], np.linalg.norm(finite, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(out["dot"], finite @ np.arange(7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        *((jmi.ScaleAttention(x, keys=0), "factor") for x in (-1.0, np.nan, np.inf, 1e39, 1j)),
        *((jmi.SetAttention(x, keys=0), "weight") for x in (-0.1, 1.1, np.nan, [0.5] * 6 + [2], 1j)),
        (jmi.ScaleAttention(np.ones(3), keys=0), "does not fit"),
        (jmi.PerLayer(jmi.ScaleAttention(np.array([1.0, 2, 3, -4]), keys=0)), "factor"),
        (jmi.ScaleAttention(2.0, mask=np.ones((7, 7))), "mask= must be booleans"),
        (jmi.SetAttention(0.5, mask=np.ones((7, 7), int)), "mask= must be booleans"),
        *((jmi.ScaleAttention(2.0, **{name: 0.5}), name) for name in ("queries", "keys", "heads", "rows")),
        (jmi.ScaleAttention(2.0, edges=[[0.0, 1.0]]), "edges="),
        (jmi.Replace(np.nan), "value= is not finite"),
        (jmi.PerLayer(jmi.Add(np.array([0.0, 0, 0, np.inf]))), "vector= is not finite"),
        (jmi.Scale(-np.inf), "factor= is not finite"),
        (jmi.Noise(np.nan), "scale= is not finite"),
        (jmi.Replace(np.ones(7) * 1j), "real numbers"),
        *((kind, "give numbers") for kind in (jmi.Replace("even"), jmi.ScaleAttention("2", keys=0))),
        (jmi.Replace(np.array([None] * 7)), "give numbers"),
    ],
)
def test_what_is_no_weight_of_attention_is_refused(lm, tokens, hook, words):
    with pytest.raises(InterventionError, match=words):
        lm.run(tokens, {"blocks.*.attn.hook_pattern": hook})


@pytest.mark.parametrize("kind", [jmi.ScaleAttention, jmi.SetAttention])
def test_where_it_is_traced_what_is_no_weight_gives_nan(kind):
    pattern = jnp.full(SHAPE, 1 / LENGTH)
    for bad in (-1.0, np.nan, np.inf):
        assert jnp.isnan(edited(kind, jnp.float32(bad), np.eye(LENGTH, dtype=bool), pattern)).all()


def test_traced_selectors_and_masks_of_floats_are_refused(lm, tokens):
    for edges in ({"keys": jnp.ones(2)}, {"mask": jnp.ones((7, 7))}, {"edges": jnp.ones((1, 2))}):
        run = lambda e: lm.run(tokens, {"blocks.1.attn.hook_scores": jmi.Knockout(**e)}).logits
        with pytest.raises(InterventionError, match="must be"):
            jax.jit(run)(edges)


@pytest.mark.parametrize(
    "looks",
    [
        lambda v, site: v * 2 if site.layer == 3 else v,
        lambda v, site: v * [1, 2, 3, 4][site.layer],
        lambda v, site: v if np.asarray(v).any() else v * 2,
        lambda v, site: v if v[v > 0].shape[0] else v * 2,
        lambda v, site: v * float(v.max()),
    ],
)
def test_a_hook_that_asks_for_numbers_before_the_run_is_told_how_to_choose_layers(lm, tokens, looks):
    for hook in (looks, jmi.At([1], looks)):
        with pytest.raises(InterventionError, match=r"use jmi.At\(\[3\], hook\)") as raised:
            lm.run(tokens, {"blocks.*.hook_mlp_out": hook})
        assert isinstance(raised.value.__cause__, (TypeError, IndexError))
