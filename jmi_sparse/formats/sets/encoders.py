"""The encoder of one layer of a cross-layer transcoder, as a dictionary by itself."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jmi_sparse.dictionaries.activations import JumpReLU, ReLU
from jmi_sparse.dictionaries.dictionary import Dictionary


def only(
    arrays: Mapping[str, Any], row: int, layer: int, hook_in: str | None, hook_out: str | None
) -> Dictionary:
    """A dictionary of row ``row`` of stacked arrays, that encodes and has no decoder rows: ``W_dec`` is
    ``[features, 0]``."""
    held = {name: array[row] for name, array in arrays.items()}
    none: Any = np.empty((held["W_enc"].shape[1], 0), held["W_enc"].dtype)
    hooks = [None if hook is None else hook.replace("*", str(layer), 1) for hook in (hook_in, hook_out)]
    return Dictionary(
        W_enc=held["W_enc"],
        W_dec=none,
        b_dec=held["b_dec"],
        activation=JumpReLU(held["threshold"]) if "threshold" in held else ReLU(),
        b_enc=held["b_enc"],
        W_skip=held.get("W_skip"),
        hook_in=hooks[0],
        hook_out=hooks[1],
        kind="transcoder",
    )
