"""Finding models: folders, the Hugging Face cache without a network, and names that lead nowhere."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

import jmi_models
from jmi.errors import ConfigError, DownloadError
from jmi_models.gguf import places
from jmi_models.weights import hub
from tests.oracles import llama_grid
from tests.support.torch_files import write_state_dict

COMMIT, OLDER = "a" * 40, "b" * 40
CONFIG = llama_grid.GRID["grouped"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, no models of packages, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(places, "PACKAGES", {})
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def cached(cache: Path) -> Callable[..., Path]:
    """Puts a model into the cache, laid out as the hub's client lays it out."""

    def put(name: str, config: dict | str | None, commit: str = COMMIT, kind: str = "models") -> Path:
        repo = cache / f"{kind}--{name.replace('/', '--')}"
        snapshot = repo / "snapshots" / commit
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "blobs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        llama_grid.write_folder(snapshot, CONFIG)
        if config is None:
            (snapshot / "config.json").unlink()
        else:
            (snapshot / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        for file in sorted(snapshot.iterdir()):
            blob = repo / "blobs" / f"{commit}-{file.name}"
            shutil.move(file, blob)
            file.symlink_to(blob)
        return snapshot

    return put


def test_model_in_the_cache_loads_by_its_id_without_network(cached: Callable[..., Path]) -> None:
    snapshot = cached("someone/tiny-llama", CONFIG)
    lm = jmi_models.load("someone/tiny-llama")
    assert lm.name == "someone/tiny-llama"
    assert lm.identity() == COMMIT
    local = jmi_models.load(snapshot)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], local.params["embed"]["W_E"])
    assert lm.tokenizer is None


def test_revision_picks_the_snapshot(cached: Callable[..., Path]) -> None:
    old = cached("someone/tiny-llama", CONFIG, commit=OLDER)
    new = cached("someone/tiny-llama", CONFIG, commit=COMMIT)
    assert hub.find("someone/tiny-llama").folder == new
    found = hub.find("someone/tiny-llama", revision=OLDER)
    assert (found.folder, found.identity()) == (old, OLDER)


def test_a_commit_in_the_cache_is_not_asked_for(cached: Callable[..., Path], monkeypatch: Any) -> None:
    snapshot = cached("someone/tiny-llama", CONFIG)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_snapshot", lambda *args: pytest.fail("asked the hub"))
    assert hub.find("someone/tiny-llama", COMMIT).folder == snapshot


