"""Values of a grid in the base of a sweep: a base run for each, of one program, as a loop over them gives."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import HookError, InterventionError, OutputError
from jmi.sweeps import store as sweep_store
from jmi.sweeps import work as sweep_work
from tests.core.conftest import Programs, lively, tiny
from tests.support.tolerances import assert_agree
from tests.support.trees import scaled, stacked

pytestmark = pytest.mark.usefixtures("small_chunks_count")

LENGTH = 9
RNG = np.random.default_rng(4)
SOURCE = RNG.normal(size=(4, 2, LENGTH, 16))
VECTORS = RNG.normal(size=(3, 16))
AHEAD = np.stack([np.tri(LENGTH), np.ones((LENGTH, LENGTH))]) / LENGTH
CAPTURES = ["hook_embed", "blocks.*.hook_resid_pre", "blocks.1.attn.hook_pattern", "hook_final_norm"]

Cell = dict[str, Any]
"""Values of the axes of a grid: of one cell, or for all of them."""


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[jmi.LanguageModel, jax.Array]]:
    with jax.enable_x64(True):
        arch = tiny()
        tokens = jnp.asarray(RNG.integers(0, 29, (2, LENGTH)), jnp.int32)
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64)), tokens


def repair(at: Cell) -> Cell:
    """Hooks of the cells: one position of one layer as it was; none of a grid without layers."""
    if "layer" not in at:
        return {}
    return {
        "blocks.*.hook_resid_mid": [
            jmi.At(at["layer"], jmi.PerLayer(jmi.Patch(SOURCE, positions=at["position"])))
        ]
    }


SPOTS = {"layer": [0, 2, 3], "position": [4, -2]}
BASES: dict[str, tuple[Cell, Callable[[Cell], Cell]]] = {
    "seeds": (
        {"seed": [0, 5, 7], **SPOTS},
        lambda at: {"hook_embed": [jmi.Noise(0.3, seed=at["seed"], positions=[1, 2])]},
    ),
    "layers": (
        {**SPOTS, "hurt": [3, 0, 1]},
        lambda at: {"blocks.*.hook_mlp_out": [jmi.At(at["hurt"], jmi.Scale(2.5))]},
    ),
    "positions": (
        {"hurt": [0, 5, -1], **SPOTS},
        lambda at: {"blocks.1.hook_resid_pre": [jmi.Add(VECTORS[0], positions=at["hurt"])]},
    ),
    "vectors and strengths": (
        {"strength": [0, 1.5], **SPOTS, "vector": VECTORS},
        lambda at: {"hook_embed": [jmi.Add(at["vector"], at["strength"])]},
    ),
    "what the cells have, too": (
        SPOTS,
        lambda at: {
            "blocks.*.hook_resid_mid": [jmi.At(at["layer"], jmi.Scale(0.5, positions=at["position"]))]
        },
    ),
    "a layer that cells do not reach": (
        {"layer": [0, 1], "position": [3], "hurt": [0, 3]},
        lambda at: {"blocks.*.hook_resid_post": [jmi.At(at["hurt"], jmi.Scale(1.5, positions=-1))]},
    ),
    "patterns of which some look ahead": (
        {"open": AHEAD, **SPOTS},
        lambda at: {"blocks.1.attn.hook_pattern": [jmi.Replace(at["open"])]},
    ),
    "nothing else": (
        {"seed": [1, 2]},
        lambda at: {"blocks.*.hook_mlp_out": [jmi.At([1], jmi.Noise(0.5, seed=at["seed"]))]},
    ),
}
"""Axes of a grid, and hooks of the base."""


def everything(out: jmi.Output) -> dict[str, Any]:
    return {"logits": out.logits, **out.captures}


def swept(which: str) -> tuple[jmi.Grid, Cell, Cell]:
    """The grid, hooks and base of a sweep."""
    axes, base = BASES[which]
    grid = jmi.Grid(**axes)
    at = {name: grid[name] for name in axes}
    return grid, repair(at), base(at)


def by_hand(lm: jmi.LanguageModel, prompts: Any, which: str, read: Any, **options: Any) -> Any:
    """One run after another, the base's hooks in front of the cell's."""
    axes, base = BASES[which]
    prompts, shape = lm.prompts(prompts), [len(values) for values in axes.values()]
    run = jax.jit(lambda hooks: read(jmi.forward(lm.arch, lm.params, prompts, hooks, **options)))
    found = []
    for index in np.ndindex(*shape):
        at = {name: values[i] for (name, values), i in zip(axes.items(), index, strict=True)}
        first, then = base(at), repair(at)
        both = {name: [*first.get(name, ()), *then.get(name, ())] for name in {**first, **then}}
        found.append(run(jmi.prepare(lm.arch, both, prompts.shape, prompts.mask)))
    return jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *found)


def assert_cells_differ(results: np.ndarray, n_axes: int) -> None:
    rows = results.reshape(-1, *results.shape[n_axes:])
    assert len({row.tobytes() for row in rows}) == len(rows), "every cell must have an effect of its own"


@pytest.mark.parametrize("which", BASES)
def test_a_sweep_gives_what_a_loop_over_base_runs_gives(model: Any, which: str) -> None:
    (lm, tokens), (grid, hooks, base) = model, swept(which)
    want = by_hand(lm, tokens, which, everything, capture=CAPTURES)
    # Of no strength, all vectors are one.
    if "strength" not in grid.axes:
        assert_cells_differ(want["logits"], len(grid.shape))
    run = functools.partial(jmi.sweep, lm, tokens, hooks, base=base)
    assert_agree(run(everything, capture=CAPTURES), want)
    assert_agree(run(everything, capture=CAPTURES, share=False), want)
    last = run(lambda out: out.logits, logits_at=[-1, 6])
    assert_agree(last, np.stack([want["logits"][..., 0, -1, :], want["logits"][..., 1, 6, :]], -2))


def test_a_padded_batch(model: Any) -> None:
    (lm, tokens), (_, hooks, base) = model, swept("seeds")
    prompts = (tokens, np.arange(LENGTH) >= np.array([[0], [3]]))
    read = lambda out: out.logits[:, -1]
    assert_agree(jmi.sweep(lm, prompts, hooks, read, base=base), by_hand(lm, prompts, "seeds", read))


class Runs:
    """`run_base`, which tells how often it ran, by the hooks it had."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.trace = sweep_work.run_base.trace
        self.run = sweep_work.run_base

    def __call__(self, models: bool, run: Any, params: Any) -> Any:
        seed = run.hooks["hook_embed"][0].seed
        if not isinstance(seed, jax.core.Tracer):
            self.seeds.append(int(seed))
        return self.run(models, run, params)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    counted = Runs()
    monkeypatch.setattr(sweep_work, "run_base", counted)
    return counted


