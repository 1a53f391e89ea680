"""Broken and hostile files of tokenizers: one TokenizerError each, whatever is wrong."""

import contextlib
import os
import re
import time

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from jmi.errors import TokenizerError
from jmi.tokenizers import Tokenizer, limits
from tests.core import bad_tokenizers as bad
from tests.core import tokenizer_folders as folders

PROBES = (*folders.TEXTS, "a" * 40 + "!", "b")


def _ids(encode) -> list[list[int] | None]:
    """Ids of every probe; None where it is refused."""
    found = []
    for text in PROBES:
        try:
            found.append(list(encode(text)))
        except TokenizerError as error:
            found.append(_refusal(error))
    return found


def _refusal(error: TokenizerError) -> None:
    """Check that an error is a sentence that a terminal can show."""
    assert str(error).isprintable()
    assert len(str(error)) < 600


def _library(file) -> list[list[int] | None]:
    """What the library makes of ``tokenizer.json`` alone."""
    with limits.refusing("no"):
        backend = tokenizers.Tokenizer.from_file(str(file))

    def encode(text: str) -> list[int]:
        with limits.refusing("no"):
            return backend.encode(text).ids

    return _ids(encode)


def test_bad_folders_end_in_an_error_or_in_the_right_tokenizer(tmp_path):
    began, refused, read = time.process_time(), 0, 0
    for label, files in bad.bad_folders(180, seed=5):
        folder = tmp_path / label.split()[0]
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        try:
            tokenizer = Tokenizer.from_folder(folder)
        except TokenizerError as error:
            refused += _refusal(error) is None
            continue
        found = _ids(lambda text, tokenizer=tokenizer: tokenizer.encode(text).tolist())
        assert found == _library(folder / "tokenizer.json"), label
        for row in found:
            with contextlib.suppress(TokenizerError):
                assert isinstance(tokenizer.decode(row or []), str)
        read += 1
    assert refused > read > 10
    assert time.process_time() - began < 60  # about 5 seconds; without bounds it never ends


def test_the_right_folders_are_read(tmp_path):
    for files in (bad.right(), bad.legacy()):
        folder = folders.write(tmp_path / str(len(files)), None, files)
        tokenizer = Tokenizer.from_folder(folder)
        found = _ids(lambda text, tokenizer=tokenizer: tokenizer.encode(text).tolist())
        assert found == _library(folder / "tokenizer.json")
        assert None not in found


def _pipe(file):
    os.mkfifo(file)


def _sparse(file):
    with file.open("wb") as stream:
        stream.truncate(2**40)


SORTS = {
    "a pipe": (_pipe, "not a regular file"),
    "a folder": (lambda file: file.mkdir(), "not a regular file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "not a regular file"),
    "a link to nothing": (lambda file: file.symlink_to("nothing"), "cannot be read"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "cannot be read"),
    "a terabyte": (_sparse, "are read; use less"),
}
NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", [*NAMES, "vocab.json", "merges.txt", "rwkv_vocab_v1.txt"])
def test_what_is_no_small_regular_file_is_refused_before_it_is_opened(tmp_path, sort, name):
    make, message = SORTS[sort]
    vocabulary = folders.as_vocabulary(folders.on_bytes())
    rest = vocabulary if name in vocabulary else {} if name.startswith("rwkv") else bad.right()
    if name in ("special_tokens_map.json", "added_tokens.json"):
        rest["tokenizer_config.json"] = {}
    folder = folders.write(tmp_path / "folder", None, {k: v for k, v in rest.items() if k != name})
    make(folder / name)
    with pytest.raises(TokenizerError, match=f"{re.escape(name)} .*{message}"):
        Tokenizer.from_folder(folder)


WRONG = (
    ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}, "vocabulary is empty"),
    ("tokenizer_config.json", {"add_prefix_space": "yes"}, "add_prefix_space must be true or false"),
    ("tokenizer_config.json", {"tokenizer_class": ["x"]}, "tokenizer_class must be a name"),
    (
        "tokenizer_config.json",
        {"bos_token": 7},
        "tokenizer_config.json: bos_token must be a text, or an object",
    ),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder must be an object"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder must map ids"),
    (
        "tokenizer_config.json",
        {"extra_special_tokens": 3},
        "extra_special_tokens must be a list or an object",
    ),
    ("special_tokens_map.json", [], "special_tokens_map.json must hold an object, not list"),
    ("special_tokens_map.json", {"bos_token": {"content": 1}}, "bos_token must be a text, or an object"),
    ("added_tokens.json", {"\x1b[31m": "x"}, r"the id of '\\x1b\[31m' must be a whole number"),
)


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_wrong_types_are_named_with_their_file(tmp_path, name, content, message):
    files = bad.right() | {"tokenizer_config.json": {}} | {name: content}
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folders.write(tmp_path / "folder", None, files))


STEPS = {
    "replaced": normalizers.Replace("a", "abc"),
    "replaced by a pattern": normalizers.Replace(tokenizers.Regex("x*"), "ab"),
    "prepended": normalizers.Prepend("abc"),
    "unfolded": normalizers.NFKD(),
    "composed": normalizers.NFC(),
    "lowered": normalizers.Lowercase(),
    "as in BERT": normalizers.BertNormalizer(),
    "bytes": normalizers.ByteLevel(),
    "several": normalizers.Sequence(
        [normalizers.Replace("a", "aa"), normalizers.NFKC(), normalizers.Prepend("a")]
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_text_grows_beyond_the_bound(step):
    backend = folders.gemma()
    backend.pre_tokenizer, backend.normalizer = None, STEPS[step]
    bound = limits.growth(backend)
    for text in ("a", "aaaa", "ﷺ", "ΐ", "İ", "日本", "x y", "🙂", "é", "ﬃ"):
        made = STEPS[step].normalize_str(text)
        assert len(made.encode()) <= bound * len(text.encode()), text


def test_pre_tokenizers_keep_to_the_bound():
    for step in (
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace("🙂"),
    ):
        backend = folders.gemma()
        backend.normalizer, backend.pre_tokenizer = None, step
        for text in ("a", "é", "  ", "a b", "日", "🙂"):
            made = "".join(piece for piece, _ in step.pre_tokenize_str(text))
            assert len(made.encode()) <= limits.growth(backend) * len(text.encode()), text


def test_texts_and_ids_beyond_the_bound_are_refused(tmp_path, monkeypatch):
    tokenizer = Tokenizer.from_folder(folders.write(tmp_path / "folder", folders.on_bytes(), {}))
    monkeypatch.setattr(limits, "MOST_BYTES", 400)
    most = 400 // limits.growth(folders.on_bytes())
    assert len(tokenizer.encode("b" * most)) == most
    for text in ("b" * (most + 1), "é" * (most // 2 + 1)):
        with pytest.raises(TokenizerError, match=f"is too long, this tokenizer takes at most {most} bytes"):
            tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="500 ids are too many"):
        tokenizer.decode([70] * 500)


def test_a_search_without_end_is_an_error_and_the_tokenizer_goes_on(tmp_path):
    backend = folders.on_bytes()
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    tokenizer = Tokenizer.from_folder(folders.write(tmp_path / "folder", backend, {}))
    with pytest.raises(TokenizerError, match=r"cannot be encoded.*retry-limit"):
        tokenizer.encode("a" * 40 + "!")
    assert tokenizer.decode(tokenizer.encode("b")) == "b"


def test_interrupts_are_no_tokenizer_errors():
    with pytest.raises(KeyboardInterrupt), limits.refusing("x"):
        raise KeyboardInterrupt
