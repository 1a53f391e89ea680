"""A kept sweep in its folder: its pieces, its manifest, and processes that die."""

import functools
import json
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import OutputError
from jmi.sweeps import store as sweep_store
from tests.core.sweeps import experiments
from tests.core.sweeps.experiments import EMBED
from tests.support.processes import child, finish


def sweep_of(factors, **more):
    """A sweep of so many cells, which a folder makes a kept one."""
    arguments = experiments.usual(experiments.hooks(factor=factors))
    del arguments["context"], arguments["memory"]
    return jmi.sweep(**{**arguments, "metric": read, "progress": False, **more})


@pytest.fixture(scope="module")
def sweep():
    """A sweep in pieces of one cell, to be called with a folder, and its results without one."""
    run = functools.partial(sweep_of, np.arange(1.0, 6.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jmi.sweeps.chunks.TOKENS", 1)
        yield run, run()


def read(out):
    return {"a": out.logits[:, 1], "b": out.logits.astype(jnp.bfloat16), "c": out.logits.argmax(-1)}


def assert_same(got, want):
    for key in want:
        assert got[key].dtype == want[key].dtype
        assert got[key].tobytes() == want[key].tobytes()


@pytest.fixture(scope="module")
def finished(sweep, tmp_path_factory):
    """The folder of that sweep, in pieces of one cell."""
    folder = tmp_path_factory.mktemp("finished") / "sweep"
    assert_same(sweep[0](output=folder), sweep[1])
    assert len(list(folder.glob("*.npz"))) == 5
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "sweep"))


def test_pieces_that_are_whole_are_not_computed_again(sweep, folder, monkeypatch):
    monkeypatch.setattr(sweep_store.Store, "write", None)
    assert_same(sweep[0](output=folder), sweep[1])


def damages():
    """Names of damages to a piece, given its bytes and those of the next one."""
    rng = np.random.default_rng(8)

    def flipped(content, at):
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)

    yield "emptied", lambda piece, _: b""
    yield "another piece", lambda _, other: other
    yield "its seal", lambda piece, _: piece[-32:]
    yield "without its seal", lambda piece, _: piece[:-32]
    yield "longer", lambda piece, _: piece + b"\0"
    for part in rng.random(6):
        yield f"cut at {part:.3f}", lambda piece, _, part=part: piece[: int(part * len(piece))]
        yield f"bit at {part:.3f}", lambda piece, _, part=part: flipped(piece, int(part * 8 * len(piece)))


