"""Files are written whole or not at all, and nothing but the named file changes."""

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi import artefacts
from jmi.errors import ArgumentError, OutputError


def test_a_file_is_written_whole(tmp_path):
    file = tmp_path / "result.json"
    artefacts.write_json(
        file,
        {"a": jnp.arange(3), "b": np.float32(0.5), "c": float("nan"), "d": {1: (True, None)}, "e": range(2)},
    )
    assert json.loads(file.read_text()) == {
        "a": [0, 1, 2],
        "b": 0.5,
        "c": None,
        "d": {"1": [True, None]},
        "e": [0, 1],
    }


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), artefacts.replacing(file) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_is_followed_and_stays(tmp_path):
    file, link, far = tmp_path / "there" / "result.json", tmp_path / "link.json", tmp_path / "far.json"
    file.parent.mkdir()
    file.write_text("old")
    link.symlink_to("there/result.json")
    far.symlink_to(link)
    for path, value in ((link, 1), (far, 2)):
        artefacts.write_json(path, {"x": value})
        assert path.is_symlink()
        assert not file.is_symlink()
        assert json.loads(file.read_text()) == {"x": value}
    assert [p.name for p in file.parent.iterdir()] == ["result.json"]
    (new := tmp_path / "new.json").symlink_to("there/new.json")
    artefacts.write_json(new, {})
    assert new.is_symlink()
    assert json.loads((file.parent / "new.json").read_text()) == {}


def test_the_mode_of_a_file_stays_and_a_new_one_is_as_readable_as_others(tmp_path):
    (private := tmp_path / "private.json").write_text("old")
    private.chmod(0o600)
    (other := tmp_path / "other").write_text("")
    artefacts.write_json(private, {})
    artefacts.write_json(tmp_path / "new.json", {})
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert (tmp_path / "new.json").stat().st_mode == other.stat().st_mode


def not_files(folder: Path) -> list[Path]:
    """Paths that exist, or cannot, and must stay as they are."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    (folder / "folder").mkdir()
    (folder / "file").write_text("kept")
    for name, target in (("loop", "loop"), ("to_pipe", "pipe"), ("astray", "no/x")):
        (folder / name).symlink_to(target)
    names = ["pipe", "socket", "folder", "loop", "to_pipe", "astray", "no/x", "file/x", "x" * 300, "a\0b"]
    return [folder / name for name in names]


def test_what_is_no_regular_file_is_refused_before_the_work_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = not_files(tmp_path)
    before = {p: os.lstat(tmp_path / p).st_mode for p in os.listdir()}
    for path in (*paths, "", ".", "folder/"):
        for write in (artefacts.check_writable, lambda p: artefacts.write_json(p, {})):
            with pytest.raises(OutputError) as error:
                write(path)
            assert len(str(error.value).splitlines()) == 1
    for path in ("/dev/null", "/proc/x.json"):  # not to be tried: root would lose them
        with pytest.raises(OutputError):
            artefacts.check_writable(path)
    assert {p: os.lstat(tmp_path / p).st_mode for p in os.listdir()} == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_long_name_can_be_written(tmp_path):
    file = tmp_path / ("é" * 120 + ".json")
    artefacts.write_json(file, {})
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_one_error_and_the_old_file_stays(tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    file = tmp_path / "result.json"
    file.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match=r"could not be written.*result.json is as it was"):
            artefacts.write_json(file, {"x": list(range(1000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


WRITER = """
import sys, time
from jmi.artefacts import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(100)
"""


def test_leftovers_of_killed_writes_go_and_what_another_process_writes_stays(tmp_path):
    file, other = tmp_path / "result.json", tmp_path / ".result.json.notes.json"
    other.write_text("not ours")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"writing\n"
        with artefacts.replacing(file) as slower:
            slower.write_text("written last")
            assert len(list(tmp_path.iterdir())) == 3  # the process is alive
            killed.kill()
            killed.wait()
            artefacts.write_json(file, {})
            assert set(tmp_path.iterdir()) == {file, other, slower}
    assert file.read_text() == "written last"
    assert set(tmp_path.iterdir()) == {file, other}


def test_bfloat16_arrays_are_numbers_in_json(tmp_path):
    artefacts.write_json(tmp_path / "x.json", {"x": jnp.ones(2, jnp.bfloat16)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"x": [1.0, 1.0]}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1 + 2j, np.ones(2, complex)])
def test_what_json_has_no_form_for_is_one_error_and_no_file(tmp_path, value):
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for given in (value, [value], nested):
        with pytest.raises(ArgumentError, match=r"x.json.*JSON"):
            artefacts.write_json(tmp_path / "x.json", {"x": given})
    assert list(tmp_path.iterdir()) == []


def test_hooks_are_described_in_full():
    hooks = {"blocks.*.hook_resid_pre": jmi.At([1], jmi.Add(np.ones(2), positions=3))}
    described = artefacts.describe_hooks(hooks)["blocks.*.hook_resid_pre"]
    assert described[0]["kind"] == "At"
    assert described[0]["hook"] == {
        "kind": "Add",
        "positions": 3,
        "vector": pytest.approx([1, 1]),
        "scale": 1.0,
    }


def test_the_environment_names_versions_and_device():
    found = artefacts.environment()
    assert found["packages"]["jax"]
    assert found["device"]["backend"] == "cpu"
