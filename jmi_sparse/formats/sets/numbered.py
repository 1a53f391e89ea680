"""Files of one layer each, and arrays that are filled from them one layer at a time."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.bounds import MOST_LAYERS
from jmi_models.weights.casting import cast_into


def numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """The files ``<prefix><layer>.safetensors`` of a folder, by layer, in order.

    Raises:
      CheckpointError: a number that is no layer, or is written as another one might be (``01``).
    """
    found = {}
    for digits, file in _files(folder, prefix):
        if len(digits) > 5 or digits != str(int(digits)) or int(digits) >= MOST_LAYERS:
            raise CheckpointError(f"{words.name(file.name)}: {words.name(digits)} is no number of a layer")
        found[int(digits)] = file
    return dict(sorted(found.items()))


def is_numbered(folder: Path, prefix: str) -> bool:
    """Whether a folder has a file that looks like one of these."""
    return any(_files(folder, prefix))


def _files(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.safetensors", re.ASCII)
    for file in folder.iterdir() if folder.is_dir() else ():
        match = pattern.fullmatch(file.name)
        if match:
            yield match[1], file


def gaps(found: Iterable[int], count: int, prefix: str) -> list[str]:
    """What files of layers 0 to ``count - 1`` are missing, and what are there besides."""
    have, want = set(found), set(range(count))
    problems = []
    for fault, layers in (("missing", want - have), ("surplus", have - want)):
        if layers:
            problems.append(
                f"{fault}: {words.some([f'{prefix}{layer}.safetensors' for layer in sorted(layers)])}"
            )
    return problems


@dataclasses.dataclass
class Stacks:
    """Arrays with a row for each layer or pair of layers, each filled and cast from a file.

    Attributes:
      arrays: by name; their dtype is what values are cast to.
      bad: what was not finite there. A threshold may be infinite.
    """

    arrays: dict[str, np.ndarray]
    bad: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> "Stacks":
        """Arrays of some shapes, not yet filled."""
        return cls({name: np.empty(shape, dtype) for name, shape in shapes.items()})

    def put(self, name: str, row: int, values: np.ndarray, where: str) -> None:
        """Fill one row."""
        held = self.arrays[name][row]
        if not cast_into(held, values) and (name != "threshold" or np.isnan(held).any()):
            self.bad.append(where)

    def filled(self) -> dict[str, Any]:
        """All arrays; CheckpointError where not all numbers are finite."""
        if self.bad:
            dtype = next(iter(self.arrays.values())).dtype
            raise CheckpointError(
                f"not all numbers are finite in {dtype}: {words.some(self.bad)}; load them in another dtype, "
                "or download the file again"
            )
        return self.arrays
