"""Legacy PyTorch checkpoints (``pytorch_model.bin``, ``.pth``) as numpy, without torch and without trust.

Such a file is a zip archive of raw bytes, one entry per storage, and of one pickle saying which tensors
lie where. The pickle is a program; `weights.pickle_machine` runs it without running any code in it.

Source: ``torch.save`` and ``torch._utils`` of PyTorch 2.13; the format is the same since 1.6.
"""

import dataclasses
import functools
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.mapped import NUMPY, mapped, reach
from jmi_models.weights.pickle_machine import Tensor, described, run

_LARGEST_PICKLE = 16 << 20  # 60 000 tensors; one byte of it can take 70 of memory
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """Where one tensor lies. Two names of one tensor have equal ones.

    Attributes:
      file: the checkpoint.
      shape: of the tensor.
      dtype: as safetensors spells it: "F32", "BF16", "I64", ...
      start: byte of the file at which the element of index 0 begins.
      strides: elements, not bytes, from one index of each axis to the next.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    strides: tuple[int, ...]


def read_headers(file: Path) -> dict[str, PickledTensor]:
    """Name -> `PickledTensor` of every tensor in a checkpoint of ``torch.save``; reads no tensor data.

    Raises:
      CheckpointError: naming ``file``: missing, not such a checkpoint, damaged, of another byte order, a
        pickle that asks for more than a state dict needs, values other than tensors, or tensors that
        reach beyond their storage.
    """
    return _opened(
        file, lambda archive, value: {k: _locate(file, k, x, archive) for k, x in _flat(value).items()}
    )


def read_nested(file: Path) -> Any:
    """All that such a file holds, its tensors as `PickledTensor`: dicts, lists and scalars in each other.

    Raises:
      CheckpointError: as `read_headers`, but that it need be no flat dict; it nests deeper than 8.
    """
    return _opened(file, lambda archive, value: _within(file, value, archive, "", 8))


def _opened(file: Path, read: Callable[["_Archive", Any], Any]) -> Any:
    """What ``read`` makes of a checkpoint and of what its pickle describes."""
    try:
        with file.open("rb") as raw:
            archive = _Archive(raw)
            return read(archive, run(archive.read("data.pkl", _LARGEST_PICKLE)))
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{file.name}: {error}") from None


def _within(file: Path, value: Any, archive: "_Archive", name: str, levels: int) -> Any:
    if type(value) is Tensor:
        return _locate(file, name, value, archive)
    if type(value) not in (dict, list, tuple):
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise CheckpointError(
            f"{words.name(name)} is {described(value)}; only tensors and plain values are read"
        )
    if not levels:
        raise CheckpointError(f"{words.name(name)} is nested too deeply; save its tensors in one dict")
    inner = functools.partial(_within, file, archive=archive, levels=levels - 1)
    if type(value) is dict:
        return {key: inner(each, name=f"{name}{key}"[:99]) for key, each in value.items()}
    return [inner(each, name=f"{name}[{i}]"[:99]) for i, each in enumerate(value)]


def read_tensor(tensor: PickledTensor, box: tuple[slice, ...] | None = None) -> np.ndarray:
    """The values of one tensor, or of a box of it (one slice for each axis).

    C-contiguous, in memory of its own and with no more than that.

    Raises:
      CheckpointError: the file is gone or has shrunk, or the tensor is larger than memory.
    """
    try:
        # Mapped rather than read: one column of a matrix reaches across all of it.
        view = mapped(tensor.file, tensor.start, tensor.shape, NUMPY[tensor.dtype], tensor.strides)
        return np.array(view[box or ...], order="C")
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{tensor.file.name}: the tensor of {list(tensor.shape)} cannot be read ({error})"
        ) from None


class _Archive:
    """The zip around a checkpoint. Entries are looked up by name and read where they lie, as stored."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.size = raw, raw.seek(0, 2)
        try:
            with zipfile.ZipFile(raw) as archive:
                entries = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            raise CheckpointError(self._instead_of_zip()) from None
        roots = [name[:-9] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(
                f"a zip archive, but not of torch.save: it has {len(roots)} data.pkl, not one"
            )
        # Archives hold one folder, named after the file that was written.
        self.entries = {name.removeprefix(f"{roots[0]}/"): info for name, info in entries.items()}
        if "constants.pkl" in self.entries:
            raise CheckpointError("a TorchScript program; save its state_dict() instead")
        order = self.read("byteorder", 16) if "byteorder" in self.entries else b"little"
        if order != b"little":
            raise CheckpointError(f"byte order {order.decode('ascii', 'replace')}: only little can be read")

    def _instead_of_zip(self) -> str:
        self.raw.seek(0)
        head = self.raw.read(512)
        if head[:4] == b"PK\x03\x04":
            return "the zip archive is truncated or damaged; download it again"
        if head[:1] == b"\x80" or head[257:262] == b"ustar":
            return (
                "the format of PyTorch before 1.6, which is not a zip archive; convert it: "
                "load it with torch and save its state dict again, best as safetensors"
            )
        return "not a zip archive, which torch.save writes; download it again"

    def read(self, name: str, limit: int) -> bytes:
        """A small entry."""
        start, size = self.find(name)
        if size > limit:
            raise CheckpointError(f"{name} has {size} bytes, more than the {limit} one may have; refused")
        self.raw.seek(start)
        data = self.raw.read(size)
        # Told to compute no checksums, torch.save writes zeros.
        if self.entries[name].CRC not in (0, zlib.crc32(data)):
            raise CheckpointError(f"{name} is damaged (wrong checksum); download the file again")
        return data

    def find(self, name: str) -> tuple[int, int]:
        """Where in the file an entry begins, and its bytes."""
        if name not in self.entries:
            raise CheckpointError(f"{name!r} is missing from the archive; download the file again")
        info = self.entries[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(f"{name!r} is compressed or encrypted; torch.save never does that")
        start = stored_at(self.raw, info)
        if start is None or start + info.file_size > self.size:
            raise CheckpointError(f"{name!r} is not where the archive says; download the file again")
        return start, info.file_size


def stored_at(raw: BinaryIO, info: zipfile.ZipInfo) -> int | None:
    """The byte at which the data of an entry of a zip archive begins, or None where no entry begins there."""
    # The header in front of the data has a name and an extra field of lengths of its own.
    raw.seek(max(info.header_offset, 0))
    header = raw.read(30)
    if info.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04":
        return None
    return info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))


