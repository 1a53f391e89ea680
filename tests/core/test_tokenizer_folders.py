"""Special tokens, prefix spaces and classes of tokenizers in folders, against transformers."""

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import processors

from jmi.errors import TokenizerError
from jmi.tokenizers import Tokenizer
from tests.core import tokenizer_folders as folders

RECORDED = Path(__file__).parents[1] / "data" / "tokenizer_folders.json"


def reference(folder: Path):
    """The tokenizer of transformers."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        return transformers.AutoTokenizer.from_pretrained(folder)


def ids(encode) -> list[list[int]]:
    return [list(encode(text, special)) for special in (True, False) for text in folders.TEXTS]


def ours(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_folder(folder)
    return ids(lambda text, special: tokenizer.encode(text, special).tolist())


def theirs(tokenizer) -> list[list[int]]:
    return ids(lambda text, special: tokenizer(text, add_special_tokens=special)["input_ids"])


@pytest.mark.oracle
def test_folders_give_the_ids_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    for label, backend, files in folders.folders(200, seed=1):
        folder = folders.write(tmp_path / label.split()[0], backend, files)
        expected = reference(folder)
        assert ours(folder) == theirs(expected), label
        special = Tokenizer.from_folder(folder).special
        assert special == {name: getattr(expected, f"{name}_id") for name in special}, label


def vocabulary_folders(tmp_path: Path) -> list[Path]:
    """``vocab.json`` with ``merges.txt``, and every setting that has a say in it."""
    made = []
    for said in ({}, {"add_bos_token": True}, {"add_eos_token": True, "add_prefix_space": True}):
        for config, files in folders.PLACES:
            settings = folders.NAMED | said | config
            files = {**files, "tokenizer_config.json": settings, "config.json": {"model_type": "gpt2"}}
            files |= folders.as_vocabulary(folders.on_bytes())
            made.append(folders.write(tmp_path / f"vocabulary-{len(made)}", None, files))
    return made


@pytest.mark.oracle
def test_a_vocabulary_with_merges_gives_the_ids_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    for folder in vocabulary_folders(tmp_path):
        assert ours(folder) == theirs(reference(folder)), folder


@pytest.mark.oracle
def test_the_recorded_ids_are_those_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    recorded = json.loads(RECORDED.read_text())
    for folder, expected in zip(recorded_folders(tmp_path), recorded, strict=True):
        assert theirs(reference(folder)) == expected, folder


def recorded_folders(tmp_path: Path) -> list[Path]:
    """Every place with every base, and vocabularies."""
    grid = len(folders.BASES) * len(folders.PLACES)
    made = [folders.write(tmp_path / label.split()[0], t, f) for label, t, f in folders.folders(grid, seed=3)]
    return made + vocabulary_folders(tmp_path)[::3]


def test_folders_give_the_recorded_ids(tmp_path):
    recorded = json.loads(RECORDED.read_text())
    for folder, expected in zip(recorded_folders(tmp_path), recorded, strict=True):
        assert ours(folder) == expected, folder
    assert len(set(map(str, recorded))) > len(folders.BASES)  # what stands beside a tokenizer matters


def test_a_saved_tokenizer_reads_as_before(tmp_path):
    for label, backend, files in folders.folders(120, seed=4):
        folder = folders.write(tmp_path / label.split()[0], backend, files)
        tokenizer = Tokenizer.from_folder(folder)
        before = ours(folder), tokenizer.special
        for file in folder.iterdir():
            if file.name != "config.json":  # as beside saved weights
                file.unlink()
        tokenizer.save(folder)
        assert (ours(folder), Tokenizer.from_folder(folder).special) == before, label


def test_without_files_beside_it_a_vocabulary_is_of_gpt2s_kind(tmp_path):
    alone = folders.write(tmp_path / "alone", None, folders.as_vocabulary(folders.on_bytes()))
    whole = folders.write(tmp_path / "whole", folders.on_bytes(), {"config.json": {"model_type": "gpt2"}})
    texts = [text for text in folders.TEXTS if "<|endoftext|>" not in text]
    for text in texts:
        expected = Tokenizer.from_folder(whole).encode(text).tolist()
        assert Tokenizer.from_folder(alone).encode(text).tolist() == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.model": "x"}, "tokenizer.model alone is none that jmi reads.*AutoTokenizer"),
        ({"tekken.json": "{}"}, "tekken.json alone"),
        ({"qwen.tiktoken": "x"}, "qwen.tiktoken alone"),
        ({"vocab.txt": "x"}, "vocab.txt alone"),
        ({"vocab.json": "{}"}, "vocab.json alone"),
        ({"merges.txt": ""}, "merges.txt alone"),
        ({"x\x1b[31m.model": ""}, r"x\\x1b\[31m\.model alone"),
    ],
)
def test_tokenizers_of_other_kinds_are_named(tmp_path, files, message):
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folders.write(tmp_path / "folder", None, files))


def test_what_cannot_be_carried_out_is_an_error(tmp_path):
    files = {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}}
    with pytest.raises(TokenizerError, match="add_prefix_space for RobertaTokenizer"):
        Tokenizer.from_folder(folders.write(tmp_path / "roberta", folders.on_bytes(), files))
    same = {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}}
    assert Tokenizer.from_folder(folders.write(tmp_path / "same", folders.on_bytes(), same)) is not None
    files = {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}}
    with pytest.raises(TokenizerError, match="no ByteLevel step"):
        Tokenizer.from_folder(folders.write(tmp_path / "marks", folders.gemma(), files))
    files = {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"}}
    files |= folders.as_vocabulary(folders.on_bytes())
    with pytest.raises(TokenizerError, match="GPT2Tokenizer, not for Qwen2Tokenizer"):
        Tokenizer.from_folder(folders.write(tmp_path / "qwen", None, files))


def test_a_template_that_adds_no_token_is_an_error(tmp_path):
    backend = folders.on_bytes()
    backend.post_processor = processors.TemplateProcessing(single="x $A", special_tokens=[("x", 10**6)])
    with pytest.raises(TokenizerError, match="adds id 1000000, which is no token"):
        Tokenizer.from_folder(folders.write(tmp_path / "folder", backend, {}))
