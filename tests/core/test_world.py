"""The RWKV World tokenizer: published encodings, a naive oracle, and every way a file can be bad."""

import json
import os
import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import jmi.tokenizers.world
from jmi.errors import TokenizerError
from jmi.tokenizers import Tokenizer
from jmi.tokenizers.world import END_OF_TEXT, World

SHARED = Path(os.environ.get("JMI_SHARED") or Path(__file__).parents[3] / "shared")
FOLDER = SHARED / "models" / "rwkv-world-tokenizer"
VOCABULARY = FOLDER / "rwkv_vocab_v20230424.txt"
HELLO = ("h", "e", "l", "o", "he", "hel", "hello")
BYTES = {index + 1: bytes([index]) for index in range(256)}

published = pytest.mark.skipif(
    not VOCABULARY.is_file(),
    reason="the World vocabulary is not here; set JMI_SHARED to the folder that holds models/",
)


def world_of(*tokens: str | bytes) -> World:
    """A vocabulary with ids from 1."""
    raw = [token.encode() if isinstance(token, str) else token for token in tokens]
    return World(dict(enumerate(raw, 1)))


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


@pytest.fixture(scope="module")
def world() -> World:
    return World.from_file(VOCABULARY)


@published
def test_published_texts_have_the_ids_of_both_reference_tokenizers(world):
    cases = json.loads((FOLDER / "expected_encodings.json").read_text(encoding="utf-8"))
    assert len(cases) == 13
    for case in cases:
        encoded = world.encode(case["text"])
        assert encoded.ids == case["ids"]
        assert world.decode(encoded.ids) == case["text"]


@published
def test_the_published_vocabulary_survives_saving(world, tmp_path):
    world.save(tmp_path / "saved.txt")
    assert World.from_file(tmp_path / "saved.txt").entries == world.entries
    assert world.get_vocab_size() == 65_530


@pytest.mark.parametrize(
    ("literal", "token"),
    [
        (r"'\x7f'", b"\x7f"),
        (r"'\x80'", b"\xc2\x80"),
        (r"'\xff'", b"\xc3\xbf"),
        (r"b'\xff'", b"\xff"),
        (r'b"\xff"', b"\xff"),
        ("' a b '", b" a b "),
        ('"\'"', b"'"),
        (r"'\u4e16\U0001f642\\\n'", "世🙂\\\n".encode()),
        ("'\u2028\x85'", "\u2028\x85".encode()),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_literals_are_those_of_python(tmp_path, literal, token, end):
    lines = (f"7 {literal} {len(token)}", "9 'z' 1")
    world = World.from_file(write(tmp_path / "v.txt", *lines, end=end))
    assert world.entries == {7: token, 9: b"z"}
    world.save(tmp_path / "saved.txt")
    assert World.from_file(tmp_path / "saved.txt").entries == world.entries


def test_the_last_line_needs_no_end(tmp_path):
    (tmp_path / "v.txt").write_text("1 'a' 1\n2 'b' 1")
    assert World.from_file(tmp_path / "v.txt").entries == {1: b"a", 2: b"b"}


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("hello", ["hello"], [(0, 5)]),
        ("helo", ["hel", "o"], [(0, 3), (3, 4)]),
        ("hellhello", ["hel", "l", "hello"], [(0, 3), (3, 4), (4, 9)]),
        ("", [], []),
    ],
)
def test_the_longest_token_wins(text, tokens, offsets):
    encoded = world_of(*HELLO).encode(text)
    assert (encoded.tokens, encoded.offsets) == (tokens, offsets)


def test_offsets_count_characters_and_widen_to_whole_ones():
    assert world_of("h", "i").encode("hi").offsets == [(0, 1), (1, 2)]
    # "é" is C3 A9 and "世" E4 B8 96: tokens end inside the first, span both, and begin inside the second.
    encoded = world_of("a", b"\xc3", b"\xa9\xe4", b"\xb8\x96b").encode("aé世b")
    assert encoded.offsets == [(0, 1), (1, 2), (1, 3), (2, 4)]
    assert encoded.tokens == ["a", r"\xc3", r"\xa9\xe4", r"\xb8\x96b"]


