"""Chat templates of model folders, kept as text, against transformers."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from jmi.errors import TokenizerError
from jmi.tokenizers import Tokenizer
from tests.core import tokenizer_folders as folders

ONE = "{{ messages[0]['content'] }}"
LISTED = [{"name": "default", "template": "d" + ONE}, {"name": "rag", "template": "r" + ONE}]
MORE = "additional_chat_templates"


def write(folder: Path, config: Any = None, files: dict[str, str] | None = None) -> Path:
    said = folders.NAMED | ({} if config is None else {"chat_template": config})
    folders.write(folder, folders.on_bytes(), {"tokenizer_config.json": said})
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


CASES: dict[str, tuple[Any, dict[str, str], dict[str, str]]] = {
    "none": (None, {}, {}),
    "in the config": (ONE, {}, {"default": ONE}),
    "listed in the config": (LISTED, {}, {"default": "d" + ONE, "rag": "r" + ONE}),
    "a file": (None, {"chat_template.jinja": "f" + ONE}, {"default": "f" + ONE}),
    "a file beside the config": (ONE, {"chat_template.jinja": "f" + ONE}, {"default": "f" + ONE}),
    "files": (
        LISTED,
        {"chat_template.jinja": "f" + ONE, f"{MORE}/tool_use.jinja": "t" + ONE},
        {"default": "f" + ONE, "tool_use": "t" + ONE},
    ),
    "files without a default": (ONE, {f"{MORE}/rag.jinja": "t" + ONE}, {"rag": "t" + ONE}),
}


@pytest.mark.parametrize("case", CASES)
def test_templates_are_read_and_survive_saving(tmp_path, case):
    config, files, want = CASES[case]
    tokenizer = Tokenizer.from_folder(write(tmp_path / "model", config, files))
    assert tokenizer.chat_templates == want
    again = tmp_path / "again"
    again.mkdir()
    tokenizer.save(again)
    assert Tokenizer.from_folder(again).chat_templates == want


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_templates_are_those_of_transformers(tmp_path, case):
    transformers = pytest.importorskip("transformers")
    config, files, want = CASES[case]
    tokenizer = Tokenizer.from_folder(write(tmp_path / "model", config, files))
    again = tmp_path / "again"
    again.mkdir()
    tokenizer.save(again)
    for folder in (tmp_path / "model", again):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = transformers.AutoTokenizer.from_pretrained(folder).chat_template or {}
        assert ({"default": found} if isinstance(found, str) else found) == want


@pytest.mark.parametrize(
    "value", [3, {"a": ONE}, ["a"], [{"name": "default"}], [{"name": 1, "template": ONE}]]
)
def test_a_template_that_is_no_text_is_refused(tmp_path, value):
    with pytest.raises(TokenizerError, match="chat_template must be a text, or a list of objects"):
        Tokenizer.from_folder(write(tmp_path / "model", value))


def test_a_template_file_that_is_no_text_is_refused(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8"):
        Tokenizer.from_folder(folder)


def test_a_world_vocabulary_keeps_its_template(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "rwkv_vocab_v20230424.txt").write_text("1 'a' 1\n2 'b' 1\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": ONE}))
    again = tmp_path / "again"
    again.mkdir()
    Tokenizer.from_folder(folder).save(again)
    assert Tokenizer.from_folder(again).chat_templates == {"default": ONE}
