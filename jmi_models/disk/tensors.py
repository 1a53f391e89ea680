"""A tensor in a file: what its header says, and how it is read."""

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np

Box = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint.

    Attributes:
      file: the file it lies in.
      shape: of the tensor.
      dtype: as safetensors spells it.
      read: gives it, as a read-only view of the file or in memory of its own; or a box of it, given one
        slice for each axis, or for the first ones, and then no more bytes than the box has.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: "Reading"


class HasShape(Protocol):
    """A tensor of which only the shape is asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Reading(Protocol):
    """Reads a stored tensor, or a box of it."""

    def __call__(self, box: Box | None = None) -> np.ndarray: ...
