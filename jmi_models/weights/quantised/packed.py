"""GPTQ and AWQ: whole numbers packed into int32, inputs first, with a scale and a zero point for each group.

A weight is ``scale * (number - zero)``, its group told by the place of its input, or by ``g_idx`` where
inputs were taken in the order of their activations (``desc_act``). GPTQ (arXiv:2210.17323) packs along the
inputs, the first lowest, and stores zero points less one (format ``gptq``) or as they are (``gptq_v2``). AWQ
(arXiv:2306.00978) packs eight outputs, in the order 0 2 4 6 1 3 5 7 from the lowest four bits on.
"""

import functools

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk.tensors import Stored
from jmi_models.weights.quantised.layout import (
    Config,
    Layout,
    Method,
    Parts,
    by_rows,
    check,
    floats,
    group_size,
    matrix_shape,
    only,
    refused,
    unpacked,
)

_AWQ = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
"""Output of eight -> the four bits that hold it."""

_SCALES = ("F16", "BF16", "F32")


def _read_gptq(bits: int, size: int, less_one: bool, parts: Parts) -> Stored:
    packed = parts[".qweight"]
    words_of, outputs = matrix_shape(packed, "its numbers")
    each = 32 // bits
    inputs = words_of * each
    groups = _check(parts, packed, inputs, outputs, size, outputs // each)
    order = parts.get(".g_idx")
    if order is not None:
        check(order, "its g_idx", (inputs,), "I32", "I64")

    def decode(start: int, stop: int) -> np.ndarray:
        numbers = unpacked(packed.read((slice(None), slice(start, stop))), bits, 0)
        first = start // each
        zeros = unpacked(parts[".qzeros"].read((slice(None), slice(first, -(-stop // each)))), bits, 1)
        zeros = zeros[:, start - first * each : stop - first * each]
        if less_one and (zeros == 2**bits - 1).any():
            raise CheckpointError(
                f"{packed.file.name}: a zero point is 0 or {2**bits}: readers of the format 'gptq' do not "
                "agree which; store the model in the format 'gptq_v2'"
            )
        of = np.arange(inputs) // (size or inputs) if order is None else np.asarray(order.read())
        if len(of) and not 0 <= of.min() <= of.max() < groups:
            raise CheckpointError(f"{packed.file.name}: g_idx names a group that is not there, of {groups}")
        return _weights(numbers, zeros.astype(np.float32) + less_one, parts, (start, stop), of)

    return by_rows(packed, (outputs, inputs), decode)


def _read_awq(size: int, parts: Parts) -> Stored:
    packed = parts[".qweight"]
    inputs, words_of = matrix_shape(packed, "its numbers")
    _check(parts, packed, inputs, words_of * 8, size, words_of)

    def numbers(stored: Stored, start: int, stop: int) -> np.ndarray:
        first = start // 8
        held = unpacked(stored.read((slice(None), slice(first, -(-stop // 8)))), 4, 1)
        ordered = held.reshape(len(held), held.shape[1] // 8, 8)[..., _AWQ].reshape(held.shape)
        return ordered[:, start - first * 8 : stop - first * 8]

    def decode(start: int, stop: int) -> np.ndarray:
        zeros = numbers(parts[".qzeros"], start, stop).astype(np.float32)
        of = np.arange(inputs) // (size or inputs)
        return _weights(numbers(packed, start, stop), zeros, parts, (start, stop), of)

    return by_rows(packed, (words_of * 8, inputs), decode)


def _check(parts: Parts, packed: Stored, inputs: int, outputs: int, size: int, words_of: int) -> int:
    """The number of groups of the inputs; CheckpointError where the parts do not fit each other."""
    groups = -(-inputs // size) if size else 1
    check(packed, "its numbers", packed.shape, "I32")
    check(parts[".qzeros"], "its zero points", (groups, words_of), "I32")
    check(parts[".scales"], "its scales", (groups, outputs), *_SCALES)
    return groups


def _weights(
    numbers: np.ndarray, zeros: np.ndarray, parts: Parts, rows: tuple[int, int], of: np.ndarray
) -> np.ndarray:
    """``[outputs, inputs]`` from numbers ``[inputs, outputs]`` and zero points ``[groups, outputs]``."""
    scales = floats(parts[".scales"].read((slice(None), slice(*rows))))
    values = numbers.astype(np.float32)
    values -= zeros[of]
    values *= scales[of]
    return values.T


def _gptq(config: Config) -> tuple[Layout, ...]:
    bits = only(config, "bits", 4, 2, 8)
    layout = only(config, "checkpoint_format", "gptq", "gptq_v2")
    only(config, "is_marlin_format", False)
    if config.get("dynamic"):
        raise refused(config, "'dynamic' gives modules bits of their own")
    read = functools.partial(_read_gptq, bits, group_size(config, 128), layout == "gptq")
    # Without it, a matrix whose inputs were taken by activation would be read with the scales of others.
    order = (".g_idx",) if config.get("desc_act") else ()
    return (Layout(".qweight", ".weight", read, (".qzeros", ".scales", *order), (".g_idx",)),)


def _awq(config: Config) -> tuple[Layout, ...]:
    only(config, "bits", 4)
    only(
        {**config, "version": str(config.get("version") or config.get("format") or "gemm").lower()},
        "version",
        "gemm",
    )
    only(config, "zero_point", True)
    read = functools.partial(_read_awq, group_size(config, 128))
    return (Layout(".qweight", ".weight", read, (".qzeros", ".scales")),)


def _told(name: str, config: Config) -> str:
    size = group_size(config, 128)
    groups = f"groups of {size}" if size else "one group"
    order = ", inputs by activation" if config.get("desc_act") else ""
    return f"{name}, {config.get('bits', 4)} bits in {groups}{order}"


METHODS = {
    "gptq": Method(_gptq, functools.partial(_told, "GPTQ")),
    "awq": Method(_awq, functools.partial(_told, "AWQ")),
}
