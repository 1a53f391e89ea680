"""The commands as a person types them: output, files, exit codes, and no traceback."""

import json
import shutil

import pytest
from huggingface_hub import constants

from jmi.artefacts import SCHEMA_VERSION
from jmi_models.embedded import MODELS
from jmi_models.gguf import places
from tests.cli.command_line import jmi, typed


def test_knockout_alone_does_the_main_job():
    done = typed("knockout")
    assert done.returncode == 0, done.stderr
    assert "atlas" in done.stdout
    assert "KL(baseline || ablated)" in done.stdout
    assert "nothing changed" not in done.stdout
    (paris,) = (line for line in done.stdout.splitlines() if line.startswith("│ ' Paris'"))
    change = float(paris.split("│")[-2].strip().rstrip("%"))
    assert change < -90


def test_a_knockout_without_effect_says_so_and_shows_target_and_likeliest_tokens(tmp_path):
    options = ("--layer", 1, "--key", 0, "--target", "Germany", "--top", 2, "--output", tmp_path / "x.json")
    done = jmi("knockout", *options)
    assert done.returncode == 0, done.stderr
    assert "nothing changed" in done.stdout
    listed = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert listed[0] == "' Paris'"
    assert listed[-1] == "' Germany'"
    assert len(listed) == 3
    assert json.loads((tmp_path / "x.json").read_text())["changed"] is False


def test_knockout_writes_a_self_contained_result_and_a_picture(tmp_path):
    output, plot = tmp_path / "result.json", tmp_path / "result.png"
    options = [
        "--layer",
        "1",
        "--layer",
        "2",
        "--head",
        "0",
        "--key",
        "-2",
        "--target",
        "Paris",
        "--top",
        "3",
    ]
    done = typed("knockout", *options, "--output", output, "--plot", plot, "--memory")
    assert done.returncode == 0, done.stderr
    assert "before loading" in done.stdout
    result = json.loads(output.read_text())
    assert result["schema_version"] == SCHEMA_VERSION
    assert result["model"]["revision"].startswith("sha256:")
    assert result["model"]["architecture"]["family"] == "llama"
    assert result["layers"] == [1, 2]
    assert result["options"]["heads"] == [0]
    assert len(result["top_changed"]) == 3
    assert len(result["token_ids"]) == len(result["tokens"])
    assert result["target"]["token"] == " Paris"
    (hooks,) = result["hooks"].values()
    assert hooks[0]["hook"] == {"kind": "Knockout", "queries": [-1], "keys": [-2], "heads": [0]}
    assert result["packages"]["jax"]
    assert result["seconds"]["compile"] >= 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_sites_lists_every_point():
    table, names = jmi("sites"), jmi("sites", "atlas", "--names")
    assert table.returncode == names.returncode == 0
    assert "blocks.i.attn.hook_pattern" in table.stdout
    assert "blocks.0.attn.hook_pattern" in names.stdout.splitlines()


def test_help_explains_every_option():
    shown = jmi("knockout", "--help").stdout
    for option in (
        "PROMPT",
        "--model",
        "--layer",
        "--query",
        "--key",
        "--head",
        "--target",
        "--top",
        "--output",
        "--plot",
    ):
        assert option in shown
    assert "--all-cached" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "./nowhere"], "no such folder"),
        ([""], "empty"),
        (["word " * 300], "context"),
        (["one", "two"], "two"),
        (["--target", "Llanfairpwllgwyngyll"], "not one token"),
        (["--layer", "99"], "layers 0 to"),
        (["--dtype", "int8"], "float32"),
        (["--dtype", "nonsense"], "use float32"),
        (["--revision", "main"], "revision"),
        (["--all-cached", "--revision", "main"], "leave it out"),
        (["--all-cached", "--model", "gpt2"], "leave it out"),
        (["--plot", "result.txt"], ".png"),
        (["--output", "missing/result.json"], "does not exist"),
        (["--top", "0"], "top"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(arguments, words):
    done = jmi("knockout", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_is_not_in_the_cache_is_one_clear_error(tmp_path):
    done = typed("knockout", "--model", "no/such-model", HF_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "switched off" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nothing_is_cached_there_is_nothing_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(places, "PACKAGES", {})
    done = jmi("knockout", "--all-cached")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no supported model" in done.stderr


def test_every_cached_model_is_run_and_one_that_fails_is_named(tmp_path, monkeypatch):
    for name in ("broken", "whole"):
        snapshot = tmp_path / f"models--someone--{name}" / "snapshots" / ("a" * 40)
        shutil.copytree(MODELS["atlas"], snapshot)
    weights = tmp_path / "models--someone--broken" / "snapshots" / ("a" * 40) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(places, "PACKAGES", {})
    done = jmi("knockout", "--all-cached", "--output", tmp_path / "x.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: someone/broken: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith("someone/whole ")
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["schema_version"] == SCHEMA_VERSION
    (result,) = record["results"]
    assert result["model"]["name"] == "someone/whole"
    assert result["kl_divergence"] > 1


def test_an_error_leaves_no_file_behind(tmp_path):
    done = jmi("knockout", "--layer", "99", "--output", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
