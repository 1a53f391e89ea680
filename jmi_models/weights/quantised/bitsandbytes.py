"""bitsandbytes: NF4 and FP4 in blocks, their scales quantised once more or not, and INT8 by rows (LLM.int8).

In four bits (arXiv:2305.14314) a matrix lies row after row in blocks of equal length. A value is an entry of
a table of sixteen times the largest absolute value of its block, two values per byte, the earlier in the high
four bits. Nested, those largest values are bytes themselves: an entry of a table of 256 times the largest of
their own block, plus an offset. In eight bits (arXiv:2208.07339) a value is ``number * SCB / 127`` with one
``SCB`` for each row.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.weights.quantised.layout import (
    Config,
    Layout,
    Method,
    Parts,
    by_rows,
    check,
    floats,
    matrix_shape,
)

_STATE = ".quant_state.bitsandbytes__"
_NESTED = (".nested_absmax", ".nested_quant_map")
_LONGEST_STATE = 10_000
_CODES = np.stack([np.arange(256) >> 4, np.arange(256) & 15], axis=-1)
"""Byte -> its two codes."""


def _read_4bit(kind: str, parts: Parts) -> Stored:
    state = _state(parts[_STATE + kind])
    rows, columns = _whole_numbers(state, "shape", 2)
    (block,) = _whole_numbers(state, "blocksize", 1)
    numbers, blocks = rows * columns, -(-rows * columns // block)
    packed = parts[""]
    if _bytes(packed) != -(-numbers // 2):
        raise CheckpointError(
            f"its {_bytes(packed)} bytes do not hold a matrix [{rows}, {columns}] of four bits"
        )
    check(parts[".quant_map"], "its table", (16,), "F32")
    nested = _NESTED[0] in parts
    check(parts[".absmax"], "its scales", (blocks,), "U8" if nested else "F32")
    if nested:
        (outer,) = _whole_numbers(state, "nested_blocksize", 1)
        check(parts[_NESTED[0]], "the scales of its scales", (-(-blocks // outer),), "F32")
        check(parts[_NESTED[1]], "the table of its scales", (256,), "F32")
        offset = state.get("nested_offset", 0.0)
        if isinstance(offset, bool) or not isinstance(offset, (int, float)):
            raise CheckpointError(f"nested_offset is {words.value(offset)}, not a number")

    def scales(first: int, last: int) -> np.ndarray:
        found = parts[".absmax"].read((slice(first, last),))
        if not nested:
            return floats(found)
        scale = floats(parts[_NESTED[0]].read())[np.arange(first, last) // outer]
        return floats(parts[_NESTED[1]].read())[found] * scale + np.float32(offset)

    def decode(start: int, stop: int) -> np.ndarray:
        # From a whole byte and the beginning of a block on; what is before is cut off again.
        first, end = start * columns, stop * columns
        low = first - first % 2
        held = _flat(packed)[low // 2 : -(-end // 2)]
        pairs = floats(parts[".quant_map"].read())[_CODES]
        values = pairs[held].reshape(-1)[first - low : end - low]
        before = first // block
        values *= np.repeat(scales(before, -(-end // block)), block)[first - before * block :][: len(values)]
        return values.reshape(stop - start, columns)

    return by_rows(packed, (rows, columns), decode)


def _state(stored: Stored) -> Mapping[str, Any]:
    """What is said of a matrix, JSON in a tensor of bytes."""
    try:
        if stored.dtype != "U8" or len(stored.shape) != 1 or stored.shape[0] > _LONGEST_STATE:
            raise ValueError
        state = json.loads(bytes(stored.read()))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, Mapping):
        raise CheckpointError("its quant_state is not a JSON object")
    return state


def _whole_numbers(state: Mapping[str, Any], field: str, count: int) -> tuple[int, ...]:
    given = state.get(field)
    values = tuple(given) if isinstance(given, list) else (given,)
    valid = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**31 for n in values)
    if len(values) != count or not valid:
        raise CheckpointError(
            f"its quant_state has {field}={words.value(given)}, expected {count} whole numbers"
        )
    return values


def _flat(packed: Stored) -> np.ndarray:
    """The bytes of a tensor, which may have been stored in another dtype, without reading them."""
    return packed.read().reshape(-1).view(np.uint8)


def _bytes(packed: Stored) -> int:
    sizes = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
    return int(np.prod(packed.shape, dtype=np.int64)) * sizes.get(packed.dtype, 0)


def _read_8bit(parts: Parts) -> Stored:
    weight, scale = parts[".weight"], parts[".SCB"]
    rows, columns = matrix_shape(weight, "its numbers")
    check(weight, "its numbers", (rows, columns), "I8")
    check(scale, "its scales", (rows,), "F32", "F16", "BF16")
    order = parts.get(".weight_format")
    if order is not None and (order.dtype not in ("U8", "I64") or np.any(order.read() != 0)):
        raise CheckpointError("its numbers are not in rows: weight_format is not 0")

    def decode(start: int, stop: int) -> np.ndarray:
        factor = floats(scale.read((slice(start, stop),))) / np.float32(127)
        return floats(weight.read((slice(start, stop),))) * factor[:, None]

    return by_rows(weight, (rows, columns), decode)


def _layouts(config: Config) -> tuple[Layout, ...]:
    four = (
        Layout(_STATE + kind, "", functools.partial(_read_4bit, kind), ("", ".absmax", ".quant_map"), _NESTED)
        for kind in ("nf4", "fp4")
    )
    return (*four, Layout(".SCB", ".weight", _read_8bit, (".weight",), (".weight_format",)))


def _told(config: Config) -> str:
    if not config.get("load_in_4bit", config.get("_load_in_4bit")):
        return "bitsandbytes, 8 bits by rows"
    nested = ", scales quantised too" if config.get("bnb_4bit_use_double_quant") else ""
    return f"bitsandbytes, 4 bits ({words.name(config.get('bnb_4bit_quant_type', 'fp4'))}){nested}"


METHODS = {"bitsandbytes": Method(_layouts, _told)}