def noised(seeds: Any) -> tuple[jmi.Grid, Cell, Cell]:
    grid = jmi.Grid(seed=seeds, layer=[0, 1, 3])
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero(positions=5))}
    return grid, hooks, {"hook_embed": jmi.Noise(0.3, seed=grid["seed"])}


@pytest.mark.parametrize("seeds", [[2**31 + 5, 0], [2**32 - 1]])
def test_every_seed_that_noise_takes(lm: jmi.LanguageModel, seeds: list[int]) -> None:
    """In 32 bits, where integers that large have none."""
    tokens, grid = np.arange(5)[None], jmi.Grid(seed=seeds)
    read = lambda out: out.logits[:, -1]
    noise = {"hook_embed": jmi.Noise(0.3, seed=grid["seed"])}
    want = [lm.run(tokens, {"hook_embed": jmi.Noise(0.3, seed=seed)}).logits[:, -1] for seed in seeds]
    assert_agree(jmi.sweep(lm, tokens, {}, read, base=noise), np.stack(want))
    assert_agree(jmi.sweep(lm, tokens, noise, read), np.stack(want))


def mesh_of(n: int | None) -> jax.sharding.Mesh | None:
    axis_types = (jax.sharding.AxisType.Auto,)
    return None if n is None else jax.make_mesh((n,), ("cells",), axis_types=axis_types)


