"""MXFP4, as gpt-oss checkpoints store their experts, decoded exactly.

The format is OCP Microscaling (MX) v1.0: 32 values share one scale. A value is four bits, e2m1 (sign,
two bits of exponent, one of fraction: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives); the scale is one
byte, e8m0: ``2 ** (byte - 127)``, and 255 is NaN. On disk a matrix is two uint8 tensors,
``<name>_blocks`` with two values per byte, the earlier in the low four bits, and ``<name>_scales``.
"""

import functools

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk.tensors import Box, Stored
from jmi_models.weights.quantised.layout import Layout, Method, Parts

BLOCK = 32  # values per scale
_BYTES = BLOCK // 2

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_HALF, *(-value for value in _HALF)], np.float32)
_BYTE = np.arange(256)
_PAIRS = np.stack([_VALUES[_BYTE & 15], _VALUES[_BYTE >> 4]], axis=-1)
"""Byte -> its two values."""

_POWERS = np.append(np.ldexp(np.float32(1), _BYTE[:255] - 127), np.float32(np.nan))


def decoded_shape(blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what `decode` returns, from the shapes of the two stored tensors alone.

    Raises:
      CheckpointError: the shapes do not belong together.
    """
    if not scales or blocks != (*scales, _BYTES):
        raise CheckpointError(
            f"MXFP4 blocks {list(blocks)} do not fit scales {list(scales)}: expected blocks of "
            f"[..., groups, {_BYTES}] and scales of [..., groups], all other axes equal"
        )
    return (*scales[:-1], scales[-1] * BLOCK)


def decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weights that ``blocks`` and ``scales`` stand for, in float32.

    float32 holds every value exactly, subnormal ones too, except those from ``2 ** 128`` on (scale bytes 253
    and 254), which become infinite; so does bfloat16.

    Args:
      blocks: uint8 ``[..., groups, 16]``.
      scales: uint8 ``[..., groups]``.

    Returns:
      float32 ``[..., groups * 32]``. The axes stay in the order of the disk, output before input.
    """
    shape = decoded_shape(blocks.shape, scales.shape)
    values = _PAIRS[blocks]
    with np.errstate(over="ignore"):
        values *= _POWERS[scales][..., None, None]
    return values.reshape(shape)


def _read(parts: Parts) -> Stored:
    blocks, scales = parts["_blocks"], parts["_scales"]
    shape = decoded_shape(blocks.shape, scales.shape)
    if len(shape) < 2:
        raise CheckpointError(f"MXFP4 scales {list(scales.shape)} are not those of a matrix")
    for name, stored in (("blocks", blocks), ("scales", scales)):
        if stored.dtype != "U8":
            raise CheckpointError(f"its {name} are {stored.dtype}; MXFP4 is stored as U8")
    read = functools.partial(_read_box, blocks, scales)
    return Stored(blocks.file, (*shape[:-2], shape[-1], shape[-2]), "F32", read)


def _read_box(blocks: Stored, scales: Stored, box: Box | None = None) -> np.ndarray:
    # Blocks run along the input axis, which the matrix has first: of a box all inputs are decoded, and cut.
    axes = len(scales.shape)
    *outer, inputs, outputs = (*(box or ()), *(slice(None),) * (axes - len(box or ())))
    decoded = decode(*(stored.read((*outer, outputs)) for stored in (blocks, scales)))
    return decoded.swapaxes(-1, -2)[(..., inputs, slice(None))]


METHODS = {
    "mxfp4": Method(
        lambda config: (Layout("_blocks", "", _read, ("_scales",)),), lambda config: "MXFP4 in blocks of 32"
    )
}
