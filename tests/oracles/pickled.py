"""A small file of torch.save, committed so that a run without torch reads what torch really writes.

``python -m tests.oracles.pickled`` (with torch) writes ``tests/data/pickled_state_dict.pth``. What it
holds follows from `expected` by numpy alone.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FILE = Path(__file__).parent.parent / "data" / "pickled_state_dict.pth"

# Name in torch -> (name in safetensors, in numpy); the values 0, 1, 2, ... 11 are exact in all of them.
DTYPES: dict[str, tuple[str, Any]] = {
    "bool": ("BOOL", np.bool_),
    "uint8": ("U8", np.uint8),
    "int8": ("I8", np.int8),
    "int16": ("I16", np.int16),
    "int32": ("I32", np.int32),
    "int64": ("I64", np.int64),
    "uint16": ("U16", np.uint16),
    "uint32": ("U32", np.uint32),
    "uint64": ("U64", np.uint64),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
    "float32": ("F32", np.float32),
    "float64": ("F64", np.float64),
    "complex64": ("C64", np.complex64),
    "float8_e4m3fn": ("F8_E4M3", ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("F8_E5M2", ml_dtypes.float8_e5m2),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
}


def expected() -> dict[str, np.ndarray]:
    """Name -> values of every tensor in `FILE`."""
    count = np.arange(12, dtype=np.float32)
    values = {name: count.astype(dtype).reshape(3, 4) for name, (_, dtype) in DTYPES.items()}
    square = values["float32"]
    return values | {
        "transposed": square.T,
        "column": square[:, 1],
        "strided": square[1:, ::2],
        "expanded": np.broadcast_to(square[:, :1], (3, 5)),
        "scalar": square[2, 3],
        "empty": square[:0],
        "parameter": square * 2,
        "tied": square * 2,
    }


def build(torch: Any) -> dict[str, Any]:
    """The same as tensors of ``torch``, with views that share one storage."""
    count = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {name: count.to(getattr(torch, name)) for name in DTYPES}
    square = tensors["float32"]
    parameter = torch.nn.Parameter(square * 2)
    return tensors | {
        "transposed": square.T,
        "column": square[:, 1],
        "strided": square[1:, ::2],
        "expanded": square[:, :1].expand(3, 5),
        "scalar": square[2, 3],
        "empty": square[:0],
        "parameter": parameter,
        "tied": parameter,
    }


def main() -> None:
    """Write the committed file."""
    import torch

    torch.save(build(torch), FILE)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
