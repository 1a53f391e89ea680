"""What the cells of a sweep are: what each of them would prepare alone, or one clear error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
from jmi.errors import HookError, InterventionError
from jmi.hooks.grid import Swept
from jmi.sweeps import work as sweep_work
from jmi.sweeps.cells import cells_of, grid_of
from tests.core.sweeps.cells import (
    LAYERS,
    LENGTH,
    SOURCE,
    SWEPT,
    columns,
    everything,
    hooks_of,
    loop,
    of_cells,
)
from tests.core.test_rewire import IN, OUT, Transcoder, weights
from tests.support.tolerances import assert_agree as assert_equal

RNG = np.random.default_rng(4)

pytestmark = pytest.mark.usefixtures("small_chunks_count")


MASKS = RNG.random((5, 4)) < 0.5
FORMS = {
    **{kind: hooks_of(kind)[0] for kind in SWEPT},
    "mask of layers": {"blocks.*.hook_mlp_out": jmi.At(of_cells(MASKS), jmi.Scale(2))},
    "several layers": {"blocks.*.hook_mlp_out": jmi.At(of_cells([[0, -1], [1, 1], [2, 3]]), jmi.Scale(0.5))},
    "mask of positions": {
        "blocks.1.hook_mlp_out": jmi.Zero(positions=of_cells(np.tri(LENGTH, dtype=bool)[::-1]))
    },
    "positions by row": {
        "blocks.1.hook_mlp_out": jmi.Zero(positions=of_cells(RNG.integers(1, LENGTH, (6, 2, 3))))
    },
    "positions by layer": {
        "blocks.*.hook_mlp_out": jmi.PerLayer(
            jmi.Scale(np.ones(4), positions=of_cells(LAYERS[:, None] + np.arange(4)))
        )
    },
    "pairs": {
        "blocks.2.attn.hook_attn_scores": jmi.Knockout(edges=of_cells(RNG.integers(2, LENGTH, (6, 3, 2))))
    },
    "several points": {"blocks.*.hook_*_out": jmi.At([1, 2, 3], jmi.Scale(of_cells(np.arange(3))))},
    "layers that have arrays": {
        "blocks.*.hook_mlp_out": jmi.At(
            of_cells([[1, 1], [3, 1], [3, 3]]), jmi.PerLayer(jmi.Add(SOURCE[:2, 0, 0]), slots=[-1, 1, -1, 0])
        )
    },
    "whole masks of layers that have arrays": {
        "blocks.*.hook_mlp_out": jmi.At(
            of_cells(np.ones((3, 4), bool)), jmi.PerLayer(jmi.Add(SOURCE[:2, 0, 0]), slots=[-1, 1, -1, 0])
        )
    },
    "integers on a device": {"blocks.0.hook_mlp_out": jmi.Scale(of_cells(jnp.arange(3)))},
    "other rows of per-layer arrays": {
        "blocks.*.hook_mlp_out": jmi.PerLayer(
            jmi.Add(SOURCE[:2, 0, 0]), slots=of_cells([[-1, 0, -1, 1], [0, -1, -1, -1], [1, 0, -1, -1]])
        )
    },
    "one of several names that meet at a point": {
        "blocks.*.hook_mlp_out": [jmi.Scale(0.5), jmi.At([1, -1], jmi.Scale(of_cells([1.0, 2.0, 3.0])))],
        "blocks.2.hook_mlp_out": jmi.Add(SOURCE[0, 0], positions=[1, 2]),
        "hook_logits": jmi.Scale(2),
    },
    "the same array in two hooks": {
        name: jmi.At(same, jmi.Scale(same))
        for same in [of_cells([1, 2, 3])]
        for name in ("blocks.*.attn.hook_out", "blocks.*.hook_mlp_out")
    },
    "layers on a device": {"blocks.*.hook_mlp_out": jmi.At(of_cells(jnp.arange(3)), jmi.Zero())},
    "embedding": {
        "hook_embed": jmi.Add(*columns(RNG.normal(size=(3, 16)), np.arange(3)), positions=4),
    },
    "as many layers and positions as cells": {
        "blocks.*.hook_mlp_out": jmi.At([0, 2, 3], jmi.Scale(of_cells([1.0, 2.0, 3.0]), positions=[1, 4, 7]))
    },
    "a function": {
        "blocks.0.hook_mlp_out": jax.tree_util.Partial(lambda x, value, site: value * x, of_cells(np.ones(3)))
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_cells_are_what_each_of_them_prepares(model, form):
    lm, tokens = model
    given = FORMS[form]
    leaves, tree = jax.tree.flatten(given)
    cells = cells_of(lm.arch, given, grid_of(given), tokens.shape)
    for i in range(len(cells)):
        each = [x.values[i] if isinstance(x, Swept) else x for x in leaves]
        want = jmi.prepare(lm.arch, jax.tree.unflatten(tree, each), tokens.shape)
        got = cells.structure.hooks(cells.layers[i], cells.shared, [x[i] for x in cells.swept])
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_layer_of_one_cell_that_has_no_such_point_is_refused(model):
    """Between layers that have it: the least and the largest of all cells are fine."""
    lm, tokens = model
    module = Transcoder(weights(2))
    spliced = jmi.rewire(lm, {(IN.replace("*", i), OUT.replace("*", i)): module for i in "13"})
    for layers in ([1, 3], [1, 2, 3]):
        hooks = {"blocks.*.mlp.hook_features": jmi.At(of_cells(layers), jmi.Zero())}
        if layers == [1, 3]:
            want = loop(spliced, tokens, [{f"blocks.{i}.mlp.hook_features": jmi.Zero()} for i in layers])
            assert_equal(jmi.sweep(spliced, tokens, hooks, everything), want)
            continue
        with pytest.raises(HookError, match=r"layers \[2\] have no such point"):
            jmi.sweep(spliced, tokens, hooks, everything)


@jmi.tree.dataclass
class Picky:
    """An intervention whose check no range describes."""

    number: object

    def check(self, site, shape):
        if self.number == 13:
            raise InterventionError(f"{site.point}: {self.number} is bad luck")

    def __call__(self, value, site):
        return value * self.number


@pytest.mark.parametrize(
    ("hooks", "error", "words"),
    [
        ({"blocks.*.hook_mlp_out": jmi.At(0, jmi.Zero(positions=1))}, HookError, "the same in every cell"),
        (
            {"blocks.*.hook_mlp_out": jmi.At(of_cells([0, 1]), jmi.Scale(of_cells([1.0, 2.0])))},
            HookError,
            "2 grids",
        ),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=[0, of_cells([1, 2])])}, HookError, "inside a list"),
        ({"blocks.*.hook_mlp_out": jmi.At(of_cells([0, 4]), jmi.Zero())}, HookError, "layers 0 to 3"),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=of_cells([0, 40]))}, InterventionError, "out of range"),
        ({"blocks.0.hook_mlp_outt": jmi.Zero(positions=of_cells([0, 1]))}, HookError, "Nearest"),
        ({"hook_logits": jmi.Zero(positions=of_cells([0, 1]))}, HookError, "logits_at"),
        ({"blocks.0.hook_mlp_out": jmi.Zero(positions=of_cells([0.0, 1.0]))}, InterventionError, "integers"),
        ({"blocks.*.hook_mlp_out": jmi.At(of_cells([0.0, 1.0]), jmi.Zero())}, HookError, "indices or a mask"),
        (
            {"blocks.*.hook_mlp_out": jmi.PerLayer(jmi.Zero(positions=of_cells([[0] * 4, [0, -12, 0, 0]])))},
            InterventionError,
            "out of range",
        ),
        (
            {"hook_embed": jmi.Project(of_cells(np.eye(16)[:2] * [[1], [0]]))},
            InterventionError,
            "zero or not finite",
        ),
        ({"hook_embed": Picky(of_cells([1, 13, 2]))}, InterventionError, "13"),
        (
            {
                "blocks.*.hook_mlp_out": jmi.At(
                    of_cells([1, 2, 3]), jmi.PerLayer(jmi.Add(np.ones((2, 16))), slots=[-1, 1, -1, 0])
                )
            },
            HookError,
            r"no row for layers \[2\]",
        ),
    ],
)
def test_a_wrong_cell_is_one_clear_error_before_anything_runs(model, monkeypatch, hooks, error, words):
    lm, tokens = model
    monkeypatch.setattr(sweep_work, "run_base", None)
    with pytest.raises(error, match=words):
        jmi.sweep(lm, tokens, hooks, everything, logits_at=-1)


def test_static_parts_are_hashable_values(model):
    lm, tokens = model
    hooks = [hooks_of("add")[0] for _ in range(2)]
    one, two = (cells_of(lm.arch, h, grid_of(h), tokens.shape).structure for h in hooks)
    assert hash(one) == hash(two)
    assert one == two
    assert one != dataclasses.replace(one, whole=dataclasses.replace(one.whole, classes=()))
