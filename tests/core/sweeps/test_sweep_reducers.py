"""Reducers in sweeps: pytrees, and arrays of each layer, of cells that run a part of the model."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.captures.reducers import TopEntries
from tests.core.conftest import lively, tiny
from tests.support.tolerances import assert_agree
from tests.support.trees import scaled, stacked

pytestmark = pytest.mark.usefixtures("small_chunks_count")

LENGTH = 9
RNG = np.random.default_rng(8)
LAYERS, POSITIONS, FACTORS = (0, 2, 3), (1, 5, -1), (0.5, 3.0)
POST = "blocks.*.mlp.hook_post"
TOP = jmi.Top(3)
CAPTURES = {
    "all layers": [jmi.Capture(POST, reduce=TOP)],
    "some layers": [jmi.Capture(f"blocks.{i}.mlp.hook_post", reduce=TOP) for i in (0, 3)],
    "vectors of each layer": [jmi.Capture(POST, reduce=jmi.PerLayer(jmi.Dot(RNG.normal(size=(4, 2, 24)))))],
    "vectors of some layers": [
        jmi.Capture("blocks.2.mlp.hook_post", reduce=jmi.PerLayer(jmi.Dot(RNG.normal(size=(4, 24)))))
    ],
    "outside of the layers": [jmi.Capture(name, reduce=TOP) for name in ("hook_embed", "hook_final_norm")],
    "several, some of them whole": [
        "blocks.*.hook_resid_pre",
        jmi.Capture("blocks.*.hook_resid_post", reduce=TOP, label="after"),
        jmi.Capture("blocks.*.hook_resid_post", when="before", reduce=TOP, label="before"),
        jmi.Capture("blocks.1.attn.hook_z", reduce=lambda z, site: {"largest": z.max(), "first": z[:, 0]}),
    ],
}


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[jmi.LanguageModel, jax.Array]]:
    with jax.enable_x64(True):
        arch = tiny()
        tokens = jnp.asarray(RNG.integers(0, 29, (2, LENGTH)), jnp.int32)
        yield jmi.LanguageModel(arch, lively(arch, jnp.float64)), tokens


def everything(out: jmi.Output) -> dict[str, Any]:
    return {"logits": out.logits, **out.captures}


def edit(layer: Any, position: Any, factor: Any) -> dict[str, Any]:
    return {"blocks.*.hook_resid_pre": jmi.At(layer, jmi.Scale(factor, positions=position))}


def by_hand(lm: jmi.LanguageModel, tokens: Any, read: Any, capture: Any) -> Any:
    """One run after another."""
    run = jax.jit(lambda hooks: read(jmi.forward(lm.arch, lm.params, tokens, hooks, capture)))
    cells = [edit(i, p, f) for i in LAYERS for p in POSITIONS for f in FACTORS]
    found = [run(jmi.prepare(lm.arch, cell, tokens.shape)) for cell in cells]
    return jax.tree.map(lambda *x: np.stack(x).reshape(3, 3, 2, *x[0].shape), *found)


def swept() -> dict[str, Any]:
    grid = jmi.Grid(layer=LAYERS, position=POSITIONS, factor=FACTORS)
    return edit(grid["layer"], grid["position"], grid["factor"])


@pytest.mark.parametrize("which", CAPTURES)
def test_a_sweep_gives_what_runs_give(model: Any, which: str) -> None:
    lm, tokens = model
    want = by_hand(lm, tokens, everything, CAPTURES[which])
    run = functools.partial(jmi.sweep, lm, tokens, swept(), everything, capture=CAPTURES[which])
    assert_agree(run(), want)
    assert_agree(run(share=False), want)
    if which != "outside of the layers":
        assert_agree(run(logits_at=-1), {**want, "logits": want["logits"][..., -1, :]})
    models = jmi.Models(lm, stacked(lm.params, scaled(lm.params, 0.9)))
    several = jmi.sweep(models, tokens, swept(), everything, capture=CAPTURES[which])
    assert_agree(jax.tree.map(lambda x: x[0], several), want)


def test_a_metric_reads_them_by_name_and_stacked(model: Any) -> None:
    lm, tokens = model

    def read(out: jmi.Output) -> Any:
        some, every = out["blocks.2.mlp.hook_post"], out.stack("mlp.hook_post")
        assert isinstance(some, TopEntries)
        assert out.names() == [f"blocks.{i}.mlp.hook_post" for i in range(4)]
        return some.ids, every.values.sum((1, 2, 3)), (every.ids == 7).any()

    want = by_hand(lm, tokens, read, CAPTURES["all layers"])
    mesh = jax.make_mesh((4,), ("cells",), axis_types=(jax.sharding.AxisType.Auto,))
    for options in ({}, {"logits_at": -1}, {"mesh": mesh}):
        got = jmi.sweep(lm, tokens, swept(), read, capture=CAPTURES["all layers"], **options)
        assert_agree(got, want)
    assert len({x.tobytes() for x in want[1].reshape(18, 4)}) == 18, "every cell must have an effect"


def test_they_are_kept_in_a_folder_and_come_back_as_they_were(model: Any, tmp_path: Any) -> None:
    (lm, tokens), read = model, lambda out: out.stack("mlp.hook_post")
    run = functools.partial(jmi.sweep, lm, tokens, swept(), read, capture=CAPTURES["all layers"])
    want = run()
    for _ in range(2):
        got = run(output=tmp_path / "sweep")
        assert isinstance(got, TopEntries)
        jax.tree.map(np.testing.assert_array_equal, got, want)
