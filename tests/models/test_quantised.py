"""Weights in few bits are read as the numbers they stand for: each layout, whole, in parts and in models."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jmi_models
from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk.layout import disk_shape
from jmi_models.disk.tensors import Stored
from jmi_models.families import family_of
from jmi_models.weights.checkpoint import plan_reads
from jmi_models.weights.quantised.methods import METHODS, unquantised
from jmi_models.weights.stored import read_safetensors
from tests.oracles import grid
from tests.support import packers
from tests.support.checkpoints import assert_same, fails
from tests.support.committed import put_together
from tests.support.packers import PACKERS, Packed

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "llama": {**grid.GRID["llama/longrope_beyond"], **SIZES, "rope_scaling": None, "head_dim": 8},
    # Several parameters are parts of one packed matrix.
    "phi3": {**grid.GRID["phi3/longrope_beyond"], **SIZES, "rope_scaling": None},
}


def stored(folder: Path, held: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Stored]:
    save_file(
        {f"m{end}": np.ascontiguousarray(value) for end, value in held.items()}, folder / "x.safetensors"
    )
    headers = read_safetensors(folder / "x.safetensors")
    return dict(unquantised({"quantization_config": config}, headers).headers)


def same(got: Any, want: Any) -> None:
    """Equal up to the order of one or two roundings in float32."""
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("shape", [(32, 64), (48, 96), (16, 32)])
@pytest.mark.parametrize("name", PACKERS)
def test_a_matrix_is_what_its_packer_put_there_whole_and_in_parts(
    name: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    packed = PACKERS[name](*shape)
    headers = stored(tmp_path, {**packed.tensors, ".bias": np.zeros(3, np.float32)}, packed.config)
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
    found = stored(tmp_path, packed.tensors, packed.config)["m.weight"]
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


# What is refused.


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
    (packers._config("pack-quantized", num_bits=3, strategy="channel"), "num_bits=3"),
    (packers._config("pack-quantized", num_bits=4, strategy="block"), "strategy='block'"),
    (
        packers._config("pack-quantized", num_bits=4, strategy="channel", type="float"),
        "packed numbers is 'float'",
    ),
    (packers._config("int-quantized", num_bits=4, strategy="channel"), "num_bits=4, only 8"),
    (packers._config("float-quantized", num_bits=8, strategy="block", type="float"), "block_structure=None"),
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
        stored(tmp_path, held, packed.config)["m.weight"].read()
    assert str(caught.value).startswith(("m.weight: ", "x.safetensors: "))


def test_a_part_that_is_missing_is_told_with_all_other_problems(tmp_path: Path) -> None:
    config, packed, _ = model("llama", PACKERS["gptq"])
    module = "model.layers.0.self_attn.q_proj"
    del packed[f"{module}.scales"], packed["model.norm.weight"]
    message = fails(grid.write_folder(tmp_path, config, packed))
    for line in (f"missing: {module}.weight", f"surplus: {module}.qweight", "missing: model.norm.weight"):
        assert line in message


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


# Live.


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(kind: str, nested: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="the live comparison needs bitsandbytes"
    )
    torch.manual_seed(0)
    for shape in ((96, 300), (33, 64)):
        given = torch.randn(*shape)
        packed, said = functional.quantize_4bit(
            given, quant_type=kind, compress_statistics=nested, blocksize=64
        )
        want = functional.dequantize_4bit(packed, said).numpy()
        held = {f".weight.{key}": value.numpy() for key, value in said.as_dict(packed=True).items()}
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        found = stored(tmp_path, {".weight": packed.numpy(), **held}, config)["m.weight"]
        np.testing.assert_allclose(found.read(), want, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.read((slice(5, 9),)), want[5:9], rtol=0, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_eight_bits_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    functional = pytest.importorskip(
        "bitsandbytes.functional", reason="the live comparison needs bitsandbytes"
    )
    torch.manual_seed(0)
    numbers, tops, _ = functional.int8_vectorwise_quant(torch.randn(24, 40).half())
    want = functional.int8_vectorwise_dequant(numbers, tops).numpy()
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found = stored(tmp_path, {".weight": numbers.numpy(), ".SCB": tops.float().numpy()}, config)["m.weight"]
    np.testing.assert_allclose(found.read(), want, rtol=1e-6, atol=1e-7)


SCHEMES: Mapping[str, dict[str, Any]] = {
    "pack-quantized": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16},
    "pack-quantized, zeros": {
        **{"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False},
    },
    "pack-quantized, eight": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int-quantized": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "int-quantized, zeros": {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False},
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "float-quantized, block": {
        **{"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 8]},
    },
    "naive-quantized": {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 16},
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_decompresses_to_the_same(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    pytest.importorskip("compressed_tensors", reason="the live comparison needs compressed-tensors")
    base = importlib.import_module("compressed_tensors.compressors.base")
    importlib.import_module("compressed_tensors.compressors")
    quantization = importlib.import_module("compressed_tensors.quantization")
    layout, arguments = name.split(",")[0], SCHEMES[name]
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**arguments)
    )
    torch.manual_seed(0)
    rows, columns = 32, 64
    high, wide = {
        "group": (1, 16),
        "channel": (1, columns),
        "tensor": (rows, columns),
        "block": (16, 8),
    }[arguments["strategy"]]
    scales = torch.rand(rows // high, columns // wide) * 0.05 + 0.01
    held = {"weight": torch.randn(rows, columns), "weight_scale": scales}
    if arguments.get("symmetric") is False:
        held["weight_zero_point"] = torch.randint(-4, 5, scales.shape, dtype=torch.int8)
    compressor = base.BaseCompressor.get_value_from_registry(layout)
    packed = compressor.compress(held, scheme)
    want = compressor.decompress(packed, scheme)["weight"].float().numpy()
    config = {
        **{"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"},
        "config_groups": {"group_0": {"weights": arguments}},
    }
    tensors = {f"m.{key}": value.contiguous() for key, value in packed.items()}
    importlib.import_module("safetensors.torch").save_file(tensors, tmp_path / "x.safetensors")
    headers = read_safetensors(tmp_path / "x.safetensors")
    found = unquantised({"quantization_config": config}, headers).headers["m.weight"]
    np.testing.assert_allclose(found.read(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_fp8_blocks_are_those_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    oracle = pytest.importorskip("transformers.integrations.finegrained_fp8", reason="it needs transformers")
    torch.manual_seed(0)
    numbers, scales = (torch.randn(256, 384) * 100).to(torch.float8_e4m3fn), torch.rand(2, 3) * 0.01
    want = oracle.Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.float32).numpy()
    tensors = {"m.weight": numbers, "m.weight_scale_inv": scales}
    importlib.import_module("safetensors.torch").save_file(tensors, tmp_path / "x.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    found = unquantised(config, read_safetensors(tmp_path / "x.safetensors")).headers["m.weight"]
    np.testing.assert_array_equal(found.read(), want)
