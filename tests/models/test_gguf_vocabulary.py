"""Tokenizers of GGUF files, against those of the models they were converted from."""

import random
import re
import warnings

import numpy as np
import pytest

from jmi.tokenizers import Tokenizer
from jmi_models.gguf import pretokens
from jmi_models.gguf.sentencepiece import merges
from jmi_models.gguf.vocabulary import tokenizer_of
from tests.oracles.gguf_folders import NAMES, TEMPLATE, made
from tests.support.gguf_vocabularies import TEXTS, metadata, recorded, unpack
from tests.support.texts import texts

PIECES = ("llama", "phi3", "gemma2")
ON_BYTES = [name for name in NAMES if name not in (*PIECES, "rwkv")]


def check(tokenizer: Tokenizer, said: dict) -> None:
    """The tokenizer gives what transformers gave for `TEXTS`."""
    for i, text in enumerate(TEXTS):
        found = tokenizer.encode_with_offsets(text)
        assert found.ids.tolist() == said["ids"][i], text
        assert [start for start, _ in found.offsets] == said["starts"][i], text
        assert len(tokenizer.encode(text, special_tokens=False)) == said["bare"][i], text
        assert tokenizer.decode(found.ids, special_tokens=False) == said["decoded"][i], text


@pytest.mark.parametrize("name", [*ON_BYTES, *PIECES])
def test_what_the_converter_writes_gives_the_tokens_of_the_model(name):
    check(tokenizer_of(metadata(name)), recorded()[name])


