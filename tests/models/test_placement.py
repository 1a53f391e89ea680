"""Parameters on a mesh of devices: where they lie, and that results do not depend on it."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jmi_models
from jmi.errors import ArgumentError
from tests.oracles import grid, llama_grid
from tests.support.committed import put_together
from tests.support.tolerances import WIDER, assert_agree

CONFIG = llama_grid.GRID["attention_bias"]


@pytest.mark.parametrize(
    ("axes", "shape"), [(("fsdp", "model"), (2, 2)), (("model",), (4,)), (("model", "fsdp"), (1, 4))]
)
def test_parameters_are_placed_on_a_mesh(
    tmp_path: Path, axes: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:4])
    sizes = dict(zip(axes, shape, strict=True))
    folder = llama_grid.write_folder(tmp_path, CONFIG)
    plain, placed = put_together(CONFIG, llama_grid.tensors(CONFIG)), jmi_models.load(folder, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed.params), jax.device_get(plain.params))
    heads, keys = placed.params["blocks"]["attn"]["W_Q"], placed.params["blocks"]["attn"]["W_K"]
    over = "fsdp" if "fsdp" in sizes else None
    # Two key heads do not divide among four devices: they stay whole there.
    split_keys = "model" if 2 % sizes["model"] == 0 else None
    assert heads.sharding.spec == PartitionSpec(None, over, "model", None)
    assert keys.sharding.spec == PartitionSpec(None, over, split_keys, None)
    assert heads.sharding.shard_shape(heads.shape) == (
        2,
        24 // sizes.get("fsdp", 1),
        4 // sizes["model"],
        6,
    )
    tokens = grid.tokens(CONFIG)
    got, want = np.asarray(placed.run(tokens).logits), np.asarray(plain.run(tokens).logits)
    # Each device sums a part, and the parts are added.
    assert_agree(got, want, times=WIDER)


def test_a_mesh_that_would_split_nothing_is_refused(tmp_path: Path) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    with pytest.raises(ArgumentError, match="fsdp or model"):
        jmi_models.load(llama_grid.write_folder(tmp_path, CONFIG), mesh=mesh)
