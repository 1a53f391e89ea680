import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, TokenizerError
from jmi.tokenizers import Tokenizer
from jmi_models.embedded import MODELS
from tests.support.tolerances import assert_agree


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(MODELS["atlas"])


def test_text_survives_the_round_trip(tokenizer):
    for text in ("The capital of France is Paris.", "1732 + 7 = ?", "naïve — 東京 🙂\n\ttab", ""):
        assert tokenizer.decode(tokenizer.encode(text, special_tokens=False)) == text


def test_special_tokens_are_added_as_the_file_says(tokenizer):
    plain = tokenizer.encode("Hello", special_tokens=False)
    full = tokenizer.encode("Hello")
    np.testing.assert_array_equal(full, [tokenizer.special["bos_token"], *plain])
    assert tokenizer.decode(full, special_tokens=False) == "Hello"


def test_offsets_count_characters_not_bytes(tokenizer):
    text = "né in Paris"
    encoding = tokenizer.encode_with_offsets(text)
    start, end = encoding.offsets[-1]
    assert text[start:end].strip() == "Paris"
    assert encoding.offsets[0] == (0, 0)
    assert len(encoding.ids) == len(encoding.tokens) == len(encoding.offsets)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_batches_are_padded_on_the_named_side_with_their_mask(tokenizer, padding):
    texts = ["Paris", "The capital of France is Paris"]
    batch = tokenizer.encode_batch(texts, padding)
    for text, row, mask in zip(texts, batch.tokens, batch.mask, strict=True):
        np.testing.assert_array_equal(row[mask], tokenizer.encode(text))
    short = batch.mask[0]
    assert short[-1] == (padding == "left")
    assert not short.all()


def test_other_padding_and_empty_batches_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="left"):
        tokenizer.encode_batch(["a"], "middle")
    with pytest.raises(TokenizerError):
        tokenizer.encode_batch([], "left")


def test_a_word_is_one_token_or_an_error(tokenizer):
    index = tokenizer.token_id("Paris")
    assert tokenizer.token_id(" Paris") == index
    assert tokenizer.token_string(index) == " Paris"
    with pytest.raises(TokenizerError, match="not one token but"):
        tokenizer.token_id("Llanfairpwllgwyngyll")
    with pytest.raises(TokenizerError, match="no token has id"):
        tokenizer.token_string(10**6)


def test_a_missing_tokenizer_is_an_error_only_when_text_is_used(lm, tokens):
    assert lm.run(tokens).logits.shape[-1] == 29
    assert lm.token_string(7) == "<7>"
    for use in (lambda: lm.run("text"), lambda: lm.decode([1]), lambda: lm.token_id("a")):
        with pytest.raises(TokenizerError, match="ships no tokenizer"):
            use()


def test_a_corrupt_tokenizer_is_an_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.from_folder(tmp_path)


class Odd:
    def __array__(self, *_: object, **__: object):
        raise RuntimeError("no array")


@pytest.mark.parametrize("text", [None, b"text", ["text"], 7, np.asarray([1]), "\ud800"])
def test_only_texts_are_encoded(tokenizer, text):
    for encode in (
        tokenizer.encode,
        tokenizer.encode_with_offsets,
        lambda t: tokenizer.encode_batch([t], "left"),
    ):
        with pytest.raises(TokenizerError, match="encoded"):
            encode(text)


@pytest.mark.parametrize(
    "ids", [[1.0], 1.5, "12", [None], [True], [[1], [2, 3]], [[1, 2], [3, 4]], 10**30, Odd()]
)
def test_only_a_row_of_whole_numbers_is_decoded(tokenizer, ids):
    with pytest.raises(TokenizerError, match="ids must be"):
        tokenizer.decode(ids)


@pytest.mark.parametrize("index", [-1, 4096, 2**31, 2**63 - 1])
def test_ids_without_a_token_are_named(tokenizer, index):
    for use in (tokenizer.token_string, lambda i: tokenizer.decode([5, i])):
        with pytest.raises(
            TokenizerError, match=f"no token has id {index}; ids are 0 to {tokenizer.n_vocab - 1}"
        ):
            use(index)
    assert not tokenizer.has(index)


@pytest.mark.parametrize("index", [1.0, "1", None, [1]])
def test_an_id_is_a_whole_number(tokenizer, index):
    for use in (tokenizer.token_string, tokenizer.has):
        with pytest.raises(TokenizerError, match="an id must be a whole number"):
            use(index)


def test_rows_of_every_kind_are_decoded(tokenizer):
    ids = tokenizer.encode("Paris", special_tokens=False)
    for row in (ids, ids[None], ids.tolist(), jnp.asarray(ids), ids.astype(np.uint16)):
        assert tokenizer.decode(row) == "Paris"
    assert tokenizer.decode(int(ids[0])) == tokenizer.decode(ids[:1])
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("word", ["", " ", "\n", None, 7, b"Paris"])
def test_what_is_no_word_has_no_id(tokenizer, word):
    with pytest.raises(TokenizerError, match="is not a word; name one token"):
        tokenizer.token_id(word)


@pytest.mark.parametrize("texts", ["one text", b"bytes", None, 7, {"a": 1}])
def test_a_batch_is_a_list_of_texts(tokenizer, texts):
    with pytest.raises(TokenizerError, match="texts must be a list of texts"):
        tokenizer.encode_batch(texts, "left")


def test_no_control_character_reaches_a_message(tokenizer):
    evil = "\x1b[31mred\u202e\a"
    for use in (
        lambda: tokenizer.token_id(evil),
        lambda: tokenizer.encode_batch(["a"], evil),
        lambda: tokenizer.token_id(evil * 1000),
    ):
        with pytest.raises(TokenizerError) as caught:
            use()
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000


def test_prompts_longer_than_the_context_and_foreign_ids_are_refused(lm):
    with pytest.raises(ArgumentError, match="context"):
        lm.run(np.zeros((1, 65), np.int32))
    with pytest.raises(ArgumentError, match="0 to 28"):
        lm.run(np.full((1, 3), 29, np.int32))


def test_several_texts_run_like_each_alone():
    lm = jmi_models.load("atlas")
    texts = ["The capital of France is", "The weather was cold, so we stayed in the house"]
    together = lm.run(texts).logits[:, -1]
    alone = [lm.run(text).logits[0, -1] for text in texts]
    assert_agree(together, jnp.stack(alone))


def test_lm_run_and_forward_are_the_same_function(arch, params, tokens, lm):
    assert_agree(lm.run(tokens).logits, jmi.forward(arch, params, tokens).logits)
