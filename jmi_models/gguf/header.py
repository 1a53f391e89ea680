"""The header of a GGUF file: metadata, and where each tensor lies. No tensor is read.

Everything a file says of itself is checked against its size before memory is taken for it. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, printable
from jmi_models.gguf import kinds

MAGIC = b"GGUF"
_MOST_HEADER = 256 << 20  # bytes; the metadata of a vocabulary of 262,144 words takes 10 MiB
_MOST_AXES = 4
_LONGEST_NAME = 1 << 10

_NUMBERS = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"},
    **{6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"},
}
"""Type of a value -> as numpy spells it; 8 is a text and 9 an array."""
_TEXT, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
      shape: outermost axis first, as numpy has it (the file has the innermost first).
      kind: how its values are stored.
      start: its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: kinds.Kind
    start: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
      file: where it lies.
      metadata: by key; arrays of numbers are numpy arrays, arrays of texts lists.
      tensors: by name.
    """

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]


def is_gguf(file: Path) -> bool:
    """Whether ``file`` begins as a GGUF file does, whatever its name (Ollama's have none)."""
    try:
        with file.open("rb") as raw:
            return raw.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(file: Path) -> Header:
    """The header of ``file``.

    Raises:
      CheckpointError: it is no GGUF file that is whole, or says what cannot be.
    """
    try:
        with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _parsed(file, _Cursor(view))
    except (OSError, ValueError) as error:
        reason = printable(error, 300)
    raise CheckpointError(f"{printable(file.name)}: not a readable GGUF file ({reason}); download it again")


class _Cursor:
    """Reads values one after the other, none beyond the end of the file; ValueError where that is asked."""

    def __init__(self, view: mmap.mmap):
        self.view, self.size, self.at = view, len(view), 0

    def take(self, n_bytes: int) -> int:
        """Where the next so many bytes begin; afterwards they are read."""
        start, self.at = self.at, self.at + n_bytes
        if self.at > self.size:
            raise ValueError(f"it ends at byte {self.size}, in the middle of its header")
        if self.at > _MOST_HEADER:
            raise ValueError(f"its header is larger than {_MOST_HEADER >> 20} MiB")
        return start

    def number(self, spelt: str) -> Any:
        size = struct.calcsize(spelt)
        return struct.unpack_from(spelt, self.view, self.take(size))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that take at least so many bytes each."""
        count = self.number("<Q")
        if count * least_bytes > self.size - self.at:
            raise ValueError(f"it says that it has {count} {what}, more than fit into it")
        return int(count)

    def text(self) -> str:
        length = self.count("characters in a text", 1)
        start = self.take(length)
        return self.view[start : start + length].decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        found = np.frombuffer(self.view, self._dtype(kind), 1, self.take(self._dtype(kind).itemsize))
        return found[0].item()

    def _array(self) -> Any:
        kind = self.number("<I")
        if kind == _ARRAY:
            raise ValueError("an array of arrays in its metadata")
        if kind == _TEXT:
            return self._texts(self.count("texts in an array", 8))
        dtype = self._dtype(kind)
        count = self.count("numbers in an array", dtype.itemsize)
        return np.frombuffer(self.view, dtype, count, self.take(count * dtype.itemsize)).copy()

    def _texts(self, count: int) -> list[str]:
        """Vocabularies have hundreds of thousands: the same as `text`, without a call for each."""
        found, view, at, end = [], self.view, self.at, min(self.size, _MOST_HEADER)
        for _ in range(count):
            start = at + _LENGTH.size
            if start > end:
                break
            at = start + _LENGTH.unpack_from(view, at)[0]
            if at > end:
                break
            found.append(view[start:at].decode("utf-8", "surrogateescape"))
        self.take(at - self.at)  # which says what is wrong where the loop was left
        return found

    def _dtype(self, kind: int) -> np.dtype:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}, which is unknown")
        return np.dtype(_NUMBERS[kind])


def _parsed(file: Path, cursor: _Cursor) -> Header:
    if cursor.view[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    cursor.take(len(MAGIC))
    version = cursor.number("<I")
    if version not in (2, 3):
        big = version and version % (1 << 16) == 0
        raise ValueError("it is big-endian" if big else f"version {version}; 2 and 3 are read")
    n_tensors, n_values = cursor.count("tensors", 24), cursor.count("values", 12)
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"its metadata has {key!r} twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    entries: dict[str, tuple[tuple[int, ...], kinds.Kind, int]] = {}
    for _ in range(n_tensors):
        name = cursor.text()
        if name in entries or len(name) > _LONGEST_NAME:
            raise ValueError(f"its tensor {name[:60]!r} is there twice, or has too long a name")
        entries[name] = _entry(name, cursor)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise ValueError(f"general.alignment is {alignment!r}")
    first = -(-cursor.at // alignment) * alignment
    return Header(file, metadata, {name: _placed(name, *e, first, cursor) for name, e in entries.items()})


def _entry(name: str, cursor: _Cursor) -> tuple[tuple[int, ...], kinds.Kind, int]:
    n_axes = cursor.number("<I")
    if n_axes > _MOST_AXES:
        raise ValueError(f"{name!r} has {n_axes} axes")
    shape = tuple(reversed([int(cursor.number("<Q")) for _ in range(n_axes)]))
    kind = kinds.kind_of(cursor.number("<I"))
    if kind is None or 0 in shape or (shape and shape[-1] % kind.block):
        raise ValueError(f"{name!r} has a shape or a quantisation that cannot be: {list(shape)}")
    return shape, kind, int(cursor.number("<Q"))


def _placed(
    name: str, shape: tuple[int, ...], kind: kinds.Kind, offset: int, first: int, cursor: _Cursor
) -> Entry:
    n_bytes = math.prod(shape) // kind.block * kind.n_bytes
    if first + offset + n_bytes > cursor.size:
        raise ValueError(f"{name!r} lies beyond the end of the file, which is cut short or damaged")
    return Entry(shape, kind, first + offset)
