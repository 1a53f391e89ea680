import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

import jmi_models
from jmi.errors import ArgumentError, HookError, InterventionError, TokenizerError
from jmi.interp.patching.knockout import knockout
from tests.support.tolerances import assert_agree

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def lm():
    return jmi_models.load("atlas")


def by_hand(lm, tokens, layer, query, key, heads):
    """Logits with the edge cut by a plain function over the scores."""

    def cut(scores, site):
        mask = np.zeros(scores.shape, bool)
        mask[:, heads, query, key] = True
        return jnp.where(jnp.asarray(mask), -jnp.inf, scores)

    return lm.run(tokens, {f"blocks.{layer}.attn.hook_attn_scores": cut}).logits[0, -1]


def test_result_equals_the_same_cut_written_by_hand(lm):
    tokens = lm.encode(PROMPT)
    france = tokens.shape[1] - 2
    everywhere = range(lm.arch.n_layers)
    result = knockout(
        lm, PROMPT, layer=everywhere, queries=-1, keys=france, heads=[0, 3], target="Paris", top=4
    )
    before, after = np.asarray(lm.run(tokens).logits[0, -1]), by_hand(lm, tokens, "*", -1, france, [0, 3])
    assert_agree((result.baseline_logits, result.ablated_logits), (before, np.asarray(after)))
    p, q = softmax(before.astype(np.float64)), softmax(np.asarray(after, np.float64))
    # In float32 a divergence is a difference of logarithms: good to about 1e-6 absolutely.
    np.testing.assert_allclose(result.kl, rel_entr(p, q).sum(), rtol=1e-4, atol=1e-6)
    paris = lm.token_id("Paris")
    assert_agree(np.float32(result.target_logit_drop), np.float32(before[paris] - after[paris]), scale=before)
    np.testing.assert_allclose(result.target_probs, (p[paris], q[paris]), rtol=1e-4)
    assert set(result.top.tokens) == set(np.argsort(-np.abs(p - q))[:4])


def test_by_default_the_last_token_no_longer_sees_the_one_before_and_that_has_an_effect(lm):
    result = knockout(lm, PROMPT)
    last = len(result.tokens) - 1
    assert result.layers == tuple(range(lm.arch.n_layers))
    assert np.argwhere(result.cut.all(0)).tolist() == [[last, last - 1]]
    assert result.target == result.baseline_logits.argmax()
    expected = by_hand(lm, lm.encode(PROMPT), "*", -1, -2, slice(None))
    assert_agree(result.ablated_logits, expected)
    assert result.changed
    assert result.kl > 1
    assert repr(result).startswith("KnockoutResult(4 edges of a layer cut, layers [0, 1, 2, 3, 4, 5], target")
    assert result.top.tokens[0] == result.target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cut_without_effect_says_so_and_lists_the_likeliest_tokens(dtype):
    """Layer 2 of this model attends to nothing from there; a list of changes would be tokens 0, 1, 2."""
    result = knockout(jmi_models.load("atlas", dtype=dtype), PROMPT, layer=2, keys=[0, 1, 2], top=5)
    assert not result.changed
    likeliest = np.argsort(-result.baseline_logits.astype(np.float32), kind="stable")[:5]
    assert result.top.tokens.tolist() == likeliest.tolist()
    np.testing.assert_allclose(result.top.baseline, result.top.other, rtol=1e-5)


def test_a_model_that_gives_nan_is_an_error(lm):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), lm.params)
    with pytest.raises(ArgumentError, match=r"atlas, broken gives NaN .*in float32"):
        knockout(lm.derived(lm.arch, broken, "broken"), PROMPT)


def test_the_context_is_checked_before_edges_are_made(lm, monkeypatch):
    """A million tokens have 10**12 edges."""
    monkeypatch.setattr(sys.modules[knockout.__module__], "_cut_edges", lambda *_: pytest.fail("edges"))
    with pytest.raises(ArgumentError, match="context"):
        knockout(lm, np.zeros((1, 1_000_000), np.int32), queries=None, keys=None)


def test_cutting_the_subject_everywhere_loses_the_fact(lm):
    """The effect-size guard: the intervention must do what the phenomenon says."""
    tokens = lm.encode(PROMPT)
    france = tokens.shape[1] - 2
    later = range(france + 1, tokens.shape[1])
    result = knockout(
        lm, PROMPT, layer=range(lm.arch.n_layers), queries=list(later), keys=france, target="Paris"
    )
    assert result.target_probs[0] > 0.9
    assert result.target_probs[1] < 0.1


def test_several_layers_and_negative_layers(lm):
    result = knockout(lm, PROMPT, layer=[-1, 0])
    assert result.layers == (0, lm.arch.n_layers - 1)
    assert result.attention.shape[0] == 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"layer": 99}, HookError, "layers 0 to"),
        ({"heads": 99}, InterventionError, "heads"),
        ({"queries": 99}, InterventionError, "queries"),
        ({"queries": 0, "keys": 3}, ArgumentError, "only to itself and earlier"),
        ({"target": "Llanfairpwllgwyngyll"}, TokenizerError, "not one token"),
        ({"target": -3}, ArgumentError, "target=-3"),
        ({"top": 0}, ArgumentError, "top=0"),
    ],
)
def test_what_cannot_be_cut_is_refused(lm, arguments, error, words):
    with pytest.raises(error, match=words):
        knockout(lm, PROMPT, **arguments)


def test_one_prompt_at_a_time(lm):
    with pytest.raises(ArgumentError, match="one prompt"):
        knockout(lm, np.zeros((2, 3), np.int32))


def test_padding_is_left_out(lm):
    tokens = lm.encode(PROMPT)
    padded, mask = np.pad(tokens, ((0, 0), (2, 1))), np.pad(np.ones(tokens.shape, bool), ((0, 0), (2, 1)))
    plain, found = knockout(lm, PROMPT), knockout(lm, (padded, mask))
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.ablated_logits, plain.ablated_logits)