def _locate(file: Path, name: str, tensor: Tensor, archive: _Archive) -> PickledTensor:
    storage, item = tensor.storage, NUMPY[tensor.dtype].itemsize
    start, size = archive.find(f"data/{storage.key}")
    said = storage.numel * NUMPY[storage.dtype].itemsize
    if size != said:
        raise CheckpointError(f"{name!r}: its storage has {size} bytes, but data.pkl says {said}")
    if (tensor.offset + reach(tensor.shape, tensor.strides)) * item > size:
        raise CheckpointError(
            f"{name!r}: shape {list(tensor.shape)} with strides {list(tensor.strides)} from {tensor.offset} "
            f"reaches beyond its storage of {size // item} elements"
        )
    return PickledTensor(file, tensor.shape, tensor.dtype, start + tensor.offset * item, tensor.strides)


def _flat(value: Any) -> dict[str, Tensor]:
    """``value``, which must be a flat state dict."""
    if type(value) is not dict:
        raise CheckpointError(f"holds {described(value)}, not a state dict")
    others = [name for name in value if type(name) is not str or type(value[name]) is not Tensor]
    if not others:
        return value
    shown = ", ".join(f"{name!r}: {described(value[name])}" for name in others[:_SHOWN])
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    inner = [
        name for name in others if type(value[name]) is dict and Tensor in map(type, value[name].values())
    ]
    fix = f"; save its tensors alone: torch.save(torch.load(path)[{inner[0]!r}], path)" if inner else ""
    raise CheckpointError(f"not a flat state dict of tensors, it holds {{{shown}{more}}}{fix}")
