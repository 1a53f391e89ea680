"""Where generation ends, what it says of its tokens, and options of sampling inside its loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, TokenizerError
from tests.core.conftest import lively, tiny
from tests.support.padded import model as other_model
from tests.support.tolerances import assert_agree

N, PAD = 8, 5
TOKENS = np.random.default_rng(3).integers(0, 29, (3, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def wide():
    with jax.enable_x64(True):
        arch = tiny()
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64))


@pytest.fixture(scope="module")
def atlas():
    return jmi_models.load("atlas")


def ends_in(tokens):
    """A token at which some row ends before another, and how long the rows are then."""
    rows = np.asarray(tokens)
    for token in np.unique(rows[:, 1:-2]):
        ends = [np.flatnonzero(row == token) for row in rows]
        lengths = [int(at[0]) + 1 if len(at) else rows.shape[1] for at in ends]
        if min(lengths) > 1 and len(set(lengths)) > 1:
            return int(token), lengths
    raise AssertionError("no row ends before another")


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("how", ["stop", "eos_token_id"])
def test_a_row_ends_with_the_first_end_token_and_others_go_on(wide, how, exact):
    whole = wide.generate(TOKENS, N, exact=exact)
    assert np.asarray(whole.lengths).tolist() == [N] * 3
    token, lengths = ends_in(whole.tokens)
    found = wide.generate(TOKENS, N, exact=exact, pad_token_id=PAD, **{how: [token, 28]})
    for row, length in enumerate(lengths):
        assert 28 not in np.asarray(whole.tokens)[row, :length]
        np.testing.assert_array_equal(found.tokens[row, :length], whole.tokens[row, :length])
        assert_agree(found.log_probs[row, :length], whole.log_probs[row, :length])
        assert (np.asarray(found.tokens)[row, length:] == PAD).all()
        assert (np.asarray(found.log_probs)[row, length:] == 0).all()
    assert np.asarray(found.lengths).tolist() == lengths


def test_log_probabilities_are_those_of_the_model_itself(wide):
    """Of one run of the whole text, whatever options chose the tokens."""
    options = {"temperature": 3.0, "top_k": 7, "repetition_penalty": 1.5, "suppress_tokens": [1, 2, 3]}
    for given in ({}, {"seed": 4, **options}):
        found = wide.generate(TOKENS, N, **given)
        logits = np.asarray(wide.run(np.concatenate([TOKENS, found.tokens], 1)).logits)[:, 5:-1]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert_agree(
            found.log_probs, np.take_along_axis(logs, np.asarray(found.tokens)[..., None], -1)[..., 0]
        )


def test_the_loop_ends_with_its_last_row_and_captures_what_was_read(wide):
    whole = wide.generate(TOKENS[:1], N, capture=["blocks.2.hook_resid_post"])
    end = int(whole.tokens[0, 3])
    length = np.asarray(whole.tokens)[0].tolist().index(end) + 1
    found = wide.generate(TOKENS[:1], N, stop=end, capture=["blocks.2.hook_resid_post"])
    was, want = (np.asarray(x.captures["blocks.2.hook_resid_post"]) for x in (found, whole))
    assert_agree(was[:length], want[:length])
    assert (was[length:] == 0).all()
    assert np.abs(want[length:]).min() > 0


@pytest.mark.parametrize("name", ["tiny", "rwkv7"])
def test_memory_of_a_row_that_has_ended_is_that_of_its_text(wide, name):
    lm = wide if name == "tiny" else other_model(name)
    with jax.enable_x64(True):
        whole = lm.generate(TOKENS, N)
        token, lengths = ends_in(whole.tokens)
        found = lm.generate(TOKENS, N, stop=token, memory=True)
        more = TOKENS[:, :3]
        got = lm.run(more, memory=found.memory).logits
        for row, length in enumerate(lengths):
            text = np.concatenate([TOKENS[row], np.asarray(whole.tokens)[row, :length], more[row]])
            assert_agree(got[row], lm.run(text[None]).logits[0, -3:])


def test_a_row_with_a_seed_of_its_own_draws_what_it_draws_alone(wide):
    found = wide.generate(TOKENS, N, seed=[7, 1, 7], top_p=0.9, temperature=2.0)
    for row, seed in enumerate([7, 1, 7]):
        alone = wide.generate(TOKENS[row : row + 1], N, seed=seed, top_p=0.9, temperature=2.0)
        np.testing.assert_array_equal(found.tokens[row : row + 1], alone.tokens)
    same = wide.generate(TOKENS[[0, 0, 0]], N, seed=range(3), temperature=2.0).tokens
    assert len({row.tobytes() for row in np.asarray(same)}) == 3
    keys = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    drawn = jmi.generate(wide.arch, wide.params, TOKENS[[0, 0, 0]], N, key=keys, temperature=2.0).tokens
    np.testing.assert_array_equal(drawn, same)
    old = jmi.generate(wide.arch, wide.params, TOKENS, N, key=jax.random.PRNGKey(3)).tokens
    np.testing.assert_array_equal(old, wide.generate(TOKENS, N, seed=3).tokens)


def test_seeds_and_numbers_are_axes_with_ends_too(wide):
    end = ends_in(wide.generate(TOKENS, N).tokens)[0]
    keys, masses = jax.random.split(jax.random.key(0), 3), jnp.asarray([0.1, 0.99])

    def drawn(key, mass):
        found = jmi.generate(
            wide.arch, wide.params, TOKENS, N, key=key, stop=end, top_p=mass, temperature=2.0
        )
        return found.tokens, found.lengths

    tokens, lengths = jax.jit(jax.vmap(jax.vmap(drawn, (0, None)), (None, 0)))(keys, masses)
    for i, mass in enumerate(masses):
        for j, key in enumerate(keys):
            want = drawn(key, mass)
            np.testing.assert_array_equal(tokens[i, j], want[0])
            np.testing.assert_array_equal(lengths[i, j], want[1])
    assert len(np.unique(lengths)) > 1


def test_what_is_drawn_are_the_tokens_that_options_leave(wide):
    """With the frequencies of the softmax over those that are left."""
    tokens = jnp.asarray(TOKENS[:1])
    keys = jax.random.split(jax.random.key(1), 20_000)
    draw = lambda key: jmi.generate(
        wide.arch, wide.params, tokens, 1, key=key, top_k=4, temperature=3.0
    ).tokens[0, 0]
    found = np.bincount(np.asarray(jax.jit(jax.vmap(draw))(keys)), minlength=29) / len(keys)
    logits = np.asarray(wide.run(TOKENS[:1]).logits)[0, -1]
    kept = np.argsort(logits)[-4:]
    want = np.zeros(29)
    want[kept] = np.exp(logits[kept] / 3) / np.exp(logits[kept] / 3).sum()
    assert (np.abs(found - want) < 5 * np.sqrt(want * (1 - want) / len(keys)) + 1e-9).all()


def test_other_numbers_of_every_option_compile_nothing(lm, programs):
    given = {
        "stop": [3],
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.1,
        "suppress_tokens": [4],
        "min_new_tokens": 2,
    }
    lm.generate(TOKENS, N, seed=0, **given)
    assert programs()[0] > 0
    for other in (
        {"stop": [1, 2, 9]},
        {"temperature": 2},
        {"top_p": 0.5, "top_k": 3},
        {"repetition_penalty": 1.9, "presence_penalty": -1, "frequency_penalty": 0.5},
        {"suppress_tokens": [5, 6]},
        {"min_new_tokens": 4},
    ):
        lm.generate(TOKENS, N, seed=1, **{**given, **other})
    lm.generate(TOKENS[:, 1:], N - 2, seed=2, **given)
    assert programs() == (0, 0)


def test_options_in_the_loop_are_those_of_a_loop_over_whole_texts(wide):
    """Written out in numpy: what was generated counts from the first new token on, the prompt does not."""
    first = int(wide.generate(TOKENS[:1], 1).tokens[0, 0])
    end = int(wide.generate(TOKENS[:1], 1, suppress_tokens=first).tokens[0, 0])
    text = TOKENS[0].tolist()
    for step in range(N):
        logits = np.array(wide.run(np.asarray([text])).logits)[0, -1]
        logits = np.where(
            np.isin(np.arange(29), text), np.where(logits < 0, logits * 1.1, logits / 1.1), logits
        )
        for token in range(29):
            count = text[6:].count(token)
            logits[token] -= 0.4 * count + 0.9 * (count > 0)
        logits[[first] if step == 0 else []] = -np.inf
        logits[[end] if step < 3 else []] = -np.inf
        text.append(int(logits.argmax()))
        if text[-1] == end:
            break
    found = wide.generate(
        TOKENS[:1],
        N,
        stop=end,
        repetition_penalty=1.1,
        presence_penalty=0.9,
        frequency_penalty=0.4,
        begin_suppress_tokens=first,
        min_new_tokens=3,
    )
    assert np.asarray(found.tokens)[0, : int(found.lengths[0])].tolist() == text[6:]
    assert text[6:] != np.asarray(wide.generate(TOKENS[:1], N).tokens)[0, : len(text) - 6].tolist()


def test_least_lengths_count_tokens_of_each_row(wide):
    """New ones, and of the whole text without its padding."""
    plain = wide.generate(TOKENS[:1], N).tokens
    end = int(plain[0, 1])
    least = wide.generate(TOKENS[:1], N, stop=end, min_new_tokens=5)
    assert int(least.lengths[0]) >= 6
    assert end not in np.asarray(least.tokens)[0, :5]
    mask = np.arange(6)[None] >= 2
    padded = wide.generate(jmi.Prompts(TOKENS[:1], mask), N, stop=end, min_length=8, no_repeat_ngram_size=2)
    alone = wide.generate(TOKENS[:1, 2:], N, stop=end, min_length=8, no_repeat_ngram_size=2)
    np.testing.assert_array_equal(padded.tokens, alone.tokens)
    assert end not in np.asarray(alone.tokens)[0, :4]


def test_what_cannot_be_stopped_at_is_refused(atlas, lm):
    with pytest.raises(ArgumentError, match="memory would hold what comes after"):
        atlas.generate("The capital of Japan is", 3, stop="and", memory=True)
    with pytest.raises(ArgumentError, match=r"outside of jax\.jit"):
        jax.jit(lambda x: atlas.generate(x, 3, stop="and").tokens)(
            jnp.asarray(atlas.to_tokens("The capital of Japan is"))
        )
    with pytest.raises(ArgumentError, match="an empty text"):
        atlas.generate("The capital of Japan is", 3, stop="")
    with pytest.raises(TokenizerError):
        lm.generate(TOKENS, 3, stop="and")
    with pytest.raises(ArgumentError, match=r"use lm\.generate"):
        jmi.generate(lm.arch, lm.params, TOKENS, 3, stop="and")
    with pytest.raises(ArgumentError, match="no token 29"):
        lm.generate(TOKENS, 3, stop=29)
    with pytest.raises(ArgumentError, match="one for each of the 3 rows"):
        lm.generate(TOKENS, 3, seed=[1, 2])
    with pytest.raises(ArgumentError, match="one for each of the 3 rows"):
        jmi.generate(lm.arch, lm.params, TOKENS, 3, key=jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ArgumentError, match="leave no token"):
        lm.generate(TOKENS, 1, suppress_tokens=range(29))