@pytest.mark.parametrize("devices", [None, 2])
def test_base_runs_are_one_program_and_each_runs_once(
    model: Any, devices: int | None, runs: Runs, programs: Programs
) -> None:
    lm, tokens = model
    counts = []
    for seeds in ([3], [0, 4, 8, 9]):
        _, hooks, base = noised(seeds)
        # A function made anew: programs of cells that were compiled before do not count.
        read = lambda out: out.logits[:, -1]
        run = functools.partial(jmi.sweep, lm, tokens, hooks, read, base=base, mesh=mesh_of(devices))
        jax.clear_caches()
        programs()
        got = run()
        counts.append(programs())
        assert runs.seeds == seeds
        runs.seeds.clear()
        want = [
            jmi.sweep(lm, tokens, each[1], read, base=each[2]) for each in (noised([seed]) for seed in seeds)
        ]
        assert_agree(got, np.concatenate(want))
        runs.seeds.clear()
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_cells_of_many_bases_spread_over_devices_without_a_word_between_them(model: Any) -> None:
    (lm, tokens), (_, hooks, base) = model, noised([0, 4])
    read = lambda out: out.logits[:, -1]
    mesh = mesh_of(4)
    assert_agree(
        jmi.sweep(lm, tokens, hooks, read, base=base, mesh=mesh),
        jmi.sweep(lm, tokens, hooks, read, base=base),
    )
    work = sweep_work.prepare(lm, tokens, hooks, read, base=base, mesh=mesh)
    texts = [compiled.program.as_text() for compiled in work.compiled(2**30)[1].values()]
    assert texts
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert not any(collective in text for text in texts)


def test_one_that_was_stopped_goes_on_with_the_bases_that_are_left(
    model: Any, runs: Runs, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lm, tokens), (_, hooks, base) = model, noised([6, 2, 4, 5])
    read = lambda out: {"last": out.logits[:, -1], "best": out.logits.argmax(-1)}
    sweep = functools.partial(jmi.sweep, lm, tokens, hooks, read)
    want = sweep(base=base)
    original, written = sweep_store.Store.write, []

    def killed(self: Any, chunk: int, arrays: Any) -> None:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(chunk)
        original(self, chunk, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_store.Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(base=base, output=tmp_path / "sweep")
    runs.seeds.clear()
    jax.tree.map(np.testing.assert_array_equal, sweep(base=base, output=tmp_path / "sweep"), want)
    # Chunks of one layer each: 7 of 12 are whole, of two bases and a third of the next.
    assert len(runs.seeds) == 2
    assert len(list((tmp_path / "sweep").glob("*.npz"))) == 12
    runs.seeds.clear()
    jax.tree.map(np.testing.assert_array_equal, sweep(base=base, output=tmp_path / "sweep"), want)
    assert not runs.seeds, "all of it is kept"
    other = noised([6, 2, 4, 1])
    with pytest.raises(OutputError, match="another sweep, with other inputs"):
        jmi.sweep(lm, tokens, other[1], read, base=other[2], output=tmp_path / "sweep")


def test_models_are_an_axis_in_front(model: Any) -> None:
    (lm, tokens), (_, hooks, base) = model, noised([0, 4])
    other = jmi.LanguageModel(lm.arch, scaled(lm.params, 0.9))
    models = jmi.Models(lm, stacked(lm.params, other.params))
    read = lambda out: out.logits
    for options in ({}, {"logits_at": -1}):
        want = [jmi.sweep(each, tokens, hooks, read, base=base, **options) for each in (lm, other)]
        assert_agree(jmi.sweep(models, tokens, hooks, read, base=base, **options), np.stack(want))


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        (lambda at: {"hook_embed": jmi.Zero(positions=at)}, InterventionError, "out of range"),
        (lambda at: {"blocks.*.hook_mlp_out": jmi.At(at, jmi.Zero())}, HookError, "layers 0 to 3"),
        (lambda at: {"blocks.0.hook_mlp_outt": jmi.Scale(at)}, HookError, "Nearest"),
        (lambda at: {"hook_logits": jmi.Scale(at)}, HookError, "logits_at"),
        (lambda at: {"hook_embed": jmi.Zero(positions=[0, at])}, HookError, "inside a list"),
    ],
)
def test_a_wrong_base_of_one_cell_is_one_clear_error_before_anything_runs(
    model: Any, monkeypatch: pytest.MonkeyPatch, base: Any, error: type[Exception], words: str
) -> None:
    lm, tokens = model
    grid = jmi.Grid(layer=[0, 1], other=[0, 40, 1])
    hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())}
    monkeypatch.setattr(sweep_work, "run_base", None)
    with pytest.raises(error, match=words):
        jmi.sweep(lm, tokens, hooks, everything, base=base(grid["other"]), logits_at=-1)
