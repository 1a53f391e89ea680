"""Quantised weights against the code of those who make them, live."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import read_safetensors
from tests.support import packers
from tests.support.packers import decoded


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
        found = decoded(tmp_path, {".weight": packed.numpy(), **held}, config)["m.weight"]
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
    found = decoded(tmp_path, {".weight": numbers.numpy(), ".SCB": tops.float().numpy()}, config)["m.weight"]
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


def alone(package: str, file: str) -> Any:
    """A module of a package that is not imported as a whole: newer transformers stop it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the live comparison needs {package}")
    path = Path(spec.submodule_search_locations[0]) / file
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_is_what_autogptq_packs_and_computes(bits: int, by_activation: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    oracle = alone("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py")
    torch.manual_seed(0)
    size, inputs, outputs = 32, 96, 64
    linear = torch.nn.Linear(inputs, outputs, bias=False)
    groups, top = inputs // size, 2**bits
    order = torch.arange(inputs, dtype=torch.int32) // size
    order = order[torch.randperm(inputs)] if by_activation else order
    zeros = torch.randint(1, top, (outputs, groups)).float()
    scales = torch.rand(outputs, groups) * 0.05 + 0.01
    numbers = torch.randint(0, top, (outputs, inputs)).float()
    linear.weight.data = scales[:, order.long()] * (numbers - zeros[:, order.long()])
    packed = oracle.QuantLinear(bits, size, inputs, outputs, False, weight_dtype=torch.float32)
    packed.pack(linear, scales, zeros.clone(), order)
    with torch.no_grad():
        want = packed(torch.eye(inputs)).T.numpy()
    np.testing.assert_allclose(want, linear.weight.detach().numpy(), atol=1e-6)
    held = {f".{name}": getattr(packed, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": by_activation}
    found = decoded(tmp_path, held, config)["m.weight"]
    np.testing.assert_allclose(found.read(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_awq_is_what_autoawq_dequantises(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the live oracle needs torch")
    oracle = alone("awq", "utils/packing_utils.py")
    packed = packers.awq(48, 64, size=32)
    parts = [torch.from_numpy(packed.tensors[name].copy()) for name in (".qweight", ".qzeros", ".scales")]
    want = oracle.dequantize_gemm(*parts[:2], parts[2].float(), 4, 32).T.numpy()
    found = decoded(tmp_path, packed.tensors, packed.config)["m.weight"]
    np.testing.assert_allclose(found.read(), want, rtol=1e-6, atol=1e-7)
