"""Files that ``torch.load`` reads, written without torch: arrays, numbers and texts in dicts and lists.

Only what is needed for plain data is written; ``torch.load(..., weights_only=True)`` takes it.

Source: ``torch.save`` of PyTorch 2.13.
"""

import pickle  # the names of its opcodes; nothing is pickled with it
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import ArgumentError

_STORAGES = {
    "float64": b"DoubleStorage",
    "float32": b"FloatStorage",
    "float16": b"HalfStorage",
    "bfloat16": b"BFloat16Storage",
}


def write_torch(file: Path, value: Any) -> None:
    """Write ``value``: dicts with names or whole numbers as keys, lists, numbers, texts, None and arrays.

    Raises:
      ArgumentError: something else in it.
    """
    arrays: list[np.ndarray] = []
    program = pickle.PROTO + b"\x02" + _said(value, arrays) + pickle.STOP
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", program), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", data)
        for i, array in enumerate(arrays):
            archive.writestr(f"archive/data/{i}", array.astype(array.dtype.newbyteorder("<")).tobytes())


def _said(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The program that makes ``value``; its arrays are added to ``arrays``."""
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int) and -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(_said(v, arrays) for v in value) + pickle.APPENDS
    if isinstance(value, Mapping):
        pairs = (_said(key, arrays) + _said(each, arrays) for key, each in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + b"".join(pairs) + pickle.SETITEMS
    if isinstance(value, np.ndarray) and value.dtype.name in _STORAGES:
        arrays.append(np.ascontiguousarray(value))
        return _tensor(arrays[-1], str(len(arrays) - 1))
    raise ArgumentError(f"a {type(value).__name__} cannot be written into a file of torch")


def _tensor(array: np.ndarray, key: str) -> bytes:
    """A call of torch's that makes a tensor of a storage of its own."""
    kind = pickle.GLOBAL + b"torch\n" + _STORAGES[array.dtype.name] + b"\n"
    storage = _tuple(_said("storage", []), kind, _said(key, []), _said("cpu", []), _said(array.size, []))
    steps = [stride // array.itemsize for stride in array.strides]
    sizes = [_tuple(*(_said(int(n), []) for n in each)) for each in (array.shape, steps)]
    hooks = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    held = storage + pickle.BINPERSID
    made = _tuple(held, _said(0, []), *sizes, pickle.NEWFALSE, hooks)
    return pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + made + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