@st.composite
def texts_and_vocabularies(draw: st.DrawFn) -> tuple[str, dict[int, bytes]]:
    """A text, and all single bytes with pieces of the text, and others, as longer tokens."""
    text = draw(st.text(max_size=40) | st.text("ab é世🙂", max_size=40))
    data = text.encode()
    bounds = st.tuples(st.integers(0, len(data)), st.integers(2, 8))
    pieces = [data[start : start + length] for start, length in draw(st.lists(bounds, max_size=12))]
    merges = pieces + draw(st.lists(st.binary(min_size=2, max_size=5), max_size=4))
    tokens = dict.fromkeys([*BYTES.values(), *(merge for merge in merges if merge)])
    return text, dict(enumerate(tokens, 1))


def naive(data: bytes, entries: dict[int, bytes]) -> list[int]:
    """Longest match by trying the whole vocabulary, longest tokens first, at each place."""
    ranked = sorted(entries, key=lambda index: -len(entries[index]))
    ids = []
    while data:
        ids.append(next(index for index in ranked if data.startswith(entries[index])))
        data = data[len(entries[ids[-1]]) :]
    return ids


@given(texts_and_vocabularies())
def test_text_survives_and_equals_the_naive_search(case):
    text, entries = case
    world = World(entries)
    encoded = world.encode(text)
    assert encoded.ids == naive(text.encode(), entries)
    assert world.decode(encoded.ids) == text
    character_of = [i for i, character in enumerate(text) for _ in character.encode()]
    end = 0
    for index, offsets in zip(encoded.ids, encoded.offsets, strict=True):
        start, end = end, end + len(entries[index])
        assert offsets == (character_of[start], character_of[end - 1] + 1)


@pytest.mark.parametrize("text", ["a", "ab", "aaab"])
def test_steps_grow_linearly_with_the_text(monkeypatch, text):
    steps = 0

    class Counting(jmi.tokenizers.world._Node):
        def get(self, *arguments):
            nonlocal steps
            steps += 1
            return super().get(*arguments)

    monkeypatch.setattr(jmi.tokenizers.world, "_Node", Counting)
    world = world_of("a", "b", "aab", "a" * 8 + "b")  # runs of "a" are read ahead and given back
    text *= 20_000
    world.encode(text)
    assert len(text) // 8 <= steps <= 9 * len(text)


def test_a_byte_without_a_token_is_named():
    with pytest.raises(TokenizerError, match=r"byte 3 of the text, 0x78.*every single byte"):
        world_of("h", "é", "ix").encode("héx")
    with pytest.raises(TokenizerError, match=r"byte 1 of the text, 0x69"):
        world_of("h", "ix").encode("hi")
    with pytest.raises(TokenizerError, match=r"character 1 .* surrogate"):
        World(BYTES).encode("a\ud800")


def test_ids_without_a_token_are_refused():
    world = World({1: b"a", 4: b"b"})
    assert world.get_vocab_size() == 5
    for index in (2, 3, 5, -1, 10**12):
        assert world.id_to_token(index) is None
        with pytest.raises(TokenizerError, match=f"no token has id {index}; ids are 0 to 4"):
            world.decode([1, index])


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character():
    world = world_of(b"\xc3", b"\xa9")
    assert world.decode([1, 2]) == "é"
    assert world.decode([2, 1]) == "\ufffd\ufffd"


def test_id_0_is_the_end_of_text_unless_listed():
    world = World(BYTES)
    assert world.id_to_token(0) == END_OF_TEXT
    assert world.token_to_id(END_OF_TEXT) == 0
    assert world.decode([98, 0, 99], skip_special_tokens=False) == f"a{END_OF_TEXT}b"
    assert world.decode([98, 0, 99], skip_special_tokens=True) == "ab"
    assert 0 not in world.encode(END_OF_TEXT).ids
    listed = World({0: b"a", 1: b"b"})
    assert listed.encode("ab").ids == [0, 1]
    assert listed.decode([0, 1]) == "ab"
    assert listed.token_to_id(END_OF_TEXT) is None


def test_strings_and_ids_are_inverse():
    world = world_of(*HELLO, b"\xff", " ", "世", b"\x96b")
    for index in range(world.get_vocab_size()):
        assert world.token_to_id(world.id_to_token(index)) == index
    assert world.token_to_id("absent") is None


