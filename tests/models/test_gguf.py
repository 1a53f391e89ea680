"""GGUF files by llama.cpp's converter hold the models that they were made from."""

import collections
import dataclasses
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmi
import jmi_models
from jmi.errors import CheckpointError, ConfigError
from jmi_models.families import FAMILIES
from jmi_models.gguf import kinds, model
from jmi_models.gguf.header import read_header
from jmi_models.gguf.tensors import values
from jmi_models.params import flat
from tests.oracles import grid
from tests.oracles.gguf_files import COMMITTED, file_of, folder_of
from tests.support.checkpoints import shapes_of

UNTOLD: Mapping[str, Mapping[str, Any]] = {
    # llama.cpp has it in its code: the root of a head's width.
    "gemma2": {"attn.scale": 8**-0.5},
}
"""Family -> what the file does not say of the config that it was made from, and what is taken."""


def told(name: str) -> Any:
    """The architecture of config ``name``, as far as its file tells."""
    family = name.split("/")[0]
    arch = FAMILIES[family].from_config(grid.GRID[name])
    for path, value in UNTOLD.get(family, {}).items():
        spec, field = path.split(".")
        part = dataclasses.replace(getattr(arch, spec), **{field: value})
        arch = dataclasses.replace(arch, **{spec: part})
    return arch


def original(name: str, folder: Path) -> jmi.LanguageModel:
    held = grid.tensors(shapes_of(name), name.split("/")[0])
    return jmi_models.load(folder_of(name, folder / "original", held), tokenizer=False)


def narrow(x: Any) -> np.ndarray:
    """``x`` rounded to float16, in which the converter stored most matrices."""
    return np.asarray(x).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("name", COMMITTED)
def test_a_file_holds_the_model_that_it_was_made_from(name: str, tmp_path: Path) -> None:
    lm, want = jmi_models.load(file_of(name), tokenizer=False), original(name, tmp_path)
    # Factors of frequencies are told one by one, and in float32.
    near = {"positions": want.arch.positions} if name in ("llama/llama3", "phi3/longrope_beyond") else {}
    assert_same_angles(lm.arch, want.arch)
    assert dataclasses.replace(lm.arch, **near) == told(name)
    got, expected = flat(lm.params), flat(want.params)
    assert set(got) == set(expected)
    for path, value in got.items():
        x = np.asarray(expected[path])
        if name.startswith("gemma") and path.endswith(".w"):  # stored plus one
            x = (x + np.float32(1)) - np.float32(1)
        assert (np.array_equal(value, x)) or np.array_equal(value, narrow(x)), path


def assert_same_angles(arch: Any, want: Any) -> None:
    positions = jnp.arange(20)[None]
    for ours, theirs in zip(arch.positions.ropes, want.positions.ropes, strict=True):
        tables = ours.tables(positions, jnp.float32), theirs.tables(positions, jnp.float32)
        np.testing.assert_allclose(*map(np.asarray, tables), atol=2e-6)


def test_every_kind_is_read_as_ggml_itself_reads_it() -> None:
    with np.load(grid.DATA / "gguf" / "kinds.npz") as held:
        names = sorted({key.partition("/")[0] for key in held})
        by_name = {kind.name: kind for number in range(64) if (kind := kinds.kind_of(number))}
        for name in names:
            if name == "Q1_0":  # which the package has no table for
                with pytest.raises(CheckpointError, match="quantisation Q1_0 cannot be read back"):
                    kinds.unpacked(held[f"{name}/bytes"], by_name[name])
            else:
                got = kinds.unpacked(held[f"{name}/bytes"], by_name[name])
                np.testing.assert_array_equal(got, held[f"{name}/values"])
    assert len(names) == 24


def test_many_blocks_are_unpacked_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(grid.DATA / "gguf" / "kinds.npz") as held:
        raw, want = held["Q4_K/bytes"], held["Q4_K/values"]
    kind = kinds.kind_of(12)
    assert kind is not None
    monkeypatch.setattr(kinds, "_PIECE", 512)
    got = kinds.unpacked(np.tile(raw, (3, 5)).reshape(3, -1), kind)
    np.testing.assert_array_equal(got, np.tile(want, (3, 5)))


