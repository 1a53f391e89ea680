"""Files of torch.save without torch: the opcodes it writes, and the zip around them."""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float64": "torch.DoubleStorage",
    "float32": "torch.FloatStorage",
    "float16": "torch.HalfStorage",
    "bfloat16": "torch.BFloat16Storage",
    "int64": "torch.LongStorage",
    "bool": "torch.BoolStorage",
}
"""Dtype -> what torch calls its storage."""


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def sequence(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def storage(key: str, numel: int, kind: str = "torch.FloatStorage") -> bytes:
    return sequence(text("storage"), named(kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    held: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, metadata: bytes = b""
) -> bytes:
    hooks = named("collections.OrderedDict") + b")R"
    sizes, steps = sequence(*map(number, shape)), sequence(*map(number, strides))
    args = sequence(held, number(offset), sizes, steps, b"\x89", hooks, metadata)
    return named("torch._utils._rebuild_tensor_v2") + args + b"R"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def write(
    file: Path, pickled: bytes, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """The archive of one pickle and its storages (``data/<key>``)."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in {"data.pkl": pickled, **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return file


def write_state_dict(file: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """What torch.save writes of these arrays, each C- or Fortran-contiguous; one array is one storage."""
    values, entries, keys = dict[str, bytes](), dict[str, bytes](), dict[int, str]()
    for name, array in arrays.items():
        key = keys.setdefault(id(array), str(len(keys)))
        strides = tuple(stride // array.itemsize for stride in array.strides)
        values[name] = tensor(storage(key, array.size, STORAGES[array.dtype.name]), array.shape, strides)
        entries[f"data/{key}"] = array.tobytes("A")
    return write(file, program(mapping(values)), entries)


class Malice:
    """What pickle would call on loading: a command of the shell."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)