BAD = {
    "one field": ("1", "three fields"),
    "two fields": ("1 'a'", "three fields"),
    "a blank line": ("", "three fields"),
    "id not an integer": ("one 'a' 1", "id one must be a whole number"),
    "id with underscore": ("1_0 'a' 1", "id 1_0 must be a whole number"),
    "id of another script": ("٣ 'a' 1", "id ٣ must be a whole number"),
    "negative id": ("-1 'a' 1", "id -1 must be a whole number"),
    "id beyond int32": ("2147483648 'a' 1", "from 0 to 2147483647"),
    "duplicate id": ("5 'a' 1", "id 5 is on line 1 too"),
    "duplicate token": ("6 b'z' 1", "token b'z' is on line 1 too"),
    "empty token": ("6 '' 0", "empty token"),
    "length too small": ("6 'é' 1", "'é' is 2 bytes, not 1"),
    "length not an integer": ("6 'a' x", "'a' is 1 bytes, not x"),
    "a number": ("6 12 2", "12 is not a literal of text or bytes"),
    "a list": ("6 [b'a'] 1", "not a literal"),
    "a name": ("6 a 1", "not a literal"),
    "a call": ("6 print('a') 1", "not a literal"),
    "an open quote": ("6 'a 1", "not a literal"),
    "half of a surrogate pair": (r"6 '\ud800' 3", "not a literal"),
    "deep nesting": ("6 " + "(" * 500 + " 1", "not a literal"),
    "non-ASCII bytes": ("6 b'é' 2", "not a literal"),
    "a NUL": ("6 'a\0' 2", "not a literal"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named(tmp_path, case):
    line, message = BAD[case]
    file = write(tmp_path / "v.txt", "5 'z' 1", line, "8 'y' 1")
    with pytest.raises(TokenizerError, match=r"v\.txt line 2: .*" + re.escape(message)):
        World.from_file(file)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n"])
def test_files_without_entries_are_refused(tmp_path, content):
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"v\.txt line 1: no entries"):
        World.from_file(tmp_path / "v.txt")


def test_files_that_are_not_text_or_not_there_are_refused(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"1 'a' 1\n2 '\xff' 1\n")
    with pytest.raises(TokenizerError, match=r"v\.txt line 2: not UTF-8"):
        World.from_file(tmp_path / "v.txt")
    with pytest.raises(TokenizerError, match=r"absent\.txt cannot be read"):
        World.from_file(tmp_path / "absent.txt")


def test_it_serves_as_the_backend_of_a_tokenizer():
    merges = {300: "né".encode(), 301: b" is", 302: b"Par", 303: b" Paris"}
    tokenizer = Tokenizer(World(BYTES | merges), {})
    assert tokenizer.n_vocab == 304
    np.testing.assert_array_equal(tokenizer.encode("né is Paris"), [300, 301, 303])
    encoding = tokenizer.encode_with_offsets("né is Paris")
    assert encoding.ids.dtype == np.int32
    assert encoding.tokens == ("né", " is", " Paris")
    assert encoding.offsets == ((0, 2), (2, 5), (5, 11))
    batch = tokenizer.encode_batch(["né", "né is Paris"], "left")
    np.testing.assert_array_equal(batch.tokens, [[0, 0, 300], [300, 301, 303]])
    np.testing.assert_array_equal(batch.mask, [[False, False, True], [True, True, True]])
    assert tokenizer.token_id("Paris") == tokenizer.token_id(" Paris") == 303
    assert tokenizer.token_id("Par") == 302
    assert tokenizer.token_string(303) == " Paris"
    assert tokenizer.token_string(0) == END_OF_TEXT
    with pytest.raises(TokenizerError, match="not one token but"):
        tokenizer.token_id("London")
    with pytest.raises(TokenizerError, match="ids are 0 to 303"):
        tokenizer.token_string(304)
    assert tokenizer.decode(np.asarray([300, 301, 0])) == f"né is{END_OF_TEXT}"
    assert tokenizer.decode([300, 301, 0], special_tokens=False) == "né is"
