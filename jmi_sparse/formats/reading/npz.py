"""Numpy's ``.npz`` without pickle: a zip archive of one ``.npy`` per array, known from headers first.

Source: the format of ``numpy.lib.format``, versions 1 and 2.
"""

import dataclasses
import functools
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from jmi.errors import CheckpointError, printable
from jmi_models.disk import words
from jmi_models.disk.mapped import NUMPY, contiguous, mapped
from jmi_models.disk.tensors import Box, Stored
from jmi_models.weights.pickled import stored_at

_NAMES = {dtype: name for name, dtype in NUMPY.items()}
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MOST, _LARGEST_HEADER = 100, 10_000
_RATIO, _SMALL = 50, 1 << 20
"""Weights hardly become smaller by compression: what grows this much, and is larger than this, is a trap."""

# What zipfile and numpy raise for archives that are damaged, encrypted or compressed in unknown ways.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    MemoryError,
    RuntimeError,
    SyntaxError,
)


def read_headers(file: Path) -> dict[str, Stored]:
    """Every array of an archive, by name; no data is read.

    Stored arrays are views of the file, and boxes of them read no more than they need; compressed ones are
    read whole.

    Raises:
      CheckpointError: no such archive, a damaged one, or one whose sizes do not fit each other.
    """
    try:
        with file.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(".npy") for entry in entries]
            if len(entries) > _MOST or len(set(names)) < len(names):
                raise ValueError(f"{len(entries)} arrays, or two of one name")
            return {
                name: _header(file, raw, archive, entry) for name, entry in zip(names, entries, strict=True)
            }
    except _DAMAGE as error:
        raise _damaged(file, error) from None


@dataclasses.dataclass(frozen=True)
class _Array:
    """Where one array lies in its file, and how.

    Attributes:
      entry: name in the archive.
      begins: bytes of the entry before the first number.
      fortran: the first axis varies fastest.
    """

    file: Path
    entry: str
    begins: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    def mapped(self, start: int, box: Box | None = None) -> np.ndarray:
        """The array, or a box of it, as a view of an entry whose bytes lie at ``start`` as they are."""
        strides = contiguous(self.shape[::-1])[::-1] if self.fortran else contiguous(self.shape)
        try:
            return mapped(self.file, start + self.begins, self.shape, self.dtype, strides)[box or ...]
        except (OSError, ValueError) as error:
            raise _damaged(self.file, error) from None

    def inflated(self, box: Box | None = None) -> np.ndarray:
        """The array, or a box of it, of a compressed entry."""
        try:
            with zipfile.ZipFile(self.file) as archive:
                data = archive.read(self.entry)
            flat = np.frombuffer(data, self.dtype, math.prod(self.shape), self.begins)
            return flat.reshape(self.shape, order="F" if self.fortran else "C")[box or ...]
        except _DAMAGE as error:
            raise _damaged(self.file, error) from None

    def unknown(self, box: Box | None = None) -> np.ndarray:
        """Arrays of objects among others, for which a pickle would have to be run."""
        raise CheckpointError(f"{words.name(self.file.name)}: {words.name(str(self.dtype))} cannot be read")


def _header(file: Path, raw: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Stored:
    with archive.open(entry) as member:
        shape, fortran, dtype = _described(member)
        array = _Array(file, entry.filename, member.tell(), shape, dtype, fortran)
    if dtype not in _NAMES:
        return Stored(file, shape, str(dtype), array.unknown)
    if array.begins + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes, not those of {list(shape)}")
    if entry.compress_type != zipfile.ZIP_STORED:
        if entry.file_size > max(_RATIO * entry.compress_size, _SMALL):
            raise ValueError(
                f"{entry.filename} would grow from {entry.compress_size} bytes to {entry.file_size}"
            )
        return Stored(file, shape, _NAMES[dtype], array.inflated)
    start = stored_at(raw, entry)
    if start is None or start + entry.file_size > raw.seek(0, 2):
        raise ValueError(f"{entry.filename} is not where the archive says")
    return Stored(file, shape, _NAMES[dtype], functools.partial(array.mapped, start))


def _described(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis varies fastest, and dtype; ValueError where this is no array."""
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"arrays of version {version} are not known")
    shape, fortran, dtype = _HEADERS[version](member, max_header_size=_LARGEST_HEADER)
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {list(shape)}")
    return tuple(map(int, shape)), bool(fortran), dtype


def _damaged(file: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{words.name(file.name)}: not a readable .npz ({printable(error)}); download it again"
    )
