"""How the work of a sweep is done: programs, memory, devices, processes, a stop and a start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, OutputError
from jmi.sweeps import store as sweep_store
from jmi.sweeps import work as sweep_work
from tests.core.conftest import lively, tiny
from tests.core.sweeps.cells import columns, everything, hooks_of, loop, of_cells
from tests.support.processes import run_two
from tests.support.tolerances import assert_agree as assert_equal
from tests.support.trees import scaled, stacked

RNG = np.random.default_rng(5)

pytestmark = pytest.mark.usefixtures("small_chunks_count")


def test_the_arrays_of_a_metric_are_data(model):
    lm, tokens = model
    traces = []

    def read(index, out):
        traces.append(1)
        return out.logits[:, -1, index]

    swept, cells = hooks_of("add")
    want = loop(lm, tokens, cells, lambda out: out.logits[:, -1])
    counts = []
    for index in (3, 11):
        got = jmi.sweep(*model, swept, jax.tree_util.Partial(read, jnp.int32(index)))
        assert_equal(got, want[..., index])
        counts.append(len(traces))
    assert counts[0] == counts[1], "another index is no other program"


def test_models_are_an_axis(model):
    lm, tokens = model
    other = jmi.LanguageModel(lm.arch, scaled(lm.params, 0.9))
    models = jmi.Models(lm, stacked(lm.params, other.params))
    swept, cells = hooks_of("patch")
    want = np.stack([loop(each, tokens, cells, lambda out: out.logits) for each in (lm, other)])
    assert_equal(jmi.sweep(models, tokens, swept, lambda out: out.logits), want)


@pytest.mark.parametrize("wrong", ["no axis", "unlike axes", "no model", "another model", "nothing"])
def test_weights_that_are_not_those_of_several_models_are_refused(model, wrong):
    lm, tokens = model
    two = stacked(lm.params, lm.params)
    params = {
        "no axis": lm.params,
        "unlike axes": {**two, "embed": {"W_E": two["embed"]["W_E"][:1]}},
        "no model": jax.tree.map(lambda x: np.asarray(x)[:0], two),
        "another model": stacked(lively(tiny(2), jnp.float64)),
        "nothing": None,
    }[wrong]
    with pytest.raises(ArgumentError, match="one axis of models in front"):
        jmi.sweep(jmi.Models(lm, params), tokens, hooks_of("add")[0], everything)


def test_another_sweep_of_the_same_structure_compiles_nothing(model):
    lm, tokens = model
    traces = []

    def read(out):
        traces.append(1)
        return out.logits[:, -1]

    def sweep(*values, tokens):
        layers, positions, factor = columns(*values)
        swept = {"blocks.*.hook_mlp_out": jmi.At(layers, jmi.Scale(factor, positions=positions))}
        return jmi.sweep(lm, tokens, swept, read)

    one = sweep([0, 1, 2, 3], [1, 4, 7, 10], [2.0, 3.0, 4.0, 5.0], tokens=tokens)
    first = len(traces)
    two = sweep([3, 1, 0, 2], [10, 7, 4, 1], [3.0, 3.0, 4.0, 6.0], tokens=tokens[:, ::-1])
    assert len(traces) == first
    assert not np.array_equal(one, two)


def test_small_memory_means_small_chunks_and_the_same_results(model):
    vectors = RNG.normal(size=(37, 16))
    swept = {"blocks.1.hook_resid_pre": jmi.Add(of_cells(vectors))}
    read = lambda out: out.logits
    whole = jmi.plan(*model, swept, read)
    assert [p.chunks for p in whole.programs] == [1]
    assert whole.cells == 37
    budget = whole.programs[0].bytes // 4
    cut = jmi.plan(*model, swept, read, memory=budget)
    assert cut.programs[0].bytes <= budget
    assert cut.programs[0].chunks > 3
    assert_equal(
        jmi.sweep(*model, swept, read, memory=budget),
        jmi.sweep(*model, swept, read),
    )
    with pytest.raises(ArgumentError, match="raise memory="):
        jmi.sweep(*model, swept, read, memory=1000)


def test_cells_spread_over_devices_without_a_word_between_them(model):
    swept, _ = hooks_of("patch")
    mesh = jax.make_mesh((4,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,))
    read = lambda out: out.logits[:, -1]
    assert_equal(
        jmi.sweep(*model, swept, read, mesh=mesh),
        jmi.sweep(*model, swept, read),
    )
    work = sweep_work.prepare(*model, swept, read, mesh=mesh)
    texts = [compiled.program.as_text() for compiled in work.compiled(2**30)[1].values()]
    assert texts
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert not any(collective in text for text in texts)


def test_a_sweep_that_was_stopped_goes_on_and_ends_with_the_same_bits(model, tmp_path, monkeypatch):
    lm, tokens = model
    swept, _ = hooks_of("patch")
    read = lambda out: {
        "last": out.logits[:, -1],
        "best": out.logits.argmax(-1),
        "short": out.logits[:, -1].astype(jnp.bfloat16),
    }
    want = jmi.sweep(*model, swept, read)
    folder = tmp_path / "sweep"
    written = []
    original = sweep_store.Store.write

    def killed(self, chunk, arrays):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(chunk)
        original(self, chunk, arrays)

    monkeypatch.setattr(sweep_store.Store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        jmi.sweep(*model, swept, read, output=folder)
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(done) == 5
    (folder / ".000007.npz.tmp").write_bytes(b"half a file")

    monkeypatch.setattr(sweep_store.Store, "write", original)
    got = jmi.sweep(*model, swept, read, output=folder)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(list(folder.glob("[0-9]*.npz"))) == 12
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done, "finished chunks stay"

    doubled = jmi.LanguageModel(lm.arch, jax.tree.map(lambda x: x * 2, lm.params))
    for other in ((lm, tokens[:, ::-1]), (doubled, tokens)):
        with pytest.raises(OutputError, match="another sweep"):
            jmi.sweep(*other, swept, read, output=folder)
    with pytest.raises(OutputError, match="another sweep"):
        jmi.sweep(
            *model,
            swept,
            lambda out: {**read(out), "last": out.logits[:, -2]},
            output=folder,
        )


def test_a_folder_that_is_not_a_sweep_is_left_alone(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    swept, _ = hooks_of("add")
    for where, words in ((tmp_path, "holds no sweep"), (tmp_path / "a" / "b", "create the folder")):
        with pytest.raises(OutputError, match=words):
            jmi.sweep(*model, swept, everything, output=where)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


TWO = """
import jax.numpy as jnp
import numpy as np
import jmi, jmi_models
lm = jmi_models.load("atlas")
tokens = lm.encode("The capital of France is")
grid = jmi.Grid(layer=range(3), seed=[3, 8], head=range(4))
hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
base = {"hook_embed": jmi.Noise(0.1, seed=grid["seed"])}
read = lambda out: out.logits[0]
logits = jmi.sweep(lm, tokens, hooks, read, base=base, logits_at=-1, output=args[0] + "/out")
np.save(f"{args[0]}/{process}.npy", logits)
"""


def test_two_processes_share_the_cells(tmp_path):
    run_two(TWO, tmp_path)
    lm = jmi_models.load("atlas")
    tokens = lm.encode("The capital of France is")
    grid = jmi.Grid(layer=range(3), seed=[3, 8], head=range(4))
    hooks = {"blocks.*.attn.hook_z": jmi.At(grid["layer"], jmi.Zero(heads=grid["head"]))}
    base = {"hook_embed": jmi.Noise(0.1, seed=grid["seed"])}
    want = jmi.sweep(lm, tokens, hooks, lambda out: out.logits[0], base=base, logits_at=-1)
    assert want.shape[:3] == grid.shape
    one, two = (np.load(tmp_path / f"{i}.npy") for i in (0, 1))
    np.testing.assert_array_equal(one, two)
    assert_equal(one, want)
    assert len(list((tmp_path / "out").glob("*.npz"))) == 6


def test_a_mesh_of_another_shape_is_refused(model):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ArgumentError, match="'cells'"):
        jmi.sweep(*model, hooks_of("add")[0], everything, mesh=mesh)
