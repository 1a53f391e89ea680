"""A kept sweep goes on only as itself: what it is told by, its pieces, its folder, processes that die."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import io_callback

import jmi
from jmi.errors import ArgumentError, OutputError
from jmi.sweeps import fingerprint as sweep_fingerprint
from jmi.sweeps import store as sweep_store
from jmi.sweeps import work as sweep_work
from tests.core import experiments
from tests.core.experiments import EMBED, VARIANTS, fingerprint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_sweeps_that_differ_in_one_thing_are_told_apart(variant):
    assert fingerprint(variant, 0) != fingerprint(variant, 1)


PRINTED = """
import json, sys
from tests.core.experiments import fingerprint
print(json.dumps({name: fingerprint(name, 1) for name in sys.argv[1:]}))
"""


def test_the_same_sweep_made_anew_is_the_same_sweep_in_another_process_too():
    """Of variants in which Python objects, or what JAX makes of them, have addresses or an order."""
    some = [
        "a static field", "a jitted hook", "a partial", "in jit of jit", "in jit in a scan", "in custom_vjp",
        "in a derivative", "a reducer at the embedding", "a function of cells", "several models", "a mesh",
    ]  # fmt: skip
    here = {name: fingerprint(name, 1) for name in some}
    assert {name: fingerprint(name, 1) for name in some} == here
    assert json.loads(finish(child(PRINTED, *some, PYTHONHASHSEED="7"))) == here


def child(program, *args, **environment):
    paths = os.pathsep.join([str(ROOT), str(Path(jmi.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "float8_e4m3fn",
    "int8",
    "uint8",
    "int32",
    "bool",
    "int4",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_a_weight_counts_and_its_place(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
        sums = set()
        made = 0
        x = rng.integers(0, 2 if dtype == "bool" else 8, (6, 5, 4)).astype(kind)
        for _ in range(60):
            sums.add(np.asarray(sweep_fingerprint._checksums([jnp.asarray(x)])[0]).tobytes())
            made += 1
            flat = x.reshape(-1)
            one, other = rng.choice(flat.size, 2, replace=False)
            change = rng.integers(3)
            if change == 0:
                flat[one] = 1 - flat[one] if dtype == "bool" else flat[one] + kind.type(1)
            elif change == 1 and flat[one] != flat[other]:
                flat[[one, other]] = flat[[other, one]]
            elif dtype.startswith(("float", "bfloat")):
                flat[[one, other]] = -flat[[one, other]]
            else:
                made -= 1
        # A walk of so few steps does not come back to where it was.
        assert made > 20
        assert len(sums) == made


def test_a_weight_counts_bit_by_bit():
    x = np.random.default_rng(6).normal(size=(3, 4)).astype(np.float32)
    sums = [sweep_fingerprint._checksums([jnp.asarray(x)])[0]]
    for place in range(12):
        for bit in range(32):
            y = x.copy()
            y.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
            sums.append(sweep_fingerprint._checksums([jnp.asarray(y)])[0])
    for half in np.array(sums).T:
        assert len(set(half)) == len(sums)


def identity(value):
    return np.asarray(value)


def called(how):
    def function(x):
        if how == "pure_callback":
            return jax.pure_callback(
                identity, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
            )
        if how == "io_callback":
            return io_callback(identity, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        jax.debug.callback(identity, x)
        return x

    return jax.jit(function)


@pytest.mark.parametrize("how", ["pure_callback", "io_callback", "debug"])
@pytest.mark.parametrize("where", ["metric", "base", "reducer", "cells"])
def test_what_calls_python_cannot_be_kept(how, where):
    call = called(how)
    hook = lambda value, site: call(value)
    given = {
        "metric": {"metric": lambda out: call(out.logits)},
        "base": {"base": {EMBED: hook}},
        "reducer": {"capture": [jmi.Capture(EMBED, reduce=hook, label="seen")]},
        "cells": {
            "hooks": {
                EMBED: jax.tree_util.Partial(
                    lambda w, value, site: call(value) * w, *experiments.cells([0.5, 2.0])
                )
            }
        },
    }[where]
    with pytest.raises(ArgumentError, match="call Python"):
        fingerprint(lambda _: given, 0)


HOISTED = """
import numpy as np
from tests.core.experiments import fingerprint
fingerprint("in jit", 0)
"""


def test_a_program_without_its_arrays_cannot_be_kept():
    there = child(HOISTED, JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS="1")
    assert "does not hold its arrays" in there.communicate(timeout=240)[1]
    assert there.returncode == 1


def test_another_precision_is_another_program_in_the_same_process_too():
    texts = []
    for precision in ("default", "highest", "default"):
        arguments = experiments.usual({})
        del arguments["memory"], arguments["context"]
        with experiments.uncompiled(), jax.default_matmul_precision(precision):
            _, programs = sweep_work.prepare(**arguments).compiled(100)
            texts.append([compiled.lowered.as_text() for compiled in programs.values()])
    assert texts[0] == texts[2] != texts[1]


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
from tests.core.test_sweep_store import sweep_of
sweep_plan.TOKENS = 1
result = sweep_of(np.arange(1.0, 41.0), output=sys.argv[1])
np.savez(sys.argv[2], **{name: x.view(np.uint8) for name, x in result.items()})
"""


def finish(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


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
