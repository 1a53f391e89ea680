"""How GGUF files store the values of a tensor, and how they are read back.

The tables of bits are those of the ``gguf`` package, which llama.cpp's authors keep beside its own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jmi.errors import CheckpointError

_PLAIN: Mapping[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}
"""Kinds that numpy has itself."""

_PIECE = 1 << 17  # values that are unpacked at a time: what is made on the way stays in the cache


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to store values: ``block`` of them, next to each other in a row, in ``n_bytes``."""

    name: str
    block: int
    n_bytes: int

    @property
    def plain(self) -> np.dtype | None:
        """Its dtype, where values are stored as they are."""
        return _PLAIN.get(self.name)


@functools.cache
def _package() -> Any:
    """The ``gguf`` package."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise CheckpointError("GGUF files need the package gguf: pip install 'jmi[gguf]'") from None
    return gguf


@functools.cache
def _kinds() -> Mapping[int, Kind]:
    gguf = _package()
    return {int(kind): Kind(kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}


def kind_of(number: int) -> Kind | None:
    """The kind of this number; None where there is none."""
    return _kinds().get(number)


def name_of(file_type: Any) -> str | None:
    """What llama.cpp calls a mixture of kinds, such as ``Q4_K_M``, by the number that its files give."""
    known = {int(each): each.name for each in _package().LlamaFileType}
    return known[file_type].partition("_")[2] if isinstance(file_type, int) and file_type in known else None


def unpacked(raw: np.ndarray, kind: Kind) -> np.ndarray:
    """Values ``[..., n]`` of bytes ``[..., n / block * n_bytes]``; those of quantised kinds are float32.

    Raises:
      CheckpointError: the package has no way to read this kind.
    """
    if kind.plain is not None:
        return raw.view(kind.plain)
    gguf = _package()
    quantised = gguf.GGMLQuantizationType[kind.name]
    rows = raw.reshape(-1, kind.n_bytes)
    out = np.empty((len(rows), kind.block), np.float32)
    step = max(1, _PIECE // kind.block)
    try:
        for start in range(0, len(rows), step):
            # One row as long as the piece: the package takes sixteen rows at a time.
            piece = rows[start : start + step].reshape(1, -1)
            out[start : start + step] = gguf.quants.dequantize(piece, quantised).reshape(-1, kind.block)
    except NotImplementedError:
        raise CheckpointError(f"quantisation {kind.name} cannot be read back by the package gguf") from None
    return out.reshape(*raw.shape[:-1], raw.shape[-1] // kind.n_bytes * kind.block)