@pytest.mark.oracle
@pytest.mark.parametrize("name", ON_BYTES)
def test_many_texts_give_the_tokens_of_the_model(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    made(tmp_path, name)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_of(metadata(name))
    for text in texts(300, seed=1):
        want = theirs(text, return_offsets_mapping=True)
        found = ours.encode_with_offsets(text)
        assert found.ids.tolist() == want["input_ids"], text
        assert list(found.offsets) == want["offset_mapping"], text
        assert ours.decode(found.ids) == theirs.decode(want["input_ids"]), text


@pytest.mark.oracle
@pytest.mark.parametrize("name", PIECES)
def test_many_texts_give_the_tokens_that_transformers_reads_from_the_file(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=unpack(name, tmp_path).name)
    ours = tokenizer_of(metadata(name))
    for text in texts(300, seed=2):
        if name == "phi3" and re.search("<", text):
            continue  # what special tokens do with spaces after them, it does not read
        want = theirs(text, return_offsets_mapping=True)
        found = ours.encode_with_offsets(text)
        assert found.ids.tolist() == want["input_ids"], text
        assert list(found.offsets) == want["offset_mapping"], text
        assert ours.decode(found.ids) == theirs.decode(want["input_ids"]), text


def test_a_world_vocabulary_gives_the_tokens_of_its_own_file(tmp_path):
    made(tmp_path, "rwkv")
    ours, theirs = tokenizer_of(metadata("rwkv")), Tokenizer.from_folder(tmp_path)
    assert ours.n_vocab == theirs.n_vocab
    assert ours.special == {"bos_token": 0, "eos_token": 0, "eot_token": 261}
    for text in texts(250):
        assert ours.encode_with_offsets(text).offsets == theirs.encode_with_offsets(text).offsets
        np.testing.assert_array_equal(ours.encode(text), theirs.encode(text))


def test_control_tokens_are_special_and_those_of_a_user_are_not():
    tokenizer = tokenizer_of(metadata("gpt-2"))
    ids = tokenizer.encode("a<think>b<|im_end|>c   d", special_tokens=False)
    shown = [tokenizer.token_string(i) for i in ids]
    assert shown == ["a", "<think>", "b", "<|im_end|>", "c", "   ", "d"]
    assert tokenizer.decode(ids, special_tokens=False) == "a<think>bc   d"
    assert tokenizer.special["bos_token"] == 0


def test_rows_without_a_token_are_left_out():
    said = metadata("gpt-2")
    tokenizer = tokenizer_of(said)
    rows = len(said["tokenizer.ggml.tokens"])
    assert tokenizer.n_vocab == rows - 3
    assert not tokenizer.has(rows - 1)
    assert tokenizer.has(rows - 4)
    older = said["tokenizer.ggml.token_type"].copy()
    older[-3:] = 2  # as older converters mark them
    assert tokenizer_of(metadata("gpt-2", token_type=older)).n_vocab == rows - 3


@pytest.mark.parametrize("name", NAMES)
def test_saving_keeps_tokens_and_chat_templates(tmp_path, name):
    tokenizer = tokenizer_of(metadata(name))
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    for text in texts(220, seed=3):
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
        assert again.encode_with_offsets(text).offsets == tokenizer.encode_with_offsets(text).offsets
    assert again.chat_templates == tokenizer.chat_templates
    templates = {"smollm": {"default": "default" + TEMPLATE, "tool_use": "tool_use" + TEMPLATE}}
    assert name == "rwkv" or tokenizer.chat_templates == templates.get(name, {"default": TEMPLATE})


@pytest.mark.parametrize(
    ("name", "whole"), [("llama-bpe", True), ("tekken", True), ("gpt-4o", False), ("gpt-2", False)]
)
def test_some_kinds_take_a_piece_that_is_a_token_whole_whatever_the_merges(name, whole):
    said = metadata(name, merges=[], add_bos_token=False)
    word = next(text for text in said["tokenizer.ggml.tokens"][300:] if text.isascii() and text.isalpha())
    assert (len(tokenizer_of(said).encode(word)) == 1) is whole


def pieces(tokens: dict[str, float], **changes) -> Tokenizer:
    """A vocabulary of SentencePiece, text -> score; letters come last, as the trainer puts them."""
    listed = ["<unk>", "<s>", "</s>", *tokens, "▁", *"abcd"]
    scores = [0, 0, 0, *tokens.values(), *(-1000 - i for i in range(5))]
    said = {"tokens": listed, "scores": np.asarray(scores, np.float32), "add_space_prefix": False}
    said["token_type"] = np.asarray([2, 3, 3] + [1] * (len(listed) - 3), np.int32)
    return tokenizer_of(metadata("llama", **(said | changes)))


def spelt(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode_with_offsets(text, special_tokens=False).tokens)


def test_the_pair_of_the_best_score_is_merged_first():
    assert spelt(pieces({"ab": -1, "bc": -2}), "abc") == ["ab", "c"]
    assert spelt(pieces({"ab": -2, "bc": -1}), "abc") == ["a", "bc"]
    # Nothing but a merge of two tokens makes a third: "cd" is none, so neither "abc" nor "bcd" is.
    assert spelt(pieces({"bcd": -1, "abcd": -2}), "abcd") == ["a", "b", "c", "d"]


def test_of_equal_scores_the_longer_left_token_is_merged_first():
    found = merges({0: "a", 1: "aa", 2: "aaa"}, np.ones(3, np.int32), np.full(3, -5.0))
    assert found == [("aa", "a"), ("a", "aa"), ("a", "a")]
    assert spelt(pieces({"bc": -5, "ab": -5}), "abc") == ["a", "bc"]


@pytest.mark.oracle
def test_merges_are_those_of_transformers():
    base = pytest.importorskip("transformers.tokenization_utils_base")
    rng = random.Random(0)
    for _ in range(30):
        words = sorted(
            {"".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(40)},
            key=lambda word: (len(word) % 3, word),
        )
        scores = np.asarray([-float(rng.randint(0, 9)) for _ in words], np.float32)
        want = base.generate_merges(
            {word: i for i, word in enumerate(words)}, dict(zip(words, scores, strict=True))
        )
        assert merges(dict(enumerate(words)), np.ones(len(words), np.int32), scores) == want


def test_letters_that_are_no_tokens_are_one_unknown_token():
    assert spelt(pieces({}), "axyb") == ["a", "<unk>", "b"]


def test_a_space_is_put_before_a_text_and_not_behind_special_tokens():
    tokenizer = tokenizer_of(metadata("llama"))
    assert spelt(tokenizer, "the")[0].startswith("▁")
    assert spelt(tokenizer, " the") == spelt(tokenizer, "the")
    assert not spelt(tokenizer, "</s>the")[1].startswith("▁")
    phi3 = tokenizer_of(metadata("phi3"))
    assert spelt(phi3, " the") == ["▁", *spelt(phi3, "the")]


def test_tokens_of_a_user_are_merged_by_id_where_scores_fall_from_id_to_id():
    said = {"token_type": np.asarray([2, 3, 3, 4, 1, 1, 1, 1, 1, 1], np.int32)}
    tokenizer = pieces({"  ": -1000, "▁a": -1}, **said)
    assert spelt(tokenizer, "  a") == ["▁▁", "a"]
    rising = {"  ": -1000, "▁a": -1, "ab": 0}
    said = {"token_type": np.asarray([2, 3, 3, 4, 1, 1, 1, 1, 1, 1, 1], np.int32)}
    assert spelt(pieces(rising, **said), "  a") == ["▁", "▁a"]


def test_a_run_of_spaces_stays_one_where_the_other_spelling_is_there_too():
    said = {"token_type": np.asarray([2, 3, 3, 4, 1, 1, 1, 1, 1, 1], np.int32)}
    assert spelt(pieces({"  ": -1000, "▁▁": -1}, **said), "  a") == ["  ", "a"]


@pytest.mark.parametrize(
    ("name", "changes", "around"),
    [
        ("gpt-2", {"add_bos_token": None, "add_eos_token": None}, "x"),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, "bxe"),
        ("gpt-2", {"add_bos_token": False, "add_eos_token": True}, "xe"),
        ("gpt-2", {"add_bos_token": None, "bos_token_id": None}, "x"),
        ("llama-bpe", {"add_bos_token": None}, "bx"),
        ("llama-bpe", {"add_bos_token": False}, "x"),
        ("tekken", {"add_bos_token": None}, "bx"),
        ("llama", {"add_bos_token": None, "bos_token_id": None}, "bx"),
        ("llama", {"add_bos_token": False}, "x"),
        ("gemma2", {"add_bos_token": None}, "bx"),
    ],
)
def test_bos_and_eos_are_put_where_the_file_says_so_or_its_kind_does(name, changes, around):
    tokenizer = tokenizer_of(metadata(name, **changes))
    inner = tokenizer.encode("x", special_tokens=False).tolist()
    ends = {"b": [tokenizer.special.get("bos_token")], "x": inner, "e": [tokenizer.special["eos_token"]]}
    assert tokenizer.encode("x").tolist() == [index for end in around for index in ends[end]]