@pytest.mark.parametrize(("damage", "done"), [pytest.param(n, d, id=n) for n, d in damages()])
def test_a_damaged_piece_is_named_and_read_by_nobody(folder, sweep, damage, done):
    one, other = folder / "000002.npz", folder / "000003.npz"
    store = sweep_store.Store(folder, json.loads((folder / "sweep.json").read_text())["fingerprint"])
    whole = store.read(2)
    assert whole is not None
    one.write_bytes(done(one.read_bytes(), other.read_bytes()))
    with pytest.warns(UserWarning, match="000002.npz is damaged, or not piece 2"):
        assert store.read(2) is None
    store.write(2, whole)
    for got, want in zip(store.read(2), whole, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_piece_cut_anywhere_or_with_any_bit_changed_is_read_by_nobody(tmp_path):
    store = sweep_store.Store(tmp_path / "sweep", {"what": "ever"})
    store.write(0, [np.arange(2)])
    path = tmp_path / "sweep" / "000000.npz"
    piece = path.read_bytes()
    for at in range(len(piece)):
        changed = bytearray(piece)
        changed[at] ^= 1 << at % 8
        for content in (piece[:at], changed):
            path.write_bytes(content)
            with pytest.warns(UserWarning, match="000000.npz"):
                assert store.read(0) is None
    path.write_bytes(piece)
    np.testing.assert_array_equal(store.read(0)[0], [0, 1])


def test_pieces_that_were_swapped_or_are_of_another_kind_are_computed_again(sweep, folder):
    """Other arrays, other shapes, and one that would run code when read as numpy reads objects."""
    paths = sorted(folder.glob("*.npz"))
    one, other = (path.read_bytes() for path in paths[:2])
    paths[0].write_bytes(other)
    paths[1].write_bytes(one)
    np.savez(paths[2], np.zeros((1, 1), np.float32))
    np.savez(paths[3], np.array([{}], object), allow_pickle=True)
    with pytest.warns(UserWarning, match="computed again") as warned:
        got = sweep[0](output=folder)
    assert_same(got, sweep[1])
    assert [path.name in str(w.message) for path, w in zip(paths, warned, strict=False)] == [True] * 4
    assert one == paths[0].read_bytes()


def test_a_piece_of_another_sweep_is_not_taken(sweep, folder, tmp_path):
    sweep[0](output=tmp_path / "other", prompts=experiments.TOKENS[:, ::-1])
    shutil.copy(tmp_path / "other" / "000001.npz", folder / "000001.npz")
    with pytest.warns(UserWarning, match="000001.npz"):
        assert_same(sweep[0](output=folder), sweep[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"fingerprint": 3}', b'{"fingerprint": "old"}'],
)
def test_a_broken_manifest_is_one_clear_error(folder, content):
    known = json.loads((folder / "sweep.json").read_text())["fingerprint"]
    (folder / "sweep.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"sweep\.json is damaged"):
        sweep_store.Store(folder, known)


def test_another_sweep_is_refused_with_what_differs(sweep, folder):
    """The cases in which a sweep was taken for another: its base run, and an array in an inner jit."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="another sweep, with other programs"):
        sweep[0](output=folder, base={EMBED: jmi.Project(np.ones(16), keep=True)})
    with pytest.raises(OutputError, match=r"other inputs[^;]*:"):
        sweep[0](output=folder, prompts=experiments.TOKENS[:, ::-1])
    with pytest.raises(OutputError, match=r"other weights:"):
        sweep[0](output=folder, lm=experiments.model(jax.tree.map(lambda x: -x, experiments.weights())))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for where, words in (
        (tmp_path, "holds no sweep"),
        (tmp_path / "file", "no folder"),
        (tmp_path / "a" / "b", "create the folder"),
        (tmp_path / "file" / "b", "output="),
        ("/proc/sweep", "output="),
    ):
        with pytest.raises(OutputError, match=words):
            sweep_store.Store(where, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_clear_error_and_leaves_the_pieces_before(tmp_path, monkeypatch):
    store = sweep_store.Store(tmp_path / "sweep", {"what": "ever"})
    store.write(0, [np.arange(3)])
    before = sorted(path.name for path in store.folder.iterdir())

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"000001\.npz.*No space left"):
        store.write(1, [np.arange(3)])
    assert sorted(path.name for path in store.folder.iterdir()) == before


def test_a_manifest_that_another_process_makes_meanwhile_is_found(tmp_path, monkeypatch):
    """The other one is as fast as can be: it ends between two looks at the folder."""
    folder, listed = tmp_path / "sweep", Path.iterdir
    folder.mkdir()

    def iterdir(self):
        names = list(listed(self))
        monkeypatch.setattr(Path, "iterdir", listed)
        sweep_store.Store(folder, {"what": "ever"}).write(0, [np.arange(3)])
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    np.testing.assert_array_equal(sweep_store.Store(folder, {"what": "ever"}).read(0)[0], np.arange(3))


KILLED = """
import sys
import numpy as np
from jmi.sweeps import chunks as sweep_plan
from tests.core.sweeps.test_sweep_store import sweep_of
sweep_plan.TOKENS = 1
result = sweep_of(np.arange(1.0, 41.0), output=sys.argv[1])
np.savez(sys.argv[2], **{name: x.view(np.uint8) for name, x in result.items()})
"""


def killed_once(folder, random):
    """A process of that sweep, killed some time after it began to write; whether it was still at it."""
    before = len(list(folder.glob("*.npz")))
    process = child(KILLED, folder, folder.with_suffix(".npz"))
    while process.poll() is None and len(list(folder.glob("*.npz"))) <= before:
        time.sleep(0.002)
    time.sleep(random.exponential(0.02))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def test_killed_sweeps_end_with_the_same_bits(tmp_path, monkeypatch):
    random, folder = np.random.default_rng(9), tmp_path / "killed"
    assert sum(killed_once(folder, random) for _ in range(2))
    finish(child(KILLED, folder, folder.with_suffix(".npz")))
    monkeypatch.setattr("jmi.sweeps.chunks.TOKENS", 1)
    want = sweep_of(np.arange(1.0, 41.0))
    with np.load(folder.with_suffix(".npz")) as got:
        for name, values in want.items():
            assert got[name].tobytes() == values.tobytes()
    assert len(list(folder.glob("*.npz"))) == 40
