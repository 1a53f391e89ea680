"""Finding models: folders, the Hugging Face cache without a network, and names that lead nowhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import jmi_models
from jmi.errors import ConfigError, DownloadError
from jmi_models import hub
from tests.models.torch_files import write_state_dict
from tests.oracles import llama_grid

COMMIT, OLDER = "a" * 40, "b" * 40
CONFIG = llama_grid.GRID["grouped"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    # The scanner keeps its own copy of the constant.
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
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
    cached("someone/broken", "{")
    cached("someone/no-object", "[]")
    cached("someone/data", CONFIG, kind="datasets")
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


def test_list_survives_a_config_that_is_not_text(cached: Callable[..., Path]) -> None:
    snapshot = cached("someone/binary", CONFIG)
    (snapshot / "config.json").resolve().write_bytes(b"\xff\xfe\x00\xd8")
    assert jmi_models.list_cached() == []


def test_list_without_a_cache_is_empty(cache: Path) -> None:
    cache.rmdir()
    assert jmi_models.list_cached() == []


def test_unknown_id_without_network_says_what_was_tried() -> None:
    with pytest.raises(DownloadError) as caught:
        jmi_models.load("someone/unheard-of")
    message = str(caught.value)
    for part in ("someone/unheard-of", "not embedded (atlas)", "not a folder", "cache", "cannot be reached"):
        assert part in message


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
        "a/" + "b" * 200,
    ],
)
def test_nonsense_names_are_download_errors(name: str) -> None:
    with pytest.raises(DownloadError):
        hub.find(name)


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
