"""Each process reads its own bytes: boxes of stored tensors, and two processes that load one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmi_models.disk.layout import disk_shape, from_disk
from jmi_models.families import family_of
from jmi_models.params import flat
from jmi_models.rwkv.architecture import Rwkv
from jmi_models.weights.checkpoint import plan_reads
from jmi_models.weights.placement import MESH_AXES
from jmi_models.weights.shards import window
from tests.oracles import grid
from tests.support.committed import load
from tests.support.processes import run_two
from tests.support.tolerances import WIDER, assert_agree

FAMILIES = (
    "llama/longrope_beyond",
    "gpt2/plain",
    "gpt_neox/parallel",
    "falcon/new_decoder",
    "phi3/longrope_beyond",
    "gpt_oss/alternating",
    "mixtral/full",
    "stablelm/parallel",
)
ARCHS = {
    name: (grid.GRID[name], family_of(grid.GRID[name]).from_config(grid.GRID[name])) for name in FAMILIES
}
RANKS = (("rank_decay", 6), ("rank_a", 4), ("rank_v", 2), ("rank_gate", 8))
ARCHS["rwkv7"] = ({"model_type": "rwkv7"}, Rwkv(7, 3, 24, 2, 12, 40, 30, RANKS))


@pytest.mark.parametrize("name", ARCHS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_box_of_a_stored_tensor_holds_what_is_wanted(name: str, data: Any) -> None:
    config, arch = ARCHS[name]
    family = family_of(config)
    sizes, tree = arch.sizes(), flat(arch.param_tree())
    for targets in plan_reads(arch, family, {}).values():
        for target in targets:
            param, depth = tree[target.path], len(target.index)
            bounds = {}
            for axis in param.axes[depth:]:
                if axis in MESH_AXES and sizes[axis] % 2 == 0:
                    half, part = sizes[axis] // 2, data.draw(st.integers(0, 1))
                    bounds[axis] = (part * half, (part + 1) * half)
            shape = disk_shape(target.key, sizes)
            stored = np.arange(np.prod(shape)).reshape(shape)
            box = window(target.key, sizes, bounds)
            got = from_disk(stored[box.where], param, box.key, box.sizes)
            got = got[tuple(slice(*box.rest.get(axis, (None, None))) for axis in param.axes[depth:])]
            whole = from_disk(stored, param, target.key, sizes)
            want = whole[tuple(slice(*bounds.get(axis, (None, None))) for axis in param.axes[depth:])]
            np.testing.assert_array_equal(got, want)
            if target.key.fused is None or not target.key.fused.groups:
                assert stored[box.where].size <= stored.size * want.size / whole.size


CHILD = """
import numpy as np
import jmi_models
from jmi_models.weights import stored

read, original = [], stored._read_safetensor
def counted(*args, **kwargs):
    value = original(*args, **kwargs)
    read.append(value.nbytes)
    return value
stored._read_safetensor = counted

mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
tokens = np.arange(10, dtype=np.int32)[None] % 61
for folder in args:
    read.clear()
    lm = jmi_models.load(folder, mesh=mesh, progress=False)
    logits = lm.run(tokens).logits
    logits = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))(logits)
    np.savez(f"{folder}/{process}.npz", logits=np.asarray(logits), read=sum(read))
"""


def test_two_processes_load_one_model_each_from_its_own_bytes(tmp_path: Path) -> None:
    held = {name: grid.committed(name) for name in ("llama/longrope_beyond", "mixtral/full")}
    run_two(CHILD, *(grid.write_folder(tmp_path / name, it.config, it.tensors) for name, it in held.items()))
    tokens = np.arange(10, dtype=np.int32)[None] % 61
    for name, it in held.items():
        want = np.asarray(load(name).run(tokens).logits)
        whole = sum(value.nbytes for value in it.tensors.values())
        for process in (0, 1):
            result = np.load(tmp_path / name / f"{process}.npz")
            # Each device sums a part, and the parts are added.
            assert_agree(result["logits"], want, times=WIDER)
            # The four devices lie two and two along fsdp: each process needs half of nearly everything.
            assert result["read"] < 0.62 * whole, name
