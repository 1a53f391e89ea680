"""``jmi download``: what is fetched has the hashes of the hub, and headers that fit its config."""

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.cli.command_line import jmi, refused
from tests.oracles import llama_grid

COMMIT = "a" * 40


def named_by_hash(file: Path) -> str:
    """As the hub does: SHA-256 of what is stored as large file, Git's hash of the rest."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub that hands out one model, which then lies in the cache as its client lays it out."""
    repo = tmp_path / "hub" / "models--someone--tiny"
    folder = repo / "snapshots" / COMMIT
    asked = []

    def fetch(name: str, **options: object) -> str:
        asked.append(name)
        if not folder.exists():
            llama_grid.write_folder(folder, llama_grid.GRID["grouped"])
            (repo / "blobs").mkdir()
            for file in sorted(folder.iterdir()):
                blob = repo / "blobs" / named_by_hash(file)
                shutil.move(file, blob)
                file.symlink_to(blob)
        return str(folder)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return folder


def test_a_model_is_fetched_and_compared_with_its_hashes(snapshot: Path, tmp_path: Path) -> None:
    done = jmi("download", "someone/tiny", "--output", tmp_path / "x.json")
    assert (done.returncode, done.stderr) == (0, "")
    files = sorted(snapshot.iterdir())
    assert f"someone/tiny is whole: {len(files)} files" in done.stdout
    assert f"{len(files)} of them have the hash" in done.stdout
    assert "read as llama" in done.stdout
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["model"] == {"name": "someone/tiny", "revision": COMMIT}
    assert record["folder"] == str(snapshot)
    assert [(file["name"], file["hash"]) for file in record["files"]] == [(f.name, True) for f in files]


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_changed_byte_is_found(snapshot: Path, suffix: str) -> None:
    assert jmi("download", "someone/tiny").returncode == 0
    file = next(path for path in snapshot.iterdir() if path.suffix == suffix)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)
    said = refused("download", "someone/tiny")
    assert f"{file.name} is not what the hub has: delete {file.resolve()}" in said
    assert len(said.splitlines()) == 1


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    llama_grid.write_folder(tmp_path / "m", llama_grid.GRID["grouped"])
    weights = next((tmp_path / "m").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "cannot be loaded" in refused("download", tmp_path / "m", "--output", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_the_embedded_model_is_there_and_has_no_hashes() -> None:
    done = jmi("download")
    assert done.returncode == 0, done.stderr
    assert "atlas is whole" in done.stdout
    assert "no hashes" in done.stdout
