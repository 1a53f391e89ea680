"""Texts of generation: those of transformers, and where they end."""

import copy
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, TokenizerError

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
RECORDED = SHARED / "oracles" / "interp" / "generation.json"
GREEDY = json.loads(RECORDED.read_text())["greedy"] if RECORDED.is_file() else []
recorded = pytest.mark.skipif(not GREEDY, reason="oracles/interp/generation.json is not here; set JMI_SHARED")


@pytest.fixture(scope="module")
def atlas():
    return jmi_models.load("atlas")


OPTIONS = [case["options"] for case in GREEDY if "prompt" in case][:8]


@recorded
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_texts_are_those_of_transformers(atlas, options):
    """Four prompts in one batch, each of which transformers continued alone."""
    cases = [case for case in GREEDY if case["options"] == options and "prompt" in case]
    given = {"stop" if name == "stop_strings" else name: value for name, value in options.items()}
    found = atlas.generate([case["prompt"] for case in cases], 24, **given)
    assert len(cases) == 4
    for row, case in enumerate(cases):
        length = len(case["tokens"])
        assert int(found.lengths[row]) == length
        assert np.asarray(found.tokens)[row, :length].tolist() == case["tokens"]
        assert found.text[row] == case["text"]
        assert (np.asarray(found.tokens)[row, length:] == atlas.tokenizer.pad_id).all()
        assert (np.asarray(found.log_probs)[row, length:] == 0).all()
    batches = [case for case in GREEDY if case["options"] == options and "batch" in case]
    for case in batches:
        assert np.asarray(found.tokens)[:, :16].tolist() == case["tokens"]


PROMPT = "The capital of Japan is"


def test_the_end_token_of_the_tokenizer_ends_a_text_unless_it_is_turned_off(atlas):
    ended = atlas.generate(PROMPT, 12, eos_token_id=atlas.token_id(" and"))
    whole = atlas.generate(PROMPT, 12)
    assert ended.text == [" Tokyo and"]
    assert whole.text[0].startswith(" Tokyo and the capital")
    tokenizer = copy.copy(atlas.tokenizer)
    tokenizer.special = {**tokenizer.special, "eos_token": atlas.token_id(" and")}
    lm = dataclasses.replace(atlas, tokenizer=tokenizer)
    found = lm.generate(PROMPT, 12)
    np.testing.assert_array_equal(found.tokens, ended.tokens)
    assert lm.generate(PROMPT, 12, eos_token_id=()).text == whole.text
    with pytest.raises(ArgumentError, match="an end token"):
        lm.generate(PROMPT, 12, bad_words_ids=[[atlas.token_id(" and")]])


def test_text_leaves_out_special_tokens_and_keeps_the_space_before_a_word(atlas):
    end = atlas.tokenizer.special["eos_token"]
    forced = {"hook_logits": jmi.Add(np.eye(4096, dtype=np.float32)[end] * 1e4)}
    found = atlas.generate([PROMPT, "Paris"], 4, step_hooks=forced)
    assert np.asarray(found.lengths).tolist() == [2, 2]
    assert (np.asarray(found.tokens)[:, 1] == end).all()
    assert found.text[0] == " Tokyo"


def test_text_is_what_tokens_add_to_their_prompt():
    """Some tokenizers drop the first space of a text, and a prompt may end within a character."""

    class Words:
        def decode(self, ids, special_tokens):
            assert not special_tokens
            return (
                b"".join([b" a", b" b", "ü".encode()[:1], "ü".encode()[1:]][i] for i in ids)
                .decode(errors="replace")
                .removeprefix(" ")
            )

    prompts = np.asarray([[0, 0], [0, 2]])
    found = jmi.Generated(
        np.asarray([[1, 1], [3, 1]]), np.asarray([1, 2]), np.zeros((2, 2)), {}, None, prompts=None
    )
    said = dataclasses.replace(found, prompts=jmi.Prompts(prompts), tokenizer=Words())
    assert said.text == [" b", "� b"]
    masked = dataclasses.replace(
        said, prompts=jmi.Prompts(prompts, np.asarray([[False, True], [True, False]]))
    )
    assert masked.text == [" b", "� b"]
    with pytest.raises(TokenizerError, match="no tokenizer"):
        found.text  # noqa: B018


def test_texts_to_stop_at_end_a_row_with_the_token_that_completes_them(atlas):
    whole = atlas.generate([PROMPT, PROMPT], 12)
    found = atlas.generate([PROMPT, PROMPT], 12, stop=["kyo and t", "never said", "of"])
    assert found.text == [" Tokyo and the"] * 2
    length = int(found.lengths[0])
    np.testing.assert_array_equal(found.tokens[:, :length], whole.tokens[:, :length])
    np.testing.assert_array_equal(found.log_probs[:, :length], whole.log_probs[:, :length])
    assert (np.asarray(found.log_probs)[:, length:] == 0).all()
    assert atlas.generate(PROMPT, 12, stop=[atlas.token_id(" and"), "kyo"]).text == [" Tokyo"]
    assert atlas.generate(PROMPT, 12, stop=[atlas.token_id(" and"), "the"]).text == [" Tokyo and"]
