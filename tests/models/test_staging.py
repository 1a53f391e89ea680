"""Parameters filled on the host: taken over as they are, compiled by nothing, and safe to give away."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jmi_models
from jmi.errors import CheckpointError
from jmi_models.disk.layout import Key
from jmi_models.params import Param
from jmi_models.weights import staging
from jmi_models.weights.staging import Staged
from tests.oracles import grid
from tests.support.checkpoints import assert_same, compiled
from tests.support.committed import load

SIZES = {"n_layers": 2, "d_model": 8, "d_mlp": 64}
PARAM = Param((2, 8, 64), ("n_layers", "d_model", "d_mlp"))
STORED = np.random.default_rng(0).standard_normal((2, 64, 8), np.float32)


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        shape, ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(shape)]
    )


def filled(sharding: NamedSharding | None) -> Staged:
    staged = Staged(PARAM, np.float32, sharding)
    for layer in range(2):
        read = lambda box=None, layer=layer: STORED[layer][box or ...]
        assert staged.fill(read, Key("", "d_mlp d_model"), SIZES, (layer,))
    return staged


def test_a_cpu_takes_over_what_was_filled() -> None:
    staged = filled(None)
    (part,) = staged.parts.values()
    value = staged.place()
    assert value.unsafe_buffer_pointer() == part.ctypes.data
    np.testing.assert_array_equal(value, STORED.transpose(0, 2, 1))


@pytest.mark.parametrize("spec", [("model", "fsdp"), (None, "model"), (None, None)])
def test_devices_share_the_parts_that_they_hold_in_common(spec: Any) -> None:
    staged = filled(NamedSharding(mesh(2, 2), PartitionSpec(None, *spec)))
    value = staged.place()
    assert len(staged.parts) == 2 ** (2 - spec.count(None))
    np.testing.assert_array_equal(value, STORED.transpose(0, 2, 1))
    assert {s.data.unsafe_buffer_pointer() for s in value.addressable_shards} == {
        part.ctypes.data for part in staged.parts.values()
    }


def test_a_parameter_given_away_changes_no_device_but_its_own() -> None:
    """All four devices hold one buffer: a program that may overwrite its argument must not write there."""
    sharding = NamedSharding(mesh(2, 2), PartitionSpec())
    staged = filled(sharding)
    value, kept = staged.place(), staged.place()
    added = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=sharding)(value)
    want = STORED.transpose(0, 2, 1)
    for shard in added.addressable_shards:
        np.testing.assert_array_equal(shard.data, want + 1)
    np.testing.assert_array_equal(kept, want)


def test_what_no_tensor_fills_is_zero_and_an_index_elsewhere_is_not_read() -> None:
    param = Param((4, 8, 64), ("n_experts", "d_model", "d_mlp"))
    sharding = NamedSharding(mesh(1, 4), PartitionSpec("model"))
    staged = Staged(param, np.float32, sharding)
    (first, *_) = sorted(staged.parts)
    staged.parts = {first: staged.parts[first]}  # as in a process that has this device alone
    assert first[0] == (0, 1)
    absent = lambda box=None: pytest.fail("read")
    assert staged.fill(absent, Key("", "d_mlp d_model"), {**SIZES, "n_experts": 4}, (2,))
    assert not staged.parts[first].any()


def test_a_parameter_larger_than_memory_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"\[1099511627776, 1048576\] in float32 is larger than memory"):
        Staged(Param((2**40, 2**20), ("d_vocab", "d_model")), np.float32, None)


@pytest.mark.parametrize("name", grid.COMMITTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_family_needs_a_program_to_load(name: str, dtype: str, tmp_path: Path) -> None:
    held = grid.committed(name)
    folder = grid.write_folder(tmp_path, held.config, held.tensors)
    assert compiled(lambda: jmi_models.load(folder, dtype=dtype)) == []


@pytest.mark.parametrize("name", ["llama/longrope_beyond", "gpt_neox/parallel", "mixtral/full"])
def test_a_mesh_needs_no_program_either(name: str, tmp_path: Path) -> None:
    held = grid.committed(name)
    folder = grid.write_folder(tmp_path, held.config, held.tensors)
    placed = []
    assert compiled(lambda: placed.append(jmi_models.load(folder, mesh=mesh(2, 2)))) == []
    assert_same(placed[0].params, jmi_models.load(folder).params)


@pytest.mark.parametrize("name", grid.COMMITTED)
@pytest.mark.parametrize("piece", [1, 1000])
def test_tensors_read_in_pieces_are_the_same(
    name: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = grid.committed(name)
    folder = grid.write_folder(tmp_path, held.config, held.tensors)
    monkeypatch.setattr(staging, "_PIECE", piece)
    got = [jmi_models.load(folder).params, jmi_models.load(folder, mesh=mesh(2, 2)).params]
    for params in got:
        assert_same(params, load(name).params)