def test_a_file_that_does_not_say_how_texts_are_cut_is_read_with_a_warning():
    for changes in ({"pre": None}, {"pre": "default"}):
        with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre does not say how texts are cut"):
            tokenizer = tokenizer_of(metadata("gpt-2", **changes))
        pieces = [tokenizer.token_string(i) for i in tokenizer.encode("a=12345")]
        assert pieces[:2] == ["a", "="]


def test_a_space_before_texts_is_read_by_pieces_and_not_on_bytes():
    with pytest.warns(UserWarning, match="add_space_prefix is true"):
        tokenizer = tokenizer_of(metadata("gpt-2", add_space_prefix=True))
    assert tokenizer.decode(tokenizer.encode("x")) == "x"
    with_space, without = (tokenizer_of(metadata("llama", add_space_prefix=flag)) for flag in (True, False))
    assert with_space.encode("the").tolist() == without.encode(" the").tolist()
    assert with_space.encode("the").tolist() != without.encode("the").tolist()
    assert without.decode(without.encode(" the", special_tokens=False)) == " the"


def test_special_tokens_of_phi3_take_the_spaces_after_them():
    tokenizer = tokenizer_of(metadata("phi3"))
    for text, swallows in {"<|end|> \n the": True, "</s>  the": True, "<|endoftext|> the": False}.items():
        close = re.sub(r">\s+", ">", text)
        assert (tokenizer.encode(text).tolist() == tokenizer.encode(close).tolist()) is swallows, text


@pytest.mark.parametrize("name", sorted(pretokens.PRETOKENS))
def test_every_pre_tokenizer_is_one_that_the_library_takes(name):
    kind = "gemma2" if pretokens.PRETOKENS[name].marked else "gpt-2"
    changes = {"pre": name, "model": "gpt2", "merges": metadata("gpt-2")["tokenizer.ggml.merges"]}
    if kind == "gemma2":
        changes["merges"] = ["t h", "th e"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "default" else "error")
        tokenizer = tokenizer_of(metadata(kind, **changes))
    for text in texts(200):
        ids = tokenizer.encode(text, special_tokens=False)
        normal = pretokens.PRETOKENS[name].normalizer is not None
        assert normal or tokenizer.decode(ids) == text
