"""Options of sampling: recorded distributions of transformers, and loops in numpy from the definitions."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmi.errors import ArgumentError
from jmi.sampling.options import sampling_of
from jmi.sampling.steps import warped

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
RECORDED = SHARED / "oracles" / "interp" / "generation.json"
CASES = json.loads(RECORDED.read_text())["cases"] if RECORDED.is_file() else []
recorded = pytest.mark.skipif(not CASES, reason="oracles/interp/generation.json is not here; set JMI_SHARED")

V, END = 24, 1
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, V)).astype(np.float32) * 3
TEXT = RNG.integers(2, 7, (3, 11)).astype(np.int32)
JITTED = jax.jit(warped)


def run(options, logits=LOGITS, tokens=TEXT, known=None, step=4, draws=True):
    options = {"eos_token_id": END, **options}
    sampling = sampling_of(options, n_vocab=logits.shape[1], draws=draws)
    known = np.ones(tokens.shape, bool) if known is None else known
    return np.asarray(JITTED(sampling, logits, tokens, known, step))


def test_all_recorded_cases_are_here():
    assert not CASES or len(CASES) == 38


@recorded
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['key']}-{'-'.join(case['options'])}")
def test_logits_are_those_of_transformers(case):
    kept = np.load(RECORDED.with_suffix(".npz"))
    tokens, want = kept["input_ids"], kept[f"{case['key']}.warped"]
    found = run(case["options"], kept["logits"], tokens, step=tokens.shape[1] - case["prompt_length"])
    if {"top_p", "top_h"} & set(case["options"]):
        # Rows 1 and 3 hold ties. Of equal tokens as many stay; which ones, torch leaves to its sorting.
        np.testing.assert_allclose(np.sort(found), np.sort(want), rtol=0, atol=1e-5)
        found, want = found[::2], want[::2]
    assert (np.isneginf(found) == np.isneginf(want)).all()
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5)
    probs = np.asarray(jax.nn.softmax(found))
    np.testing.assert_allclose(probs, kept[f"{case['key']}.probs"][:: 4 // len(probs)], rtol=0, atol=1e-5)


def test_of_equal_tokens_the_lowest_ids_stay():
    flat = np.zeros((1, 8), np.float32)
    text = np.zeros((1, 1), np.int32)
    for options in ({"top_p": 0.5}, {"top_h": 0.55}):
        assert np.isfinite(run(options, flat, text)[0]).tolist() == [True] * 4 + [False] * 4
    assert np.isfinite(run({"top_k": 2}, flat, text)).all()


def test_a_penalty_for_repetition_falls_once_on_each_token_of_the_text():
    found = run({"repetition_penalty": 1.7})
    for row, logits, text in zip(found, LOGITS, TEXT, strict=True):
        for token, logit in enumerate(logits):
            seen = token in text
            want = logit * 1.7 if seen and logit < 0 else logit / 1.7 if seen else logit
            assert row[token] == pytest.approx(want, abs=1e-5)


def test_penalties_of_openai_count_what_was_generated_and_not_the_prompt():
    found = run({"presence_penalty": 0.7, "frequency_penalty": 0.3})
    for row, logits, text in zip(found, LOGITS, TEXT, strict=True):
        for token, logit in enumerate(logits):
            count = text[-4:].tolist().count(token)
            want = logit - count * 0.3 - (0.7 if count else 0)
            assert row[token] == pytest.approx(want, abs=1e-5)
    np.testing.assert_array_equal(run({"presence_penalty": 0.7}, step=0), LOGITS)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_sequence_comes_twice(size):
    found = run({"no_repeat_ngram_size": size})
    for row, text in zip(found, TEXT.tolist(), strict=True):
        said = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        for token in range(V):
            again = (*text[len(text) - size + 1 :], token) in said
            assert np.isneginf(row[token]) == again
    assert np.isneginf(found).any() or size == 4


def test_biases_fall_on_the_token_that_completes_a_sequence():
    biases = [([5], 1.5), ([TEXT[0, -1], 5], -2.0), ([*TEXT[1, -3:], 9], 4.0), ([*TEXT[2], 3, 3], 8.0)]
    found = run({"sequence_bias": biases, "bad_words_ids": [[4], [*TEXT[2, -2:], 8]]})
    for row, logits, text in zip(found, LOGITS, TEXT.tolist(), strict=True):
        want = logits.astype(float)
        for ids, bias in biases:
            before = [int(i) for i in ids[:-1]]
            if text[len(text) - len(before) :] == before:
                want[ids[-1]] += bias
        want[4] = -np.inf
        if text[-2:] == TEXT[2, -2:].tolist():
            want[8] = -np.inf
        np.testing.assert_allclose(row, want, atol=1e-5)


EVERY = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.4,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[5], [6, 9], [2, 3, 4]],
    "sequence_bias": {(8,): 4.0, (6, 2): -3.0},
    "min_length": 12,
    "min_new_tokens": 3,
    "suppress_tokens": [12, 13],
    "begin_suppress_tokens": 14,
    "temperature": 0.7,
    "top_h": 0.95,
    "top_k": 12,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 1e-4,
    "eta_cutoff": 1e-3,
    "renormalize_logits": True,
}


def test_padding_is_no_part_of_the_text():
    """On both sides, between the tokens, and whatever stands there."""
    want = run(EVERY)
    place = np.sort([RNG.choice(20, 11, replace=False) for _ in range(3)])
    tokens, known = RNG.integers(0, V, (3, 20)).astype(np.int32), np.zeros((3, 20), bool)
    np.put_along_axis(tokens, place, TEXT, 1)
    np.put_along_axis(known, place, True, 1)
    np.testing.assert_array_equal(run(EVERY, tokens=tokens, known=known), want)
    assert np.isneginf(want[:, END]).all(), "11 tokens are fewer than min_length"
    assert np.isfinite(
        run({**EVERY, "min_length": 11, "top_k": 0, "top_p": 1, "typical_p": 1, "top_h": 1})
    ).any()


def test_other_numbers_and_ids_are_data():
    traces = []

    @jax.jit
    def counted(sampling):
        traces.append(1)
        return warped(sampling, jnp.asarray(LOGITS), jnp.asarray(TEXT), jnp.ones(TEXT.shape, bool), 4)

    found = [counted(sampling_of({"eos_token_id": END, **EVERY}, n_vocab=V, draws=True))]
    for name, other in {
        **{name: value / 2 for name, value in EVERY.items() if isinstance(value, float)},
        "top_k": 2,
        "min_length": 3,
        "min_new_tokens": 5,
        "bad_words_ids": [[20]],
        "sequence_bias": [[[21], 9.0]],
        "suppress_tokens": [int(found[0][0].argmax())],
        "begin_suppress_tokens": [3, 4],
        "eos_token_id": [1, 2, 3],
    }.items():
        found.append(counted(sampling_of({"eos_token_id": END, **EVERY, name: other}, n_vocab=V, draws=True)))
    assert len(traces) == 1
    assert len({np.asarray(x).tobytes() for x in found}) > 8


def test_steps_of_a_draw_leave_greedy_choices_alone():
    np.testing.assert_array_equal(run({"temperature": 0.3}, draws=False), LOGITS)
    np.testing.assert_array_equal(run({"temperature": 0.3, "do_sample": False}), LOGITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_q": 0.5}, "did you mean top_p"),
        ({"num_beams": 3}, "is no option of sampling; there are temperature"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": np.inf}, "above 0"),
        ({"top_p": 1.5}, "from 0 to 1"),
        ({"top_p": np.nan}, "from 0 to 1"),
        ({"top_p": "0.5"}, "from 0 to 1"),
        ({"typical_p": 0.0}, "above 0, at most 1"),
        ({"eta_cutoff": 1.0}, "from 0 to below 1"),
        ({"repetition_penalty": -1}, "above 0"),
        ({"presence_penalty": np.inf}, "finite"),
        ({"top_k": 2.5}, "whole number"),
        ({"no_repeat_ngram_size": -1}, "0 or more"),
        ({"suppress_tokens": [3, 24]}, "no token 24; ids are 0 to 23"),
        ({"suppress_tokens": [[3]]}, "one id, or a list"),
        ({"eos_token_id": -1}, "0 or more"),
        ({"bad_words_ids": [[]]}, r"give ids, at least one each, such as \[\[5\]"),
        ({"bad_words_ids": [[END]]}, "an end token; to forbid it use suppress_tokens="),
        ({"sequence_bias": [[5]]}, r"such as \[\(\[8\], 4.0\)"),
        ({"sequence_bias": [([5], np.nan)]}, "give a number"),
        ({"renormalize_logits": "no"}, "True or False"),
        ({"eos_token_id": (), "min_new_tokens": 2}, "no effect without an end token"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        run(options)


def test_options_without_an_effect_are_refused():
    with pytest.raises(ArgumentError, match="top_k= has no effect where the most likely token is taken"):
        run({"top_k": 3}, draws=False)
    with pytest.raises(ArgumentError, match="needs a seed"):
        run({"do_sample": True}, draws=False)
