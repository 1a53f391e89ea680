"""Narrow numbers under one scale for a whole matrix, a row, a group or a block: FP8 and INT8 weights.

A weight is the stored number, less the zero point where there is one, times its scale, also where that is
called ``weight_scale_inv`` (DeepSeek). Scales of activations, which are quantised at run time, are taken
away: what is computed is the model with these weights and full activations.
"""

import functools
from collections.abc import Sequence

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
    floats,
    matrix_shape,
    only,
    refused,
)

FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
INTEGERS = ("I8",)
_SCALES = ("F32", "BF16", "F16", "F64", "F8_E8M0")


def scaled(
    weight: Stored,
    scale: Stored,
    dtypes: Sequence[str],
    block: tuple[int, int] | None = None,
    zero: Stored | None = None,
) -> Stored:
    """The matrix whose numbers are ``weight``, each times its scale.

    Args:
      block: rows and columns that share a scale; None where the shape of the scales says it: one for all, for
        each row, or for equal groups of the columns of each row.
      zero: subtracted from the numbers, of the shape of the scales.
    """
    rows, columns = matrix_shape(weight, "its numbers")
    if weight.dtype not in dtypes:
        raise CheckpointError(f"its numbers are {weight.dtype}, not {' or '.join(dtypes)}")
    if scale.dtype not in _SCALES:
        raise CheckpointError(f"its scales are {scale.dtype}, not {' or '.join(_SCALES)}")
    grid = _grid(scale.shape, rows)
    if block is not None:
        high, wide = block
        fits = grid == (-(-rows // high), -(-columns // wide))
    else:
        # Blocks that do not fill the matrix could be of several sizes.
        high, wide = max(1, rows) // max(1, grid[0]), max(1, columns) // max(1, grid[1])
        fits = grid == (1, 1) or (grid[0] == rows and grid[1] * wide == columns)
    if not fits or (zero is not None and zero.shape != scale.shape):
        raise CheckpointError(
            f"its scales {list(scale.shape)} do not fit numbers {list(weight.shape)}"
            + (f" in blocks of {high} x {wide}" if block else "")
            + (f" and zero points {list(zero.shape)}" if zero is not None else "")
        )

    def spread(stored: Stored, start: int, stop: int) -> np.ndarray:
        values = floats(stored.read()).reshape(grid)[np.arange(start, stop) // high]
        return values if grid[1] == 1 else np.repeat(values, wide, axis=1)[:, :columns]

    def decode(start: int, stop: int) -> np.ndarray:
        numbers = floats(weight.read((slice(start, stop),)))
        if zero is not None:
            numbers -= spread(zero, start, stop)
        return numbers * spread(scale, start, stop)

    return by_rows(weight, (rows, columns), decode)


def _grid(shape: tuple[int, ...], rows: int) -> tuple[int, int]:
    """How many scales there are along the rows and along the columns."""
    if len(shape) == 2:
        return shape[0], shape[1]
    return (rows, 1) if shape == (rows,) != (1,) else (1, 1)


def _fp8(config: Config) -> tuple[Layout, ...]:
    block = config.get("weight_block_size")
    if block is not None:
        whole = isinstance(block, (list, tuple)) and len(block) == 2
        if not whole or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in block):
            raise refused(config, f"weight_block_size={words.value(block)}, only two whole numbers")
        block = tuple(block)
    only(config, "fmt", "e4m3", "e5m2")

    def read(mark: str, block: tuple[int, int] | None, parts: Parts) -> Stored:
        return scaled(parts[".weight"], parts[mark], FP8, block)

    taken = (".input_scale", ".activation_scale", ".weight_scale_ub", ".input_scale_ub")
    return (
        Layout(
            ".weight_scale_inv",
            ".weight",
            functools.partial(read, ".weight_scale_inv", block),
            (".weight",),
            taken,
        ),
        Layout(
            ".weight_scale", ".weight", functools.partial(read, ".weight_scale", None), (".weight",), taken
        ),
    )


def _told_fp8(config: Config) -> str:
    block = config.get("weight_block_size")
    return f"FP8 in blocks of {block[0]} x {block[1]}" if block else "FP8"


METHODS = {"fp8": Method(_fp8, _told_fp8), "fbgemm_fp8": Method(_fp8, _told_fp8)}
