"""Quantised weights that are not read, or are damaged: one clear error each, which names what it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmi_models
from jmi.errors import CheckpointError, ConfigError
from jmi_models.weights.quantised.methods import METHODS, unquantised
from tests.models.test_quantised import MODELS, model
from tests.oracles import grid
from tests.support import packers
from tests.support.checkpoints import fails
from tests.support.packers import PACKERS, decoded

REFUSED: tuple[tuple[Any, str], ...] = (
    ({"quant_method": "hqq"}, "quantised with 'hqq' are not supported, only mxfp4, fp8"),
    ({"quant_method": ["gptq"]}, "quantised with .*gptq.* are not supported"),
    ({"bits": 4}, "'unknown'"),
    ("gptq", "quantised with 'gptq' are not supported, only"),
    ({"quant_method": "gptq", "bits": 3}, "bits=3, only 4 or 2 or 8"),
    ({"quant_method": "gptq", "bits": True}, "bits=True, only"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
    ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format=True"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"x": {"bits": 8}}}, "bits of their own"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size=0"),
    ({"quant_method": "gptq", "bits": 4, "group_size": "x"}, "group_size='x'"),
    ({"quant_method": "awq", "version": "gemv"}, "version='gemv', only 'gemm'"),
    ({"quant_method": "awq", "bits": 8}, "bits=8, only 4"),
    ({"quant_method": "awq", "zero_point": False}, "zero_point=False"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size=\[128\]"),
    ({"quant_method": "fp8", "weight_block_size": "x"}, "weight_block_size='x'"),
    ({"quant_method": "fp8", "fmt": "e3m4"}, "fmt='e3m4'"),
    ({"quant_method": "compressed-tensors"}, "'config_groups' must be an object"),
    ({**packers.pack_quantized(8, 8).config, "format": "nvfp4-pack-quantized"}, "format='nvfp4-pack"),
    (
        {**packers.pack_quantized(8, 8).config, "quantization_status": "frozen"},
        "quantization_status='frozen'",
    ),
    ({**packers.pack_quantized(8, 8).config, "sparsity_config": {"format": "sparse-24"}}, "sparsity_config"),
    ({**packers.pack_quantized(8, 8).config, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
    ({**packers.pack_quantized(8, 8).config, "transform_config": {"R1": {}}}, "transform_config"),
    (packers.compressed("pack-quantized", num_bits=3, strategy="channel"), "num_bits=3"),
    (packers.compressed("pack-quantized", num_bits=4, strategy="block"), "strategy='block'"),
    (
        packers.compressed("pack-quantized", num_bits=4, strategy="channel", type="float"),
        "packed numbers is 'float'",
    ),
    (packers.compressed("int-quantized", num_bits=4, strategy="channel"), "num_bits=4, only 8"),
    (
        packers.compressed("float-quantized", num_bits=8, strategy="block", type="float"),
        "block_structure=None",
    ),
)


@pytest.mark.parametrize("which", range(len(REFUSED)))
def test_other_methods_and_variants_are_refused_by_name(which: int, tmp_path: Path) -> None:
    given, words = REFUSED[which]
    config, packed, _ = model("llama", PACKERS["gptq"])
    folder = grid.write_folder(tmp_path, {**config, "quantization_config": given}, packed)
    with pytest.raises(ConfigError, match=words):
        jmi_models.load(folder)
    assert not jmi_models.inspect(folder).supported


def test_groups_of_modules_that_are_stored_in_different_ways_are_refused() -> None:
    config = packers.pack_quantized(8, 8).config
    other = {"weights": {**config["config_groups"]["group_0"]["weights"], "num_bits": 8}}
    both = {**config, "config_groups": {**config["config_groups"], "group_1": other}}
    with pytest.raises(ConfigError, match="stored in different ways"):
        unquantised({"quantization_config": both}, {})


def test_a_config_without_such_tensors_is_refused_and_the_fix_is_named(tmp_path: Path) -> None:
    plain = model("llama", PACKERS["gptq"])[2]
    for method, given in (("gptq", {"bits": 4}), ("fp8", {}), ("bitsandbytes", {"load_in_8bit": True})):
        config = {**MODELS["llama"], "quantization_config": {"quant_method": method, **given}}
        message = fails(grid.write_folder(tmp_path / method, config, plain))
        assert (
            "no tensor is stored so; if they are in full precision, take quantization_config out" in message
        )


DAMAGED: tuple[tuple[str, Callable[[dict[str, np.ndarray]], Any], str], ...] = (
    ("gptq", lambda t: {".qzeros": t[".qzeros"][:1]}, r"its zero points are \[1, 4\], expected \[4, 4\]"),
    ("gptq", lambda t: {".scales": t[".scales"][:, :3].copy()}, "its scales are"),
    ("gptq", lambda t: {".qweight": t[".qweight"].astype(np.int64)}, "its numbers are I64, not I32"),
    ("gptq", lambda t: {".qweight": t[".qweight"].reshape(-1)}, "not those of a matrix"),
    ("gptq", lambda t: {".g_idx": t[".g_idx"] + 9}, "g_idx names a group that is not there"),
    ("gptq", lambda t: {".g_idx": t[".g_idx"][:3].copy()}, r"its g_idx are \[3\], expected \[64\]"),
    ("gptq", lambda t: {".qzeros": np.full_like(t[".qzeros"], -1)}, "do not agree which"),
    ("awq", lambda t: {".qzeros": t[".qzeros"][:, :2].copy()}, "its zero points are"),
    ("awq", lambda t: {".scales": t[".scales"].astype(np.int32)}, "its scales are I32"),
    (
        "fp8 blocks",
        lambda t: {".weight": t[".weight"].astype(np.float16)},
        "its numbers are F16, not F8_E4M3",
    ),
    ("fp8 blocks", lambda t: {".weight_scale_inv": t[".weight_scale_inv"][1:]}, "do not fit numbers"),
    ("fp8 rows", lambda t: {".weight_scale": np.ones((3, 3), np.float32)}, "do not fit numbers"),
    ("fp8 whole", lambda t: {".weight_scale": np.ones((), np.int32)}, "its scales are I32"),
    ("nf4 nested", lambda t: {".weight": t[".weight"][:-1].copy()}, "bytes do not hold a matrix"),
    ("nf4 nested", lambda t: {".weight.quant_map": np.ones(8, np.float32)}, "its table are"),
    ("nf4 nested", lambda t: {".weight.nested_absmax": np.ones(1, np.float32)}, "the scales of its scales"),
    (
        "nf4 nested",
        lambda t: {".weight.absmax": t[".weight.absmax"].astype(np.float32)},
        "its scales are F32",
    ),
    ("nf4 nested", lambda t: state(b"{"), "not a JSON object"),
    ("nf4 nested", lambda t: state(b"[1]"), "not a JSON object"),
    ("nf4 nested", lambda t: state(b"[" * 9000), "not a JSON object"),
    ("nf4 nested", lambda t: state(b'{"shape": [32, 64]}'), "blocksize=None"),
    ("nf4 nested", lambda t: state(b'{"shape": [32, -64], "blocksize": 64}'), "has shape="),
    ("nf4 nested", lambda t: state(b'{"shape": [32, true], "blocksize": 64}'), "has shape="),
    ("bitsandbytes int8", lambda t: {".SCB": t[".SCB"][:3].copy()}, r"its scales are \[3\]"),
    ("bitsandbytes int8", lambda t: {".weight_format": np.ones((), np.uint8)}, "weight_format is not 0"),
    ("compressed int4", lambda t: {".weight_shape": np.array([32, 999])}, "do not hold a matrix"),
    ("compressed int4", lambda t: {".weight_shape": np.array([32])}, r"its shape are \[1\]"),
    ("compressed int4", lambda t: {".weight_scale": t[".weight_scale"][:, :2].copy()}, "its scales are"),
    (
        "compressed int4 with zeros",
        lambda t: {".weight_zero_point": t[".weight_zero_point"][1:]},
        "its zero points",
    ),
    ("compressed w8a8", lambda t: {".weight_zero_point": np.zeros((2, 1), np.int8)}, "and zero points"),
    ("compressed w8a8", lambda t: {".weight": t[".weight"].astype(np.int32)}, "its numbers are I32, not I8"),
)


def state(text: bytes) -> dict[str, np.ndarray]:
    return {".weight.quant_state.bitsandbytes__nf4": np.frombuffer(text, np.uint8)}


@pytest.mark.parametrize("which", range(len(DAMAGED)))
def test_tensors_that_do_not_fit_each_other_are_named(which: int, tmp_path: Path) -> None:
    name, damage, words = DAMAGED[which]
    packed = PACKERS[name](32, 64)
    held = {**packed.tensors, **damage(dict(packed.tensors))}
    with pytest.raises(CheckpointError, match=words) as caught:
        decoded(tmp_path, held, packed.config)["m.weight"].read()
    assert str(caught.value).startswith(("m.weight: ", "x.safetensors: "))


def test_a_part_that_is_missing_is_told_with_all_other_problems(tmp_path: Path) -> None:
    config, packed, _ = model("llama", PACKERS["gptq"])
    module = "model.layers.0.self_attn.q_proj"
    del packed[f"{module}.scales"], packed["model.norm.weight"]
    message = fails(grid.write_folder(tmp_path, config, packed))
    for line in (f"missing: {module}.weight", f"surplus: {module}.qweight", "missing: model.norm.weight"):
        assert line in message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gptq by activation", ".g_idx"),
        ("compressed int8 by activation", ".weight_g_idx"),
        ("compressed int4 with zeros", ".weight_zero_point"),
        ("compressed w8a8", ".weight_zero_point"),
    ],
)
def test_a_part_that_the_config_says_there_is_must_be_there(name: str, part: str, tmp_path: Path) -> None:
    config, packed, _ = model("llama", PACKERS[name])
    module = "model.layers.0.self_attn.q_proj"
    del packed[module + part]
    message = fails(grid.write_folder(tmp_path, config, packed))
    assert f"surplus: {module}." in message


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    config, packed, _ = model("llama", PACKERS["fp8 blocks"])
    packed["model.layers.1.mlp.up_proj.weight_scale_inv"][0, 0] = np.nan
    message = fails(grid.write_folder(tmp_path, config, packed))
    assert message.endswith("as float32: model.layers.1.mlp.up_proj.weight")


def test_every_method_says_what_it_is() -> None:
    told = {
        name: METHODS[pack(16, 32).config["quant_method"]].told(pack(16, 32).config)
        for name, pack in PACKERS.items()
    }
    assert told["gptq by activation"] == "GPTQ, 4 bits in groups of 16, inputs by activation"
    assert told["nf4 nested"] == "bitsandbytes, 4 bits (nf4), scales quantised too"
    assert told["fp8 blocks"] == "FP8 in blocks of 16 x 8"
    assert told["compressed int4"] == "compressed-tensors pack-quantized, 4 bits (int) by groups of 8"
