"""Tensors of a file: headers first, compared with what a dictionary needs, then read and cast."""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError
from jmi.numerics import wide
from jmi_models.disk import words
from jmi_models.disk.mapped import NUMPY
from jmi_models.disk.tensors import Stored
from jmi_models.weights import pickled
from jmi_models.weights.casting import cast_into
from jmi_models.weights.stored import read_safetensors
from jmi_sparse.formats.reading import npz

FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE = ("I64", "I32", "I16", "I8", "U8")

_AXES = {"W_enc": "if", "W_dec": "fo", "W_skip": "oi"}
"""Axes of the fields of a dictionary that have two."""

_SIZES = {"i": "d_in", "f": "features", "o": "d_out", "g": "groups"}


@dataclasses.dataclass(frozen=True)
class Part:
    """Where one field of a dictionary lies in a file, and in which order of axes.

    Attributes:
      name: of the tensor.
      axes: a letter for each axis that the tensor has in the file: ``i`` for d_in, ``f`` for features, ``o``
        for d_out, ``g`` for a number that only this tensor has.
      optional: whether it may be missing.
      whole: whether it holds whole numbers.
    """

    name: str
    axes: str
    optional: bool = False
    whole: bool = False


def headers(file: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name; CheckpointError where it is damaged or no regular file.

    Safetensors, the ``.npz`` of numpy, and the ``.pt`` and ``.pth`` of PyTorch, of which no code is run.
    """
    if not file.is_file():
        # A pipe would be read for ever.
        raise CheckpointError(f"{file.name} is missing, or no regular file; put the file itself there")
    if file.suffix == ".npz":
        return npz.read_headers(file)
    return _pickled(file) if file.suffix in (".pt", ".pth") else read_safetensors(file)


def names(file: Path) -> frozenset[str] | None:
    """Names of the tensors of a file; None where it cannot be read."""
    try:
        return frozenset(headers(file))
    except CheckpointError:
        return None


def misfits(
    headers: Mapping[str, Stored],
    wanted: Mapping[str, tuple[int | str, ...]],
    whole: Collection[str] = (),
) -> list[str]:
    """What in a file is missing, surplus, of another shape, or no real number, or in ``whole`` no integer."""
    problems = []
    for fault, names in (("missing", set(wanted) - set(headers)), ("surplus", set(headers) - set(wanted))):
        if names:
            problems.append(f"{fault}: {words.some(sorted(names))}")
    for name in sorted(set(wanted) & set(headers)):
        found = headers[name]
        if found.shape != wanted[name]:
            shape = ", ".join(map(str, wanted[name]))
            problems.append(f"{words.name(name)} has shape {list(found.shape)}, not [{shape}]")
        if name in whole and found.dtype not in WHOLE:
            problems.append(f"{words.name(name)} is {words.name(found.dtype)}, not whole numbers")
        if name not in whole and found.dtype not in FLOATS:
            problems.append(
                f"{words.name(name)} is {words.name(found.dtype)}, not a float of 16, 32 or 64 bits"
            )
    return problems


def parts(
    file: str,
    headers: Mapping[str, Stored],
    layout: Mapping[str, Part],
    *,
    square: bool,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """The fields of a dictionary, in its own order of axes, as views of the file where they can be.

    Args:
      file: its name, for messages.
      layout: field -> where it lies; nothing else may be in the file.
      square: whether d_out must be d_in, as in an autoencoder.
      sizes: by the letters of `Part.axes`, where a config says them; others are those of the biases, or else
        of the first tensor that has them.

    Raises:
      CheckpointError: everything that is missing, surplus, of another shape or no real number, together.
    """
    known = _sizes(headers, layout, square, sizes or {})
    used = {field: part for field, part in layout.items() if part.name in headers or not part.optional}
    wanted = {part.name: tuple(known[letter] for letter in part.axes) for part in used.values()}
    problems = misfits(headers, wanted, {part.name for part in used.values() if part.whole})
    problems += [f"{_SIZES[letter]} is 0" for letter, size in known.items() if size == 0]
    if problems:
        raise CheckpointError(f"{words.name(file)}: " + "; ".join(problems))
    found = {}
    for field, part in used.items():
        array = np.asarray(headers[part.name].read())
        found[field] = array if part.axes == _AXES.get(field, part.axes) else array.T
    return found


def _sizes(
    headers: Mapping[str, Stored], layout: Mapping[str, Part], square: bool, said: Mapping[str, int]
) -> dict[str, int | str]:
    """A size for each letter, or its name where no tensor says it."""
    known: dict[str, int | str] = dict(said)

    def axes(part: Part) -> list[tuple[str, int]]:
        shape = headers[part.name].shape if part.name in headers else ()
        letters = part.axes.replace("o", "i") if square else part.axes
        return list(zip(letters, shape, strict=True)) if len(shape) == len(letters) else []

    # Vectors tell of a matrix that lies the wrong way round, and so do matrices that fit them.
    for count in (1, 2):
        alike = [axes(part) for part in layout.values() if len(part.axes) == count]
        for each in sorted(alike, key=lambda each: sum(known.get(*pair) != pair[1] for pair in each)):
            known = {**dict(each), **known}
    if square and "i" in known:
        known["o"] = known["i"]
    return _SIZES | known


def times(array: np.ndarray, factor: float, dtype: Any) -> np.ndarray:
    """A product, in the dtype that an array is loaded in or in float32."""
    held = np.dtype(wide(dtype))
    # What does not fit is told by `cast`.
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(held) * held.type(factor)


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
            f"{words.name(file)}: not all numbers are finite in {np.dtype(dtype)}: {words.some(bad)}; load "
            "them in another dtype, or download the file again"
        )
    return found


def _pickled(file: Path) -> dict[str, Stored]:
    found = {}
    for name, tensor in pickled.read_headers(file).items():
        if math.prod(tensor.shape) * NUMPY[tensor.dtype].itemsize > file.stat().st_size:
            # By strides of 0, a few bytes would fill any memory.
            raise CheckpointError(
                f"{words.name(file.name)}: {words.name(name)} is larger than its file; save it with "
                ".contiguous()"
            )
        read = functools.partial(pickled.read_tensor, tensor)
        found[name] = Stored(file, tensor.shape, tensor.dtype, read)
    return found
