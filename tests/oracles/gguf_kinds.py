"""What ggml itself reads in blocks of every quantisation: ``tests/data/gguf/kinds.npz``.

Run by hand with a built llama.cpp: ``python -m tests.oracles.gguf_kinds build/bin/libggml-base.so``. The
blocks are random bytes, of which those are kept that ggml reads as finite numbers.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np

FILE = Path(__file__).parents[1] / "data" / "gguf" / "kinds.npz"
VALUES = 256


def recorded(library: ctypes.CDLL) -> dict[str, np.ndarray]:
    """``<kind>/bytes`` uint8 and ``<kind>/values`` float32 of every kind that both can read."""
    found = {}
    for kind, (block, n_bytes) in gguf.GGML_QUANT_SIZES.items():
        read = getattr(library, f"dequantize_row_{_spelt(kind.name)}", None)
        if read is None or kind.name.endswith("8_K"):
            continue
        for seed in range(10_000):
            raw = np.random.default_rng(seed).integers(0, 256, (VALUES // block) * n_bytes).astype(np.uint8)
            values = np.empty(VALUES, np.float32)
            read(
                raw.ctypes.data_as(ctypes.c_void_p),
                values.ctypes.data_as(ctypes.c_void_p),
                ctypes.c_int64(VALUES),
            )
            if np.isfinite(values).all() and 1e-6 < np.abs(values).max() < 1e6:
                break
        found |= {f"{kind.name}/bytes": raw, f"{kind.name}/values": values}
    return found


def _spelt(name: str) -> str:
    """As in ggml's functions: ``q4_K``, ``iq2_xxs``, ``mxfp4``."""
    return name.lower().replace("_k", "_K")


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(FILE, **recorded(ctypes.CDLL(sys.argv[1])))
    print(f"{FILE.stat().st_size} bytes")
