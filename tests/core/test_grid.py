"""Grids: named axes whose values know that they differ between cells."""

import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import ArgumentError, HookError


def test_values_for_every_cell_the_last_axis_fastest():
    grid = jmi.Grid(layer=[2, 5], head=range(3), strength=[0.5])
    assert (len(grid), grid.shape) == (6, (2, 3, 1))
    cells = np.stack([grid["layer"].values, grid["head"].values], 1)
    np.testing.assert_array_equal(cells, [[2, 0], [2, 1], [2, 2], [5, 0], [5, 1], [5, 2]])


def test_axes_of_vectors_tables_and_results_of_another_sweep():
    vectors = np.arange(12.0).reshape(3, 4)
    grid = jmi.Grid(position=[1, -1], vector=vectors)
    np.testing.assert_array_equal(grid["vector"].values, np.concatenate([vectors, vectors]))
    table = np.arange(10).reshape(5, 2)
    np.testing.assert_array_equal(grid.take("position", table).values, table[[1, 1, 1, 4, 4, 4]])
    found = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(grid.cells(found).values, found.reshape(6, 4))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: jmi.Grid(), "no axis"),
        (lambda: jmi.Grid(layer=3), "layer="),
        (lambda: jmi.Grid(layer=[]), "layer="),
        (lambda: jmi.Grid(layer=["a", "b"]), "layer="),
        (lambda: jmi.Grid(layer=[1j]), "layer="),
        (lambda: jmi.Grid(layer=[None]), "layer="),
        (lambda: jmi.Grid(layer=[0])["neuron"], "no axis 'neuron'"),
        (lambda: jmi.Grid(layer=[0, 6]).take("layer", np.zeros((6, 2))), "6 rows"),
        (lambda: jmi.Grid(strength=[0.5]).take("strength", np.zeros((6, 2))), "indices"),
        (lambda: jmi.Grid(layer=[0, 6]).cells(np.zeros(3)), r"begins with \(2,\)"),
    ],
)
def test_what_makes_no_grid_is_refused(wrong, words):
    with pytest.raises(ArgumentError, match=words):
        wrong()


@pytest.mark.parametrize(
    "lost",
    [
        np.asarray,
        jnp.asarray,
        lambda x: x + 1,
        lambda x: 2 * x,
        lambda x: np.zeros(5)[x],
        lambda x: jnp.zeros(5)[x],
        lambda x: x[0],
        list,
        int,
        float,
        bool,
        len,
        lambda x: x.tolist(),
    ],
)
def test_a_value_of_a_grid_does_not_become_an_array_that_has_forgotten_its_cells(lost):
    with pytest.raises((ArgumentError, AttributeError, IndexError, TypeError)):
        lost(jmi.Grid(layer=[0, 1])["layer"])


def test_it_means_nothing_outside_a_sweep_nor_beside_another_grid():
    lm = jmi_models.load("atlas")
    grid = jmi.Grid(layer=[0, 1])
    for hook in (
        jmi.At(grid["layer"], jmi.Zero()),
        jmi.Zero(positions=grid["layer"]),
        jmi.Scale(grid["layer"]),
    ):
        with pytest.raises(HookError, match="only"):
            lm.run("The capital", {"blocks.*.hook_mlp_out": hook})
    with pytest.raises(HookError, match="2 grids"):
        jmi.sweep(
            lm,
            "The capital",
            {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Zero())},
            lambda out: out.logits,
            base={"hook_embed": jmi.Scale(jmi.Grid(layer=[0, 1])["layer"])},
        )
