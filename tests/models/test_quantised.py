"""Weights in few bits are read as the numbers they stand for: each layout, whole, in parts and in models."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi_models.disk.layout import disk_shape
from jmi_models.disk.tensors import Stored
from jmi_models.families import family_of
from jmi_models.weights.checkpoint import plan_reads
from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import read_safetensors
from tests.oracles import grid
from tests.support.checkpoints import assert_same
from tests.support.committed import put_together
from tests.support.packers import PACKERS, Packed, decoded

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": {**grid.GRID["llama/longrope_beyond"], **SIZES, "rope_scaling": None, "head_dim": 8},
    # Several parameters are parts of one packed matrix.
    "phi3": {**grid.GRID["phi3/longrope_beyond"], **SIZES, "rope_scaling": None},
}


def same(got: Any, want: Any) -> None:
    """Equal up to the order of one or two roundings in float32."""
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("shape", [(32, 64), (48, 96), (16, 32)])
@pytest.mark.parametrize("name", PACKERS)
def test_a_matrix_is_what_its_packer_put_there_whole_and_in_parts(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    packed = PACKERS[name](*shape)
    headers = decoded(tmp_path, {**packed.tensors, ".bias": np.zeros(3, np.float32)}, packed.config)
    assert set(headers) == {"m.weight", "m.bias"}
    found = headers["m.weight"]
    assert (found.shape, found.dtype) == (shape, "F32")
    same(found.read(), packed.matrix)
    for box in (
        (slice(1, 7),),
        (slice(3, 4), slice(5, 20)),
        (slice(0, 0),),
        (slice(5, None), slice(-3, None)),
    ):
        same(found.read(box), packed.matrix[box])


@pytest.mark.parametrize("shape", [(7, 5), (1, 33), (17, 9)])
@pytest.mark.parametrize(
    "name", ["fp8 blocks", "fp8 rows", "nf4 nested", "fp4", "compressed int4", "compressed w8a8"]
)
def test_matrices_that_fill_no_whole_block(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    packed = PACKERS[name](*shape)
    found = decoded(tmp_path, packed.tensors, packed.config)["m.weight"]
    same(found.read(), packed.matrix)
    same(found.read((slice(2, 5),)), packed.matrix[2:5])


def model(
    kind: str, pack: Callable[..., Packed]
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """A config, the stored tensors of a model whose matrices are packed, and what they stand for."""
    config = MODELS[kind]
    arch = family_of(config).from_config(config)
    reads = plan_reads(arch, family_of(config), {})
    plain = grid.tensors({n: disk_shape(t[0].key, arch.sizes()) for n, t in reads.items()}, kind)
    packed, quantised = dict(plain), {}
    for seed, name in enumerate(plain):
        if "_proj.weight" in name:
            made = pack(*plain[name].shape, seed)
            stem = name.removesuffix(".weight")
            plain[name], quantised = made.matrix, dict(made.config)
            del packed[name]
            packed |= {stem + end: np.ascontiguousarray(value) for end, value in made.tensors.items()}
    return {**config, "quantization_config": quantised}, packed, plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["fp8 blocks", "nf4 nested", "gptq by activation", "awq", "compressed int4"])
def test_a_model_is_the_one_of_its_decoded_matrices(name: str, kind: str, dtype: str, tmp_path: Path) -> None:
    config, packed, plain = model(kind, PACKERS[name])
    folder = grid.write_folder(tmp_path, config, packed)
    lm, want = jmi_models.load(folder, dtype=dtype), put_together(MODELS[kind], plain, dtype)
    assert lm.arch == want.arch
    tolerance = 1e-2 if dtype == "bfloat16" else 1e-6
    wide = [jax.tree.map(lambda x: np.asarray(x, np.float32), each.params) for each in (lm, want)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7), *wide)
    report = jmi_models.inspect(folder)
    assert report.supported, str(report)
    matrices = sum("_proj.weight" in key for key in plain)
    assert str(report.storage).endswith(f": {matrices} matrices")
    assert "stored as:" in str(report)


def test_saved_again_a_quantised_model_is_whole(tmp_path: Path) -> None:
    config, packed, _ = model("llama", PACKERS["gptq"])
    lm = jmi_models.load(grid.write_folder(tmp_path / "a", config, packed))
    jmi_models.save(tmp_path / "b", lm.arch, lm.params, config)
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert_same(jmi_models.load(tmp_path / "b").params, lm.params)


def test_an_adapter_is_merged_into_quantised_weights(tmp_path: Path) -> None:
    config, packed, plain = model("llama", PACKERS["nf4 nested"])
    folder = grid.write_folder(tmp_path, config, packed)
    module = "model.layers.0.self_attn.q_proj"
    a, b = np.ones((1, 32), np.float32), np.ones((32, 1), np.float32)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}))
    held = {f"base_model.model.{module}.lora_{x}.weight": value for x, value in (("A", a), ("B", b))}
    save_file(held, folder / "adapter_model.safetensors")
    plain[f"{module}.weight"] = plain[f"{module}.weight"] + 2
    with pytest.warns(UserWarning, match="merged into 1 matrices"):
        got = jmi_models.load(folder).params
    want = put_together(MODELS["llama"], plain).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), got, want)


@pytest.mark.parametrize("name", PACKERS)
def test_of_rows_no_more_is_read_than_they_need(name: str, tmp_path: Path) -> None:
    packed = PACKERS[name](64, 64)
    save_file(
        {f"m{end}": np.ascontiguousarray(value) for end, value in packed.tensors.items()},
        tmp_path / "x.safetensors",
    )
    most: list[int] = []

    def watched(header: Stored) -> Stored:
        def read(box: Any = None) -> np.ndarray:
            found = header.read(box)
            most.append(found.nbytes)
            return found

        return dataclasses.replace(header, read=read)

    headers = {key: watched(value) for key, value in read_safetensors(tmp_path / "x.safetensors").items()}
    found = unquantised({"quantization_config": packed.config}, headers).headers["m.weight"]
    most.clear()
    found.read((slice(8, 16),))
    numbers = max(value.nbytes for value in packed.tensors.values())
    # Bytes of bitsandbytes are mapped whole and touched in part.
    assert sum(most) <= (1.6 * numbers if "4" in name and "compressed" not in name else 0.6 * numbers + 2048)
