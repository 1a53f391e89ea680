"""Arrays that lie in a file, mapped into memory rather than read: only what is touched becomes resident."""

from pathlib import Path

import ml_dtypes
import numpy as np

NUMPY = {
    "BOOL": np.dtype(np.bool_),
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""dtype as safetensors spells it -> as numpy has it."""


def mapped(
    file: Path, start: int, shape: tuple[int, ...], dtype: np.dtype, strides: tuple[int, ...]
) -> np.ndarray:
    """The array that begins at byte ``start`` of ``file``, as a read-only view of the file.

    The mapping lasts as long as the view, and its pages are the system's, not of the process alone. A file
    that shrinks meanwhile takes them away, and the system then ends the process.

    Args:
      strides: elements, not bytes, from one index of each axis to the next.

    Raises:
      OSError, ValueError: the file is gone or too short.
    """
    size = reach(shape, strides) * dtype.itemsize
    if size == 0:
        return np.empty(shape, dtype)
    data = np.memmap(file, np.uint8, "r", offset=start, shape=(size,))
    return np.ndarray(shape, dtype, data, strides=[stride * dtype.itemsize for stride in strides])


def reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first of an array to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array stored row by row."""
    strides, step = list[int](), 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
