"""Tensors of a file: headers first, compared with what a dictionary needs, then read and cast."""

from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.weights.casting import cast_into
from jmi_models.weights.stored import read_safetensors

FLOATS = ("F64", "F32", "F16", "BF16")


def misfits(headers: dict[str, Stored], wanted: dict[str, tuple[int, ...]]) -> list[str]:
    """What in a file is missing, surplus, of another shape, or no real number."""
    problems = []
    for fault, names in (("missing", set(wanted) - set(headers)), ("surplus", set(headers) - set(wanted))):
        if names:
            problems.append(f"{fault}: {words.some(sorted(names))}")
    for name in sorted(set(wanted) & set(headers)):
        found = headers[name]
        if found.shape != wanted[name]:
            problems.append(f"{name} has shape {list(found.shape)}, not {list(wanted[name])}")
        if found.dtype not in FLOATS:
            problems.append(f"{name} is {words.name(found.dtype)}, not a float of 16, 32 or 64 bits")
    return problems


def cast(arrays: dict[str, np.ndarray], dtype: Any, file: str) -> dict[str, np.ndarray]:
    """The arrays in ``dtype``; CheckpointError where one is not finite in it. A threshold may be infinite."""
    found, bad = {}, []
    for name, array in sorted(arrays.items()):
        held = np.empty(array.shape, dtype)
        finite = cast_into(held, array)
        if not finite and (name != "threshold" or np.isnan(held).any()):
            bad.append(name)
        found[name] = held
    if bad:
        raise CheckpointError(
            f"{file}: not all numbers are finite in {np.dtype(dtype)}: {words.some(bad)}; load them in "
            "another dtype, or download the file again"
        )
    return found


def headers(file: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name; CheckpointError where it is damaged or no regular file."""
    if not file.is_file():
        # A pipe would be read for ever.
        raise CheckpointError(f"{file.name} is missing, or no regular file; put the file itself there")
    return read_safetensors(file)
