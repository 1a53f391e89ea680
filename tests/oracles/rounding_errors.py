"""Measures how far torch and jmi in bfloat16 are from the float32 truth (see `tests.oracles.rounding`).

``python -m tests.oracles.rounding_errors`` (with torch and transformers) writes
``tests/data/bfloat16.json`` and ``tests/data/bfloat16.npz``.
"""

import json
from typing import Any

import numpy as np

from tests.oracles import grid, hugging_face, rounding


def errors(family: str) -> dict[str, list[float]]:
    """RMS error of logits over all tokens, of ``torch`` and ``jmi``, for each seed."""
    config, shapes = rounding.config(family), hugging_face.shapes(rounding.config(family))
    found: dict[str, list[float]] = {"torch": [], "jmi": []}
    for seed in range(rounding.SEEDS):
        tensors, tokens = rounding.tensors(family, shapes, seed), rounding.tokens(family, seed)
        truth = hugging_face.logits(config, tensors, tokens, "float32")
        theirs = hugging_face.logits(config, tensors, tokens, "bfloat16")
        found["torch"].append(rounding.rms(theirs, truth))
        found["jmi"].append(rounding.rms(rounding.of_jmi(config, tensors, tokens), truth))
    return found


def _held(family: str) -> dict[str, np.ndarray]:
    """What `rounding.truth` reads."""
    config, shapes = rounding.config(family), hugging_face.shapes(rounding.config(family))
    tensors, tokens = rounding.tensors(family, shapes, 0), rounding.tokens(family, 0)
    truth, theirs = (
        hugging_face.logits(config, tensors, tokens, dtype)[:, -1] for dtype in ("float32", "bfloat16")
    )
    return {
        f"{family}/shapes": np.array(json.dumps(shapes)),
        f"{family}/logits": truth,
        f"{family}/torch": np.array(rounding.rms(theirs, truth)),
    }


def main() -> None:
    """Measure every family, print it, and write both files."""
    table: dict[str, Any] = {"versions": hugging_face.versions()}
    for family in grid.FAMILIES:
        table[family] = {who: [round(error, 6) for error in found] for who, found in errors(family).items()}
        print(f"{family:12s} {rounding.ratio(table[family]):.3f}", table[family], flush=True)
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())
    rounding.TABLE.write_text(f"{{\n{rows}\n}}\n")
    held = [_held(family) for family in rounding.HELD]
    np.savez_compressed(rounding.TRUTH, **{key: value for each in held for key, value in each.items()})
    print(f"{rounding.TRUTH.name}: {rounding.TRUTH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
