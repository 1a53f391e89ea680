"""Casting copies of host arrays in any order of axes, as fast as memory allows and with little of it."""

import numpy as np

_STRIP = 512 << 10  # bytes; strips stay in a core's cache
_LINE = 64  # bytes of a line of the cache


def cast_into(out: np.ndarray, values: np.ndarray) -> bool:
    """Copy ``values`` into ``out``, cast to its dtype; whether everything is finite there.

    Rounds as numpy does, to nearest and ties to even; what is too large becomes infinite.

    Args:
      out, values: of one shape; any strides.
    """
    # Axes in the order in which the values lie: each of them is read once, in sequence.
    order = sorted(range(values.ndim), key=lambda axis: -abs(values.strides[axis]))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return _by_strips(out.transpose(order), values.transpose(order))


def _by_strips(out: np.ndarray, values: np.ndarray) -> bool:
    if values.nbytes <= _STRIP or values.size == 1:
        return _strip(out, values)
    if len(values) == 1:
        return _by_strips(out[0], values[0])
    rows, finite = max(1, len(values) * _STRIP // values.nbytes), True
    for i in range(0, len(values), rows):
        finite &= _by_strips(out[i : i + rows], values[i : i + rows])
    return finite


def _strip(out: np.ndarray, values: np.ndarray) -> bool:
    """By way of rows a line longer: those of a power of two would push each other out of the cache."""
    *rows, length = values.shape or (1,)
    held = np.empty((*rows, length + _LINE // out.itemsize), out.dtype)[..., :length]
    held[...] = values
    finite = _finite(held)
    out[...] = held.reshape(values.shape)
    return finite


def _finite(values: np.ndarray) -> bool:
    """By the bits of the exponent, all of them set in what is not: ``np.isfinite`` is slow in bfloat16."""
    exponent = np.array(np.inf, values.dtype).view(f"u{values.itemsize}")
    return values.size == 0 or (values.view(exponent.dtype) & exponent).max() != exponent
