"""Compiled programs on disk: where they lie, how much is kept, and that they can fail no run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jmi
from jmi.engine import program_cache
from jmi.errors import ArgumentError

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home with nothing in it; JAX's settings are put back."""
    for name in SETTINGS:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def programs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*-cache"))


def typed(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A command in a process of its own, whose user's cache folder is ``home``."""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in SETTINGS}
    environment |= {"XDG_CACHE_HOME": str(home), "HOME": str(home)}
    line = [sys.executable, "-c", "from jmi.cli import main; main()", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is another one on this system")
def test_a_command_compiles_nothing_the_second_time(tmp_path: Path) -> None:
    first = typed(tmp_path, "knockout", "--output", str(tmp_path / "1.json"))
    kept = programs(tmp_path / "jmi" / "programs")
    assert (first.returncode, first.stderr) == (0, "")
    assert len(kept) > 10
    second = typed(tmp_path, "knockout", "--output", str(tmp_path / "2.json"))
    assert (second.returncode, second.stderr) == (0, "")
    assert programs(tmp_path) == kept
    records = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (1, 2)]
    assert records[0]["kl_divergence"] == records[1]["kl_divergence"]


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is another one on this system")
def test_damaged_programs_are_told_of_once_and_change_no_result(tmp_path: Path) -> None:
    assert typed(tmp_path, "knockout").returncode == 0
    entries = sorted(tmp_path.rglob("*-cache"))
    for i, entry in enumerate(entries):
        written = entry.read_bytes()
        entry.write_bytes(written[: (0, 1, len(written) // 2, len(written) - 1)[i % 4]])
    second, third = typed(tmp_path, "knockout"), typed(tmp_path, "knockout")
    assert (second.returncode, third.returncode) == (0, 0)
    assert "Error reading persistent compilation cache entry" in second.stderr
    assert third.stderr == ""
    assert "' Paris'" in third.stdout


def test_where_no_folder_can_be_made_a_command_runs_with_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = typed(tmp_path / "file", "knockout")
    assert done.returncode == 0
    assert "' Paris'" in done.stdout
    (said,) = done.stderr.splitlines()
    assert said.startswith("warning: compiled programs are not kept: ")
    assert "JAX_COMPILATION_CACHE_DIR" in said


def test_a_program_says_once_that_it_wants_them_kept(tmp_path: Path) -> None:
    folder = jmi.cache_programs(tmp_path / "mine")
    assert folder == tmp_path / "mine"
    assert folder.stat().st_mode & 0o777 == 0o700
    jax.jit(lambda x: x + 1)(1.0)
    (first,) = programs(folder)
    # Another folder from then on.
    other = jmi.cache_programs(tmp_path / "other")
    jax.jit(lambda x: x + 2)(1.0)
    assert programs(folder) == [first]
    assert len(programs(other)) == 1


def test_it_is_off_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not kept: .*Not a directory"):
        assert jmi.cache_programs(tmp_path / "file" / "folder") is None
    with pytest.raises(ArgumentError, match="folder=3"):
        jmi.cache_programs(3)  # type: ignore[arg-type]


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert jmi.cache_programs(tmp_path / "mine") == tmp_path / "named"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("platform", "variable", "folder"),
    [
        ("linux", "XDG_CACHE_HOME", ""),
        ("linux", None, ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", ""),
    ],
)
def test_programs_lie_where_the_system_has_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, variable: str | None, folder: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/not/valid")
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
    found = jmi.cache_programs()
    assert found is not None
    assert found.parent == tmp_path / folder / "jmi" / "programs"


def test_what_was_used_longest_ago_is_removed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fill() -> None:
        for age in range(6):
            file = tmp_path / f"jit_f-{age}-cache"
            file.write_bytes(b"x" * 100)
            os.utime(file, (1e9 - age, 1e9 - age))

    (tmp_path / "notes.txt").write_text("x" * 1000)
    fill()
    assert jmi.cache_programs(tmp_path) == tmp_path
    assert len(programs(tmp_path)) == 6
    monkeypatch.setattr(program_cache, "MOST_BYTES", 450)
    jmi.cache_programs(tmp_path)
    assert programs(tmp_path) == [f"jit_f-{age}-cache" for age in range(4)]
    fill()
    monkeypatch.setattr(program_cache, "MOST_PROGRAMS", 2)
    jmi.cache_programs(tmp_path)
    assert programs(tmp_path) == ["jit_f-0-cache", "jit_f-1-cache"]
    assert (tmp_path / "notes.txt").exists()


def test_only_programs_that_a_warning_names_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jmi.cache_programs(tmp_path)
    names = ["jit_f-0-cache", "jit_fg-0-cache", "jit_<lambda>-0-cache"]
    for name in names:
        (tmp_path / name).touch()
    program_cache.forget_damaged("something else, about 'jit_f'")
    assert programs(tmp_path) == sorted(names)
    told = "Error reading persistent compilation cache entry for '{}': error: invalid header"
    program_cache.forget_damaged(told.format("jit_f"))
    program_cache.forget_damaged(told.format("../*"))
    assert programs(tmp_path) == sorted(names[1:])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    program_cache.forget_damaged(told.format("jit_fg"))
    assert programs(tmp_path) == sorted(names[1:])
