"""``jmi inspect``: what is printed, where, and the exit code."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from jmi.cli import main
from tests.oracles import grid


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    # The command line shows warnings in its own way from then on.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def write(folder: Path, name: str, **changes: Any) -> Path:
    held = grid.committed(name)
    return grid.write_folder(folder, {**held.config, **changes}, held.tensors)


def jmi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of the command line."""
    monkeypatch.setattr(sys, "argv", ["jmi", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    return (done.value.code or 0, *capsys.readouterr())


def test_embedded_model_is_inspected_by_default(monkeypatch: Any, capsys: Any) -> None:
    code, out, err = jmi(monkeypatch, capsys, "inspect")
    assert (code, err) == (0, "")
    assert "atlas can be loaded, read as llama" in out
    assert "inferred" not in out


def test_unknown_family_shows_what_was_inferred_and_assumed(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    folder = write(tmp_path / "m[1]", "gpt_oss/alternating", model_type="someones_gpt_oss")
    code, out, err = jmi(monkeypatch, capsys, "inspect", folder, "--output", tmp_path / "report.json")
    assert (code, err) == (0, "")
    assert f"{folder} can be loaded, read as auto" in out
    for words in (
        "│ num_attention_heads ",
        "tensors: model.layers.0.self_attn.sinks ...",
        "4 in 1 of 2 layers",
        "assumed:",
        "interleaved would look the same",
    ):
        assert words in out, words
    result = json.loads((tmp_path / "report.json").read_text())
    assert (result["supported"], result["family"], result["unread"]) == (True, "auto", [])
    assert result["arch"]["experts"]["n_experts"] == 4
    source = "tensors: model.layers.0.self_attn.sinks ..."
    assert {"field": "sinks", "value": "a score for each head", "source": source} in result["findings"]


def test_a_config_field_that_nobody_knows_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder = write(tmp_path / "m", "gpt_oss/alternating", model_type="someones_gpt_oss", oddity=3)
    code, _, err = jmi(monkeypatch, capsys, "inspect", folder)
    assert code == 2
    assert "oddity=3" in err
    assert len(err.splitlines()) == 1


def test_model_that_cannot_be_loaded_is_reported_with_exit_code_2(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    held = grid.committed("llama/longrope_beyond")
    tensors = {name.replace("input_layernorm", "norm_in"): value for name, value in held.tensors.items()}
    folder = grid.write_folder(tmp_path / "m", held.config, tensors)
    code, out, err = jmi(monkeypatch, capsys, "inspect", folder)
    assert code == 2
    assert "missing tensors:" in out
    assert "model.layers.0.input_layernorm.weight [24], and 1 more such" in out
    assert err == f"error: {folder} cannot be loaded: 2 tensors missing; 2 tensors surplus\n"


def test_other_naming_is_named(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    code, out, err = jmi(
        monkeypatch, capsys, "inspect", write(tmp_path / "m", "bloom/six_heads_untied", model_type="b")
    )
    assert code == 2
    assert "│ bloom " in out
    assert "set model_type to 'bloom'" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./nowhere"], "no such folder"),
        (["--output", "missing/report.json"], "does not exist"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], words: str, monkeypatch: Any, capsys: Any
) -> None:
    code, out, err = jmi(monkeypatch, capsys, "inspect", *arguments)
    assert (code, out) == (2, "")
    assert words in err
