"""Axis order on disk and in memory are inverse to each other, whatever the layout."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmi_models.disk.layout import Fused, Key, disk_shape, from_disk, to_disk
from jmi_models.families import family_of
from jmi_models.params import Param
from jmi_models.weights.checkpoint import plan_reads
from tests.oracles import grid, llama_grid

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


def sizes_of(param: Param) -> dict[str, int]:
    return dict(zip(param.axes, param.shape, strict=True))


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Every entry another number, so that no two places can be confused."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(params_and_layouts())
def test_disk_and_memory_are_inverse(case: tuple[Param, str]) -> None:
    param, layout = case
    value = numbered(row_shape(param))
    key, sizes = Key("", layout), sizes_of(param)
    stored = to_disk([(key, param, value)], sizes)
    assert stored.shape == disk_shape(key, sizes)
    assert stored.flags.c_contiguous
    back = from_disk(jnp.asarray(stored), param, key, sizes)
    np.testing.assert_array_equal(back, value)
    np.testing.assert_array_equal(to_disk([(key, param, np.asarray(back))], sizes), stored)


@settings(max_examples=60, deadline=None)
@given(params_and_layouts())
def test_entries_lie_where_their_indices_say(case: tuple[Param, str]) -> None:
    param, layout = case
    shape = row_shape(param)
    axes = param.axes[-len(shape) :]
    value = numbered(shape)
    stored = to_disk([(Key("", layout), param, value)], sizes_of(param)).ravel()
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
    key = Key("", "(n_heads d_head) d_model")
    assert disk_shape(key, sizes_of(param)) == (6, 5)
    got = np.asarray(from_disk(jnp.asarray(stored), param, key, sizes_of(param)))
    assert got.shape == (5, 2, 3)
    assert got[4, 1, 2] == stored[1 * 3 + 2, 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_is_kept(dtype: str) -> None:
    param = Param((4, 3), ("d_model", "d_mlp"))
    with jax.enable_x64(dtype == "float64"):
        value = numbered((4, 3)).astype(jnp.dtype(dtype))
        key, sizes = Key("", "d_mlp d_model"), sizes_of(param)
        stored = to_disk([(key, param, value)], sizes)
        assert stored.dtype == from_disk(jnp.asarray(stored), param, key, sizes).dtype == dtype


GROUPED = Fused("n_kv_heads", ("group d_head", "d_head", "d_head"), 0)
SIZES = {"n_heads": 4, "n_kv_heads": 2, "group": 2, "d_head": 3, "d_model": 5}


def test_fused_heads_by_hand() -> None:
    """Two groups of two queries, one key and one value, as in Falcon."""
    stored = numbered((2 * 4 * 3, 5))
    heads = stored.reshape(2, 4, 3, 5)
    wanted = {
        "n_heads": heads[:, :2].reshape(4, 3, 5),
        "n_kv_heads": heads[:, 2],
    }
    for part, (axis, want) in enumerate(wanted.items()):
        param = Param((5, len(want), 3), ("d_model", axis, "d_head"))
        key = Key("", f"[{axis} d_head] d_model", Fused(GROUPED.groups, GROUPED.parts, part))
        assert disk_shape(key, SIZES) == (24, 5)
        got = from_disk(jnp.asarray(stored), param, key, SIZES)
        np.testing.assert_array_equal(got, want.transpose(2, 0, 1))


def test_fused_parts_go_back_where_they_came_from() -> None:
    stored, parts = numbered((24, 5)), []
    for part, axis in enumerate(("n_heads", "n_kv_heads", "n_kv_heads")):
        param = Param((5, SIZES[axis], 3), ("d_model", axis, "d_head"))
        key = Key("", f"[{axis} d_head] d_model", Fused(GROUPED.groups, GROUPED.parts, part))
        parts.append((key, param, np.asarray(from_disk(jnp.asarray(stored), param, key, SIZES))))
    np.testing.assert_array_equal(to_disk(parts[::-1], SIZES), stored)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    family = family_of(config)
    arch = family.from_config(config)
    reads = plan_reads(arch, family, {})
    return {name: disk_shape(targets[0].key, arch.sizes()) for name, targets in reads.items()}


@pytest.mark.parametrize("name", llama_grid.GRID)
def test_shapes_on_disk_are_those_written_down_by_hand(name: str) -> None:
    assert shapes(llama_grid.GRID[name]) == llama_grid.shapes(llama_grid.GRID[name])


@pytest.mark.parametrize("name", grid.COMMITTED)
def test_shapes_on_disk_are_those_of_hugging_face(name: str) -> None:
    stored = {tensor: value.shape for tensor, value in grid.committed(name).tensors.items()}
    assert shapes(grid.committed(name).config) == stored
