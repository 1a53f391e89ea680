import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

import jmi_models
from jmi.errors import ConfigError, HookError, InterventionError, TokenizerError
from jmi.interp import knockout

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
    np.testing.assert_allclose(result.baseline_logits, before, atol=1e-5)
    np.testing.assert_allclose(result.ablated_logits, after, atol=1e-5)
    p, q = softmax(before.astype(np.float64)), softmax(np.asarray(after, np.float64))
    # In float32 a divergence is a difference of logarithms: good to about 1e-6 absolutely.
    np.testing.assert_allclose(result.kl, rel_entr(p, q).sum(), rtol=1e-4, atol=1e-6)
    paris = lm.token_id("Paris")
    np.testing.assert_allclose(result.target_logit_drop, before[paris] - after[paris], atol=2e-5)
    np.testing.assert_allclose(result.target_probs, (p[paris], q[paris]), rtol=1e-4)
    assert set(result.top.tokens) == set(np.argsort(-np.abs(p - q))[:4])


def test_default_edge_is_last_to_first_in_all_heads_of_the_middle_layer(lm):
    result = knockout(lm, PROMPT)
    assert result.layers == (lm.arch.n_layers // 2,)
    assert np.argwhere(result.cut.all(0)).tolist() == [[len(result.tokens) - 1, 0]]
    assert result.target == result.baseline_logits.argmax()
    expected = by_hand(lm, lm.encode(PROMPT), lm.arch.n_layers // 2, -1, 0, slice(None))
    np.testing.assert_allclose(result.ablated_logits, expected, atol=1e-5)


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
        ({"queries": 0, "keys": 3}, ConfigError, "only to itself and earlier"),
        ({"target": "Llanfairpwllgwyngyll"}, TokenizerError, "not one token"),
        ({"target": -3}, ConfigError, "token ids"),
        ({"top": 0}, ConfigError, "at least one"),
    ],
)
def test_what_cannot_be_cut_is_refused(lm, arguments, error, words):
    with pytest.raises(error, match=words):
        knockout(lm, PROMPT, **arguments)


def test_one_prompt_at_a_time(lm):
    with pytest.raises(ConfigError, match="one prompt"):
        knockout(lm, np.zeros((2, 3), np.int32))
