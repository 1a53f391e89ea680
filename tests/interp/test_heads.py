"""Scores of heads against loops over edges, and what the heads they find in atlas do."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError
from jmi.interp.decompose.factored import composition_scores
from jmi.interp.decompose.heads import head_scores, repeated_tokens
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree


def mean_share(pattern: np.ndarray, tokens: np.ndarray, is_edge: Any) -> np.ndarray:
    """Attention ``[l, h]`` of ``pattern`` ``[l, b, h, q, t]`` on edges, by loops."""
    shares = []
    for row, words in enumerate(tokens):
        for query in range(len(words)):
            keys = [key for key in range(query + 1) if is_edge(words, query, key)]
            if keys:
                shares.append(pattern[:, row, :, query, keys].sum(0))
    return np.mean(shares, axis=0)


def test_scores_equal_loops_over_edges() -> None:
    # Few different tokens, so that copies are many and overlap.
    arch, tokens = tiny(), np.random.default_rng(0).integers(0, 4, (3, 9)).astype(np.int32)
    lm = jmi.LanguageModel(arch, lively(arch))
    scores = head_scores(lm, tokens, reach=3)
    out = lm.run(tokens, capture=["blocks.*.attn.hook_pattern"])
    pattern = np.asarray(out.stack("attn.hook_pattern"), np.float64)

    def check(got: Any, is_edge: Any) -> None:
        assert_agree(got, mean_share(pattern, tokens, is_edge).astype(np.float32))

    check(scores.current_token, lambda words, query, key: key == query > 0)
    check(scores.previous_token, lambda words, query, key: key == query - 1)
    check(scores.back[..., 2], lambda words, query, key: key == query - 2)
    check(scores.duplicate_token, lambda words, query, key: key < query and words[key] == words[query])
    check(scores.induction, lambda words, query, key: key > 0 and words[key - 1] == words[query])
    check(scores.after_copy[..., 2], lambda words, query, key: key > 1 and words[key - 2] == words[query])
    check(scores.first_token, lambda words, query, key: key == 0 < query)


def test_repeated_tokens_say_the_same_twice() -> None:
    tokens = repeated_tokens(3, n_sequences=5, length=7, d_vocab=8, bos=2)
    assert tokens.shape == (5, 15)
    assert tokens.dtype == np.int32
    assert (tokens[:, 0] == 2).all()
    np.testing.assert_array_equal(tokens[:, 1:8], tokens[:, 8:])
    # All ids but bos, each once.
    np.testing.assert_array_equal(np.sort(tokens[:, 1:8]), np.tile([0, 1, 3, 4, 5, 6, 7], (5, 1)))
    assert len(np.unique(tokens, axis=0)) == 5
    np.testing.assert_array_equal(tokens, repeated_tokens(3, 5, 7, 8, 2))
    assert repeated_tokens(0, 2, 3, 8).shape == (2, 6)
    with pytest.raises(ArgumentError, match="1 to 7"):
        repeated_tokens(3, 5, 8, 8, 2)


def test_scores_of_other_models_and_tokens_retrace_nothing() -> None:
    arch, traces = tiny(), []

    @jax.jit
    def scores(params: Any, tokens: Any) -> Any:
        traces.append(tokens)
        return head_scores(jmi.LanguageModel(arch, params), tokens)

    params = lively(arch)
    one = scores(params, repeated_tokens(0, 2, 4, 29))
    other = scores(jax.tree.map(lambda w: -w, params), repeated_tokens(1, 2, 4, 29))
    assert len(traces) == 1
    assert not np.allclose(one.induction, other.induction)
    assert_agree(one.back, head_scores(jmi.LanguageModel(arch, params), repeated_tokens(0, 2, 4, 29)).back)


def test_tokens_without_copies_have_no_score_for_them() -> None:
    scores = head_scores(jmi.LanguageModel(tiny(), lively(tiny())), np.arange(6, dtype=np.int32)[None])
    assert np.isnan(scores.after_copy).all()
    assert not np.isnan(scores.back).any()


def test_a_model_without_patterns_and_too_short_a_reach_are_refused() -> None:
    ranks = (("rank_mix", 4), ("rank_decay", 5))
    arch = jmi_models.Rwkv(6, 2, 24, 2, 12, 40, 31, ranks)
    lm = jmi.LanguageModel(arch, jmi_models.init(arch, 0))
    with pytest.raises(HookError, match="hook_pattern"):
        head_scores(lm, np.zeros((1, 4), np.int32))
    with pytest.raises(ArgumentError, match="2 or more"):
        head_scores(lm, np.zeros((1, 4), np.int32), reach=1)
    with pytest.raises(ArgumentError, match="without padding"):
        head_scores(lm, (np.zeros((1, 4), np.int32), np.arange(4)[None] > 0))


LENGTH = 20


@pytest.fixture(scope="module")
def atlas() -> Any:
    """The model, repeated tokens, scores, and the heads ``[n, 2]`` that look two places behind a copy."""
    lm = jmi_models.load("atlas")
    tokens = repeated_tokens(0, 16, LENGTH, lm.arch.d_vocab, bos=0)
    scores = head_scores(lm, tokens)
    return lm, tokens, scores, np.argwhere(scores.after_copy[..., 2] > 0.9)


def test_some_heads_of_atlas_stand_out(atlas: Any) -> None:
    """Not one place behind the copy but two: previous-token heads have moved what comes next there."""
    *_, scores, behind = atlas
    assert scores.previous_token.max() > 0.99
    assert scores.induction.max() < 0.1
    assert 1 <= len(behind) <= 6
    assert np.sort(scores.after_copy[..., 2].ravel())[-len(behind) - 1] < 0.5


def test_without_the_heads_that_look_behind_a_copy_atlas_continues_no_repetition(atlas: Any) -> None:
    lm, tokens, _, behind = atlas

    def loss(heads: Any) -> float:
        """Mean nats per token of the second half, from its fifth token on."""
        hooks: dict[str, Any] = {}
        for layer, head in heads:
            hooks.setdefault(f"blocks.{layer}.attn.hook_z", []).append(jmi.Zero(heads=int(head)))
        logits = np.asarray(lm.run(tokens, hooks).logits[:, LENGTH + 4 : -1], np.float64)
        return -np.take_along_axis(log_softmax(logits, -1), tokens[:, LENGTH + 5 :, None], -1).mean()

    late = np.indices((lm.arch.n_layers, lm.arch.n_heads)).reshape(2, -1).T[behind[0, 0] * lm.arch.n_heads :]
    others = [head for head in late.tolist() if head not in behind.tolist()]
    rng = np.random.default_rng(0)
    assert loss([]) < 0.2
    assert max(loss(rng.permutation(others)[: len(behind)]) for _ in range(5)) < 0.3
    # Worse than guessing among all tokens.
    assert loss(behind) > np.log(lm.arch.d_vocab)


def test_heads_that_look_behind_a_copy_compose_with_one_that_looks_two_back(atlas: Any) -> None:
    lm, _, scores, behind = atlas
    composition = np.asarray(
        composition_scores(jmi.LanguageModel(*jmi_models.fold_norm_gains(lm.arch, lm.params)), "K")
    )
    two_back = scores.back[..., 2] > 0.9
    assert 1 <= two_back.sum() <= 3
    for layer, head in behind:
        writers = composition[:, :, layer, head]
        assert two_back[np.unravel_index(writers.argmax(), writers.shape)]
