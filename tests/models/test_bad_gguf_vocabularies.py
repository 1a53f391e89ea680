"""Metadata of GGUF files that is wrong or hostile: one TokenizerError each."""

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest

from jmi.errors import TokenizerError
from jmi_models.gguf.vocabulary import tokenizer_of
from tests.support.gguf_vocabularies import metadata

ROWS = len(metadata("gpt-2")["tokenizer.ggml.tokens"])
REFUSED = {
    "no tokens": ("gpt-2", "tokens", [], "must have 1 to"),
    "tokens that are numbers": ("gpt-2", "tokens", np.arange(3), "array of texts"),
    "a token that is a number": ("gpt-2", "tokens", ["a", 3], "array of texts"),
    "too few types": ("gpt-2", "token_type", np.ones(3, np.int32), "one number for each"),
    "types in a list": ("gpt-2", "token_type", [1, 2], "one number for each"),
    "types that are fractions": ("gpt-2", "token_type", np.ones(ROWS, np.float32), "one number for each"),
    "an unknown type": ("gpt-2", "token_type", np.full(ROWS, 9, np.int32), "9, which is no type"),
    "no merges": ("gpt-2", "merges", None, "merges is missing"),
    "merges that are no texts": ("gpt-2", "merges", np.arange(4), "array of texts"),
    "a merge of one token": ("gpt-2", "merges", ["a"], "entry 0, 'a', is not two tokens"),
    "a merge of three tokens": ("gpt-2", "merges", ["a b c"], "is not two tokens"),
    "a merge of unknown tokens": ("gpt-2", "merges", ["t h", "qqq zzz"], "entry 1, 'qqq zzz'"),
    "a merge that makes nothing": ("gpt-2", "merges", ["~ ~"], "that make a third"),
    "an id out of range": ("gpt-2", "bos_token_id", ROWS, f"is {ROWS}, and ids are 0 to {ROWS - 1}"),
    "a negative id": ("gpt-2", "eos_token_id", -5, "is -5"),
    "an id that is a text": ("gpt-2", "eos_token_id", "2", "must be int, not str"),
    "an id that is true": ("gpt-2", "eos_token_id", True, "must be int, not bool"),
    "a flag that is a number": ("gpt-2", "add_bos_token", 1, "must be bool"),
    "an unknown pre-tokenizer": ("gpt-2", "pre", "brand-new", "'brand-new', which jmi does not know"),
    "a pre-tokenizer that is a number": ("gpt-2", "pre", 3, "must be str"),
    "another kind": ("gpt-2", "model", "bert", "'bert', and jmi reads gpt2.*tokenizer=False"),
    "a model without words": ("gpt-2", "model", "none", "'none'"),
    "a kind that is a number": ("gpt-2", "model", 7, "must be str"),
    "spaces removed": ("llama", "remove_extra_whitespaces", True, "not read for llama"),
    "lower case": ("gpt-2", "normalizer.lowercase", True, "not read for gpt2"),
    "a table of characters": (
        "llama",
        "precompiled_charsmap",
        np.zeros(9, np.uint8),
        "not read for this kind",
    ),
    "no scores": ("llama", "scores", None, "scores is missing"),
    "too few scores": ("llama", "scores", np.zeros(5, np.float32), "one number for each"),
    "scores that are no numbers": ("llama", "scores", np.full(480, np.nan, np.float32), "must be finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    name, key, value, message = REFUSED[case]
    with pytest.raises(TokenizerError, match=message) as refusal:
        tokenizer_of(metadata(name, **{key: value}))
    assert len(str(refusal.value)) < 500
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("name", "index", "text", "message"),
    [
        ("gpt-2", 300, "a", "are both 'a'"),
        ("gpt-2", 300, "\udcff", "id 300 is not UTF-8"),
        ("gpt-2", 1, "", "is 1, an empty token"),
        ("gpt-2", 300, "x" * 5000, "longer than"),
        ("llama", 300, "\udc80y", "id 300 is not UTF-8"),
        ("rwkv", 100, "\\q", "id 100 is not spelt as bytes"),
        ("rwkv", 100, "é", "id 100 is not spelt as bytes"),
        ("rwkv", 100, "\\x4", "id 100 is not spelt as bytes"),
        ("rwkv", 100, "\\x61", "are the same"),
    ],
)
def test_a_token_that_cannot_be_is_refused(name, index, text, message):
    tokens = list(metadata(name)["tokenizer.ggml.tokens"])
    tokens[index] = text
    with pytest.raises(TokenizerError, match=message):
        tokenizer_of(metadata(name, tokens=tokens, merges=[] if name == "gpt-2" else None))


def test_a_template_that_is_no_text_is_refused():
    for value in (3, "\udcff", ["a"]):
        with pytest.raises(TokenizerError, match=r"tokenizer\.chat_template must be a text in UTF-8"):
            tokenizer_of(metadata("gpt-2") | {"tokenizer.chat_template": value})


def test_there_is_no_tokenizer_where_the_metadata_has_none():
    assert tokenizer_of({"general.architecture": "llama"}) is None


def hostile() -> dict[str, dict[str, Any]]:
    """Metadata that asks for more than a vocabulary needs."""
    run = ["a" * n for n in range(1, 4000)]
    many = [f"<{i:0300d}>" for i in range(5000)]

    def said(model: str, tokens: list[str], kind: int) -> dict[str, Any]:
        count = len(tokens)
        return {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": -np.arange(count, dtype=np.float32),
            "tokenizer.ggml.token_type": np.full(count, kind, np.int32),
        }

    return {
        "pieces that are long": said("llama", run, 1),
        "control tokens": said("llama", many, 3),
        "a large tree": said("rwkv", run, 1),
    }


@pytest.mark.parametrize("case", ["pieces that are long", "control tokens", "a large tree"])
def test_metadata_cannot_take_the_machine(case):
    said = hostile()[case]
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError):
            tokenizer_of(said)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_text_that_is_no_unicode_is_refused():
    with pytest.raises(TokenizerError, match="cannot be encoded"):
        tokenizer_of(metadata("gpt-2")).encode("a\ud800b")


JUNK = (
    *(None, 3, -1, 2**32 - 1, 2**40, 1.5, True, False, "", "x", "\udcff", [], ["a"], ["a", "a"], [3], {}),
    *(
        np.zeros(0, np.int32),
        np.zeros(480, np.int32),
        np.ones(480, np.float32),
        np.full(480, np.inf),
        np.eye(3),
    ),
)


@pytest.mark.filterwarnings("ignore:tokenizer.ggml")
@pytest.mark.parametrize("name", ["gpt-2", "llama", "gemma2", "phi3", "rwkv"])
def test_any_value_of_any_key_gives_a_tokenizer_or_a_refusal(name):
    said = metadata(name)
    refused = read = 0
    for key in [*said, "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_eos_token"]:
        for junk in JUNK:
            try:
                tokenizer = tokenizer_of({**said, key: junk})
            except TokenizerError:
                refused += 1
                continue
            read += 1
            if tokenizer is not None:
                with contextlib.suppress(TokenizerError):
                    tokenizer.decode(tokenizer.encode("a b<s>"))
    assert refused > 50
    assert read > 20
