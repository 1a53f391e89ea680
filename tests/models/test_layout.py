"""Axis order on disk and in memory are inverse to each other, whatever the layout."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmi_models.families.llama import KEYS, from_config
from jmi_models.layout import disk_shape, from_disk, to_disk
from jmi_models.params import Param, flat
from tests.oracles import llama_grid

NAMES = ("d_model", "n_heads", "d_head", "d_mlp")


@st.composite
def params_and_layouts(draw: Any) -> tuple[Param, str]:
    """A parameter of up to four axes, layers perhaps in front, and any grouping of any order of them."""
    axes = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    sizes = [draw(st.integers(1, 4)) for _ in axes]
    order = draw(st.permutations(axes))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, len(order))))), len(order)]
    groups = [order[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    layout = " ".join(f"({' '.join(group)})" if len(group) > 1 else group[0] for group in groups)
    stacked = draw(st.booleans())
    shape, names = tuple(sizes), tuple(axes)
    return Param(((3, *shape) if stacked else shape), (("n_layers", *names) if stacked else names)), layout


def row_shape(param: Param) -> tuple[int, ...]:
    """Shape of one layer of ``param``."""
    return param.shape[param.axes[0] == "n_layers" :]


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Every entry another number, so that no two places can be confused."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(params_and_layouts())
def test_disk_and_memory_are_inverse(case: tuple[Param, str]) -> None:
    param, layout = case
    value = numbered(row_shape(param))
    stored = to_disk(value, param, layout)
    assert stored.shape == disk_shape(param, layout)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(from_disk(jnp.asarray(stored), param, layout), value)
    again = to_disk(np.asarray(from_disk(jnp.asarray(stored), param, layout)), param, layout)
    np.testing.assert_array_equal(again, stored)


@settings(max_examples=60, deadline=None)
@given(params_and_layouts())
def test_entries_lie_where_their_indices_say(case: tuple[Param, str]) -> None:
    param, layout = case
    shape = row_shape(param)
    axes = param.axes[-len(shape) :]
    value, stored = numbered(shape), to_disk(numbered(shape), param, layout).ravel()
    disk_order = layout.replace("(", "").replace(")", "").split()
    strides, stride = {}, 1
    for axis in reversed(disk_order):
        strides[axis], stride = stride, stride * shape[axes.index(axis)]
    for index in np.ndindex(shape):
        place = sum(i * strides[axis] for i, axis in zip(index, axes, strict=True))
        assert stored[place] == value[index]


def test_linear_layer_with_heads_by_hand() -> None:
    param = Param((5, 2, 3), ("d_model", "n_heads", "d_head"))
    stored = numbered((6, 5))
    assert disk_shape(param, "(n_heads d_head) d_model") == (6, 5)
    got = np.asarray(from_disk(jnp.asarray(stored), param, "(n_heads d_head) d_model"))
    assert got.shape == (5, 2, 3)
    assert got[4, 1, 2] == stored[1 * 3 + 2, 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_is_kept(dtype: str) -> None:
    param = Param((4, 3), ("d_model", "d_mlp"))
    with jax.enable_x64(dtype == "float64"):
        value = numbered((4, 3)).astype(jnp.dtype(dtype))
        stored = to_disk(value, param, "d_mlp d_model")
        assert stored.dtype == from_disk(jnp.asarray(stored), param, "d_mlp d_model").dtype == dtype


@pytest.mark.parametrize("name", llama_grid.GRID)
def test_shapes_on_disk_are_those_of_hugging_face(name: str) -> None:
    config = llama_grid.GRID[name]
    arch = from_config(config)
    expected = {}
    for path, param in flat(arch.param_tree()).items():
        for layer in range(arch.n_layers):
            expected[KEYS[path].name.format(i=layer)] = disk_shape(param, KEYS[path].layout)
    assert expected == llama_grid.shapes(config)