def test_pickled_weights_are_asked_for_on_request_only(tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[str, ...]] = []

    def snapshot(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
        asked.append(files)
        return tmp_path

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights = llama_grid.tensors(CONFIG)
    write_state_dict(tmp_path / "pytorch_model.bin", weights)
    lm = jmi_models.load("someone/tiny-llama", pytorch_bin=True)
    np.testing.assert_array_equal(lm.params["embed"]["W_E"], weights["model.embed_tokens.weight"])
    hub.find("someone/tiny-llama")
    without, with_pickles, again = map(set, asked)
    assert with_pickles - without == {"pytorch_model*.bin", "pytorch_model.bin.index.json"}
    assert {"config.json", "model*.safetensors"} <= without
    assert again == without
    (tmp_path / "model.safetensors").touch()
    hub.find("someone/tiny-llama", pytorch_bin=True)
    assert set(asked[-1]) == without


def test_list_holds_the_supported_models_only(cached: Callable[..., Path]) -> None:
    snapshot = cached("someone/tiny-llama", CONFIG)
    cached("another", CONFIG)
    cached("someone/unsupported", {**CONFIG, "model_type": "t5"})
    cached("someone/no-config", None)
    cached("someone/data", "{", kind="datasets")
    unweighted = cached("someone/config-only", CONFIG)
    (unweighted / "model.safetensors").unlink()
    models = jmi_models.list_cached()
    assert [model.name for model in models] == ["another", "someone/tiny-llama"]
    size = (snapshot / "model.safetensors").stat().st_size
    assert models[1] == hub.CachedModel("someone/tiny-llama", "llama", COMMIT, snapshot, size)


@pytest.mark.parametrize("kind", [["llama"], {"a": 1}, 7])
def test_list_survives_a_config_with_a_strange_model_type(cached: Callable[..., Path], kind: object) -> None:
    cached("someone/strange", {**CONFIG, "model_type": kind})
    assert jmi_models.list_cached() == []


def _pipe(snapshot: Path) -> None:
    (snapshot / "config.json").unlink()
    os.mkfifo(snapshot / "config.json")


def _loop(snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("model.safetensors")


BROKEN = {
    "weights whose blob is gone": lambda s: (s / "model.safetensors").resolve().unlink(),
    "weights in a loop of links": _loop,
    "weights that are a folder": lambda s: (
        (s / "model.safetensors").unlink(),
        (s / "model.safetensors").mkdir(),
    ),
    "a config whose blob is gone": lambda s: (s / "config.json").resolve().unlink(),
    "a config cut short": lambda s: (s / "config.json").write_text('{"model_type": "lla'),
    "a config that is a list": lambda s: (s / "config.json").write_text("[]"),
    "a config that is not text": lambda s: (s / "config.json").write_bytes(b"\xff\xfe\x00\xd8"),
    "a config nested without end": lambda s: (s / "config.json").write_text("[" * 200_000),
    "a config that is a pipe": _pipe,
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_named_and_the_others_are_listed(cached: Callable[..., Path], how: str) -> None:
    cached("a/whole", CONFIG)
    BROKEN[how](cached("m/broken", CONFIG))
    cached("z/whole", CONFIG)
    with pytest.warns(UserWarning, match="broken in the Hugging Face cache: m/broken at aaaa") as caught:
        models = jmi_models.list_cached()
    assert [model.name for model in models] == ["a/whole", "z/whole"]
    assert len(caught) == 1


def test_an_older_revision_stands_in_for_a_broken_one(cached: Callable[..., Path]) -> None:
    old = cached("someone/tiny-llama", CONFIG, commit=OLDER)
    new = cached("someone/tiny-llama", CONFIG, commit=COMMIT)
    (old / "model.safetensors").resolve().touch()
    os.utime((old / "model.safetensors").resolve(), (0, 0))
    os.utime((old / "config.json").resolve(), (0, 0))
    assert [model.revision for model in jmi_models.list_cached()] == [COMMIT]
    (new / "model.safetensors").resolve().unlink()
    with pytest.warns(UserWarning, match=COMMIT):
        assert [model.revision for model in jmi_models.list_cached()] == [OLDER]


@pytest.mark.parametrize("part", ["snapshots", "refs"])
def test_a_file_for_a_folder_of_the_cache_hides_nothing_else(
    cached: Callable[..., Path], cache: Path, part: str
) -> None:
    cached("a/whole", CONFIG)
    cached("z/odd", CONFIG)
    shutil.rmtree(cache / "models--z--odd" / part)
    (cache / "models--z--odd" / part).write_bytes(b"\xff")
    (cache / "models--nothing").write_text("")
    expected = ["a/whole"] if part == "snapshots" else ["a/whole", "z/odd"]
    assert [model.name for model in jmi_models.list_cached()] == expected


def test_names_in_the_cache_reach_no_terminal_raw(cached: Callable[..., Path]) -> None:
    (cached("evil/\x1b[31mred", CONFIG) / "model.safetensors").resolve().unlink()
    with pytest.warns(UserWarning, match=r"evil/\\x1b\[31mred") as caught:
        jmi_models.list_cached()
    assert str(caught[0].message).isprintable()


def test_list_without_a_cache_is_empty(cache: Path) -> None:
    cache.rmdir()
    assert jmi_models.list_cached() == []


def test_unknown_id_without_network_says_what_was_tried() -> None:
    with pytest.raises(DownloadError) as caught:
        jmi_models.load("someone/unheard-of")
    message = str(caught.value)
    for part in (
        "someone/unheard-of",
        "not embedded (atlas)",
        "not of a package (smollm2, gemma3-270m)",
        "not a folder",
        "cache",
        "unset that, or give",
    ):
        assert part in message


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_variable_that_switches_the_hub_off_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DownloadError, match=f"switched off by {variable}; unset that, or give a folder"):
        hub.find("someone/unheard-of")


def test_offline_the_network_is_not_used(tmp_path: Path) -> None:
    script = (
        "import socket\n"
        "def refuse(*_): raise SystemExit('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from jmi_models.weights import hub\n"
        "hub.find('someone/unheard-of')\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "DownloadError: someone/unheard-of: not embedded" in done.stderr
    assert "switched off by TRANSFORMERS_OFFLINE" in done.stderr


def test_online_but_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args: Any, **options: Any) -> None:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DownloadError, match="the hub cannot be reached; connect, or give a folder"):
        hub.find("someone/unheard-of")


def test_unknown_revision_without_network_is_a_download_error(cached: Callable[..., Path]) -> None:
    cached("someone/tiny-llama", CONFIG)
    with pytest.raises(DownloadError, match="someone/tiny-llama"):
        hub.find("someone/tiny-llama", revision="no-such-branch")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a/b/c",
        "two words",
        "../up",
        "/no/such/folder",
        "./here",
        "a//b",
        "a/",
        "ö/ü?",
        "a\nb",
        "-",
        "a--b/c",
        "x" * 200,
        "x" * 5000,
        "~nobody-of-this-name/model",
        "a\0b",
        "\x1b[31mred",
        "a/" + "b" * 200,
    ],
)
def test_nonsense_names_are_download_errors(name: str) -> None:
    with pytest.raises(DownloadError) as caught:
        hub.find(name)
    assert str(caught.value).isprintable()


def test_folder_is_found_by_path(tmp_path: Path) -> None:
    folder = llama_grid.write_folder(tmp_path / "here", CONFIG)
    assert hub.find(str(folder)) == hub.Source(str(folder), folder)
    assert hub.find("here").folder.resolve() == folder


def test_folder_has_no_revision(tmp_path: Path) -> None:
    folder = llama_grid.write_folder(tmp_path / "here", CONFIG)
    with pytest.raises(ConfigError, match="only models from the hub have revisions"):
        hub.find(str(folder), revision="main")


def test_identity_of_a_folder_is_its_content(tmp_path: Path) -> None:
    one = llama_grid.write_folder(tmp_path / "one", CONFIG)
    two = llama_grid.write_folder(tmp_path / "two", CONFIG)
    identity = hub.find(str(one)).identity()
    assert identity.startswith("sha256:")
    assert hub.find(str(two)).identity() == identity
    (two / "notes.txt").write_text("not part of the model")
    assert hub.find(str(two)).identity() == identity
    (two / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-6}))
    assert hub.find(str(two)).identity() != identity