@pytest.mark.parametrize("name", ["llama/llama3", "gpt_oss/alternating", "qwen2_moe/shared", "gemma2/capped"])
def test_a_box_of_a_tensor_is_that_box_of_the_whole(name: str) -> None:
    for stored in model.open_model(file_of(name)).tensors.values():
        whole = stored.read()
        assert whole.shape == stored.shape
        box = tuple(slice(size // 3, size - size // 4) for size in stored.shape)
        for part in (box, box[:1], ()):
            np.testing.assert_array_equal(stored.read(part), whole[part])


def test_rotary_halves_lie_in_pairs_in_the_file() -> None:
    """By hand: row 2 j + c of a head in the file is row c d/2 + j of the model."""
    name, file = "llama/llama3", file_of("llama/llama3")
    raw = values(read_header(file), "blk.0.attn_q.weight").astype(np.float32)
    held = narrow(grid.tensors(shapes_of(name), "llama")["model.layers.0.self_attn.q_proj.weight"])
    d_head = told(name).d_head
    for row in range(len(held)):
        head, (c, j) = row // d_head, divmod(row % d_head, d_head // 2)
        np.testing.assert_array_equal(raw[head * d_head + 2 * j + c], held[row])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_weights_are_cast_to_the_wanted_dtype(dtype: Any) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        lm = jmi_models.load(file_of("gpt2/plain"), dtype=dtype, tokenizer=False)
        assert {leaf.dtype for leaf in jax.tree.leaves(lm.params)} == {np.dtype(dtype)}


def test_what_is_inspected_is_what_is_loaded() -> None:
    report = jmi_models.inspect(file_of("gpt_oss/alternating"))
    assert report.supported, str(report)
    assert (report.family, report.naming) == ("gpt_oss", "llama.cpp")
    tensors = gguf.GGUFReader(file_of("gpt_oss/alternating")).tensors
    kind = collections.Counter(tensor.tensor_type.name for tensor in tensors)
    assert report.storage == f"F16, 0.0 MiB (tensors: F16 {kind['F16']}, F32 {kind['F32']})"
    assert report.arch == jmi_models.architecture(file_of("gpt_oss/alternating"))
    assert "stored as: F16" in str(report)


def test_a_file_needs_no_name_and_a_folder_of_one_is_that_one(tmp_path: Path) -> None:
    blob = shutil.copy(file_of("gpt2/plain"), tmp_path / "sha256-0123")
    assert jmi_models.architecture(blob).family == "gpt2"
    folder = tmp_path / "studio"
    folder.mkdir()
    shutil.copy(file_of("gpt2/plain"), folder / "it-Q4_K_M.gguf")
    (folder / "mmproj-it.gguf").write_bytes(b"GGUF")
    assert jmi_models.architecture(folder).family == "gpt2"
    shutil.copy(file_of("gpt2/plain"), folder / "it-Q8_0.gguf")
    with pytest.raises(ConfigError, match=r"several models: give the path of one, it-Q4_K_M.gguf, it-Q8_0"):
        jmi_models.load(folder)
    (tmp_path / "other.bin").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is no GGUF file"):
        jmi_models.load(tmp_path / "other.bin")


def test_a_model_in_parts_is_read_whole(tmp_path: Path) -> None:
    parts = split(file_of("gpt2/plain"), tmp_path)
    whole = jmi_models.load(file_of("gpt2/plain"), tokenizer=False)
    for part in (parts[0], parts[-1], tmp_path):
        lm = jmi_models.load(part, tokenizer=False)
        jax.tree.map(np.testing.assert_array_equal, lm.params, whole.params)
    assert lm.identity() != whole.identity()
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"parts are missing: it-00002-of-00003\.gguf"):
        jmi_models.load(parts[0])


def split(file: Path, folder: Path) -> list[Path]:
    """``file`` in three parts, by the writer of the package ``gguf``."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "it.gguf", "gpt2", split_max_tensors=math.ceil(len(reader.tensors) / 3))
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("it-*.gguf"))


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    kinds._package.cache_clear()
    kinds._kinds.cache_clear()
    try:
        with pytest.raises(CheckpointError, match=r"pip install 'jmi\[gguf\]'"):
            jmi_models.load(file_of("gpt2/plain"))
    finally:
        kinds._package.cache_clear()
        kinds._kinds.cache_clear()
