"""Matrices packed in few bits, value by value, as the papers and formats say: each packer gives the stored
tensors, the ``quantization_config``, and the matrix that they stand for."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jmi_models.disk.tensors import Stored
from jmi_models.weights.quantised.methods import unquantised
from jmi_models.weights.stored import read_safetensors


@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed matrix.

    Attributes:
      config: ``quantization_config``.
      tensors: end of the name -> tensor, ``.weight`` of the matrix itself.
      matrix: float32 ``[outputs, inputs]``.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    matrix: np.ndarray


def _rng(seed: int, outputs: int, inputs: int) -> np.random.Generator:
    return np.random.default_rng([seed, outputs, inputs])


def _scales(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.01, 0.05, shape).astype(np.float32)


def _to_int32(values: list[int], bits: int) -> np.int32:
    """Numbers of ``bits`` bits in one word, the first in its lowest bits."""
    word = sum(int(value) << (bits * place) for place, value in enumerate(values))
    return np.array(word, np.uint32).view(np.int32)[()]


def fp8(outputs: int, inputs: int, seed: int = 0, *, block: tuple[int, int] = (16, 8)) -> Packed:
    rng = _rng(seed, outputs, inputs)
    numbers = rng.normal(0, 50, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    high, wide = block
    scales = _scales(rng, -(-outputs // high), -(-inputs // wide))
    matrix = np.empty((outputs, inputs), np.float32)
    for i in range(outputs):
        for j in range(inputs):
            matrix[i, j] = np.float32(numbers[i, j]) * scales[i // high, j // wide]
    config = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    return Packed(config, {".weight": numbers, ".weight_scale_inv": scales}, matrix)


def fp8_static(outputs: int, inputs: int, seed: int = 0, *, rows: bool = False) -> Packed:
    rng = _rng(seed, outputs, inputs)
    numbers = rng.normal(0, 50, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    scales = _scales(rng, outputs, 1) if rows else _scales(rng)[()].reshape(())
    config = {"quant_method": "fbgemm_fp8" if rows else "fp8", "activation_scheme": "static"}
    held = {".weight": numbers, ".weight_scale": np.asarray(scales), ".input_scale": np.float32(0.5)[None]}
    return Packed(config, held, numbers.astype(np.float32) * scales)


NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)


def bitsandbytes_4bit(
    outputs: int, inputs: int, seed: int = 0, *, nested: bool = True, kind: str = "nf4", block: int = 64
) -> Packed:
    rng = _rng(seed, outputs, inputs)
    count = outputs * inputs
    codes = rng.integers(0, 16, count + count % 2)
    codes[count:] = 0
    packed = np.array([codes[i] << 4 | codes[i + 1] for i in range(0, len(codes), 2)], np.uint8)[:, None]
    blocks, outer = -(-count // block), 4
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
    state["shape"] = [outputs, inputs]
    table = np.array(NF4, np.float32)
    if nested:
        inner = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        bytes_of, tops = rng.integers(0, 256, blocks).astype(np.uint8), _scales(rng, -(-blocks // outer))
        state |= {"nested_blocksize": outer, "nested_dtype": "float32", "nested_offset": 0.04}
        scales = [inner[bytes_of[b]] * tops[b // outer] + np.float32(0.04) for b in range(blocks)]
        held = {".weight.absmax": bytes_of, ".weight.nested_absmax": tops, ".weight.nested_quant_map": inner}
    else:
        scales = list(_scales(rng, blocks))
        held = {".weight.absmax": np.array(scales, np.float32)}
    flat = np.array([table[codes[n]] * scales[n // block] for n in range(count)], np.float32)
    held |= {
        ".weight": packed,
        ".weight.quant_map": table,
        f".weight.quant_state.bitsandbytes__{kind}": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    config = {
        **{"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind},
        "bnb_4bit_use_double_quant": nested,
    }
    return Packed(config, held, flat.reshape(outputs, inputs))


def bitsandbytes_8bit(outputs: int, inputs: int, seed: int = 0) -> Packed:
    rng = _rng(seed, outputs, inputs)
    numbers = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    tops = _scales(rng, outputs) * 50
    held = {".weight": numbers, ".SCB": tops, ".weight_format": np.zeros((), np.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return Packed(config, held, numbers.astype(np.float32) * (tops / np.float32(127))[:, None])


def gptq(
    outputs: int,
    inputs: int,
    seed: int = 0,
    *,
    bits: int = 4,
    size: int = 16,
    version: str = "gptq",
    by_activation: bool = False,
) -> Packed:
    rng = _rng(seed, outputs, inputs)
    each, groups = 32 // bits, -(-inputs // size) if size > 0 else 1
    numbers = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(1, 2**bits, (groups, outputs))
    scales = _scales(rng, groups, outputs).astype(np.float16)
    order = np.arange(inputs) // (size if size > 0 else inputs)
    if by_activation:
        order = rng.permutation(order)
    stored = zeros - 1 if version == "gptq" else zeros
    qweight = np.array(
        [
            [_to_int32([numbers[i + k, o] for k in range(each)], bits) for o in range(outputs)]
            for i in range(0, inputs, each)
        ]
    )
    qzeros = np.array(
        [
            [_to_int32([stored[g, o + k] for k in range(each)], bits) for o in range(0, outputs, each)]
            for g in range(groups)
        ]
    )
    matrix = np.empty((outputs, inputs), np.float32)
    for i in range(inputs):
        for o in range(outputs):
            g = order[i]
            matrix[o, i] = np.float32(scales[g, o]) * np.float32(numbers[i, o] - zeros[g, o])
    config = {
        **{"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": by_activation},
        "checkpoint_format": version,
    }
    held = {".qweight": qweight, ".qzeros": qzeros, ".scales": scales, ".g_idx": order.astype(np.int32)}
    return Packed(config, held, matrix)


def awq(outputs: int, inputs: int, seed: int = 0, *, size: int = 16) -> Packed:
    rng = _rng(seed, outputs, inputs)
    groups = inputs // size
    numbers, zeros = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs))
    scales = _scales(rng, groups, outputs).astype(np.float16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(values: np.ndarray) -> np.ndarray:
        return np.array(
            [[_to_int32([row[o + k] for k in order], 4) for o in range(0, len(row), 8)] for row in values]
        )

    matrix = np.array(
        [
            [
                np.float32(scales[i // size, o]) * np.float32(numbers[i, o] - zeros[i // size, o])
                for i in range(inputs)
            ]
            for o in range(outputs)
        ],
        np.float32,
    )
    config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    return Packed(config, {".qweight": pack(numbers), ".qzeros": pack(zeros), ".scales": scales}, matrix)


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {
        **{"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"},
        "config_groups": {"group_0": group},
    }


def pack_quantized(
    outputs: int,
    inputs: int,
    seed: int = 0,
    *,
    bits: int = 4,
    size: int = 8,
    symmetric: bool = True,
    by_activation: bool = False,
) -> Packed:
    rng = _rng(seed, outputs, inputs)
    each, half, groups = 32 // bits, 2 ** (bits - 1), -(-inputs // size)
    numbers = rng.integers(-half, half, (outputs, inputs))
    zeros = rng.integers(-half, half, (outputs, groups)) * (not symmetric)
    scales = _scales(rng, outputs, groups)
    order = np.arange(inputs) // size
    if by_activation:
        order = rng.permutation(order)

    def pack(row: np.ndarray) -> list[np.int32]:
        padded = [*(row + half), *[0] * (-len(row) % each)]
        return [_to_int32(padded[n : n + each], bits) for n in range(0, len(padded), each)]

    matrix = np.empty((outputs, inputs), np.float32)
    for o in range(outputs):
        for i in range(inputs):
            g = order[i]
            matrix[o, i] = np.float32(numbers[o, i] - zeros[o, g]) * scales[o, g]
    held = {
        ".weight_packed": np.array([pack(row) for row in numbers]),
        ".weight_scale": scales,
        ".weight_shape": np.array([outputs, inputs], np.int64),
    }
    if not symmetric:
        held[".weight_zero_point"] = np.ascontiguousarray(np.array([pack(column) for column in zeros.T]).T)
    if by_activation:
        held[".weight_g_idx"] = order.astype(np.int32)
    config = compressed(
        "pack-quantized",
        **{"num_bits": bits, "strategy": "group", "group_size": size, "symmetric": symmetric},
        actorder="group" if by_activation else None,
    )
    return Packed(config, held, matrix)


def int_quantized(outputs: int, inputs: int, seed: int = 0) -> Packed:
    rng = _rng(seed, outputs, inputs)
    numbers = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    zeros, scales = rng.integers(-5, 6, (outputs, 1)).astype(np.int8), _scales(rng, outputs, 1)
    held = {".weight": numbers, ".weight_scale": scales, ".weight_zero_point": zeros}
    matrix = (numbers.astype(np.float32) - zeros.astype(np.float32)) * scales
    config = compressed("int-quantized", num_bits=8, strategy="channel", symmetric=False)
    return Packed(config, held, matrix)


def float_quantized(outputs: int, inputs: int, seed: int = 0) -> Packed:
    rng = _rng(seed, outputs, inputs)
    numbers = rng.normal(0, 50, (outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    scales = _scales(rng, outputs, 1).astype(ml_dtypes.bfloat16)
    matrix = numbers.astype(np.float32) * scales.astype(np.float32)
    config = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
    return Packed(config, {".weight": numbers, ".weight_scale": scales}, matrix)


PACKERS: Mapping[str, Callable[..., Packed]] = {
    "fp8 blocks": fp8,
    "fp8 whole": fp8_static,
    "fp8 rows": lambda *given: fp8_static(*given, rows=True),
    "nf4 nested": bitsandbytes_4bit,
    "fp4": lambda *given: bitsandbytes_4bit(*given, nested=False, kind="fp4", block=32),
    "bitsandbytes int8": bitsandbytes_8bit,
    "gptq": gptq,
    "gptq 8 bits": lambda *given: gptq(*given, bits=8, size=32),
    "gptq 2 bits": lambda *given: gptq(*given, bits=2),
    "gptq v2, one group": lambda *given: gptq(*given, version="gptq_v2", size=-1),
    "gptq by activation": lambda *given: gptq(*given, by_activation=True),
    "awq": awq,
    "compressed int4": pack_quantized,
    "compressed int4 with zeros": lambda *given: pack_quantized(*given, symmetric=False),
    "compressed int8 by activation": lambda *given: pack_quantized(*given, bits=8, by_activation=True),
    "compressed w8a8": int_quantized,
    "compressed fp8": float_quantized,
}


def decoded(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Stored]:
    """What jmi makes of a matrix ``m`` and what stands beside it, written to a file in ``folder``."""
    held = {f"m{end}": np.ascontiguousarray(value) for end, value in tensors.items()}
    save_file(held, folder / "x.safetensors")
    headers = read_safetensors(folder / "x.safetensors")
    return dict(unquantised({"quantization_config": config}, headers).headers)
