"""Axis order on disk against axis order in memory, both as data.

A layout such as ``(n_heads d_head) d_model`` lists the axes of a stored tensor; a bracket is one
stored axis holding several, and 1 a stored axis of size one that means nothing. Linear layers are
stored output axis first and kept input axis first.

Some checkpoints fuse several parameters into one tensor. Then the square bracket of the layout,
``[n_heads d_head] d_model``, is only a part of its stored axis, and `Fused` says which part.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np

from jmi_models.params import Param

Sizes = Mapping[str, int]
Array = TypeVar("Array", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Fused:
    """How one stored axis holds several parameters: ``groups`` times, each of ``parts`` in turn.

    Attributes:
      groups: axes over which the sequence of parts repeats (``n_kv_heads``); empty for once.
      parts: the axes of each part within a group.
      part: which of them is meant.
    """

    groups: str
    parts: tuple[str, ...]
    part: int

    def bounds(self, sizes: Sizes) -> tuple[int, int, int, int]:
        """(groups, entries of one group, first entry of the part, end of the part)."""
        lengths = [_product(part.split(), sizes) for part in self.parts]
        start = sum(lengths[: self.part])
        return _product(self.groups.split(), sizes), sum(lengths), start, start + lengths[self.part]


@dataclasses.dataclass(frozen=True)
class Key:
    """Where a parameter lies in a checkpoint.

    Attributes:
      name: tensor name, ``{i}`` standing for the layer and ``{e}`` for the expert.
      layout: its axes on disk; a bracket is one disk axis that holds several logical axes. The
        loader permutes them into the order of the parameter tree.
      fused: which part of a fused tensor it is.
      first: the first layer that has it; in those before it is zero.
      start: the number of the layer that stands first in the parameter.
    """

    name: str
    layout: str
    fused: Fused | None = None
    first: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        assert (self.fused is not None) == ("[" in self.layout), self.name


def groups_of(layout: str) -> list[tuple[tuple[str, ...], bool]]:
    """Axes of each stored axis, and whether it is the fused one."""
    found = re.findall(r"[(\[][^)\]]*[)\]]|\S+", layout)
    return [(() if group == "1" else tuple(group.strip("()[]").split()), group[0] == "[") for group in found]


def _axes(layout: str) -> list[tuple[str, ...]]:
    return [axes for axes, _ in groups_of(layout)]


def _fused_axis(layout: str) -> int:
    return next(i for i, (_, fused) in enumerate(groups_of(layout)) if fused)


def _product(axes: tuple[str, ...] | list[str], sizes: Sizes) -> int:
    return math.prod(sizes[axis] for axis in axes)


def _order(param: Param, layout: str) -> list[int]:
    """Positions in the ungrouped stored axes of the parameter's own axes, those of the name left out."""
    stored = [axis for group in _axes(layout) for axis in group]
    return [stored.index(axis) for axis in param.axes if axis in stored]


def part_shape(key: Key, sizes: Sizes) -> tuple[int, ...]:
    """Shape that the parameter's part of the stored tensor has by itself."""
    return tuple(_product(group, sizes) for group in _axes(key.layout))


def disk_shape(key: Key, sizes: Sizes) -> tuple[int, ...]:
    """Shape of one stored tensor."""
    shape = list(part_shape(key, sizes))
    if key.fused is not None:
        groups, entries, _, _ = key.fused.bounds(sizes)
        shape[_fused_axis(key.layout)] = groups * entries
    return tuple(shape)


def from_disk(value: Array, param: Param, key: Key, sizes: Sizes) -> Array:
    """One layer (and expert) of ``param``, in its axis order, from a stored tensor."""
    if key.fused is not None:
        axis, (groups, entries, start, end) = _fused_axis(key.layout), key.fused.bounds(sizes)
        value = value.reshape(*value.shape[:axis], groups, entries, *value.shape[axis + 1 :])
        value = value[(slice(None),) * (axis + 1) + (slice(start, end),)]
    value = value.reshape([sizes[axis] for group in _axes(key.layout) for axis in group])
    return value.transpose(_order(param, key.layout))


def to_disk(parts: list[tuple[Key, Param, np.ndarray]], sizes: Sizes) -> np.ndarray:
    """Inverse of `from_disk`: the stored tensor that all ``parts`` (key, parameter, value) make up."""
    arrays = []
    for key, param, value in sorted(parts, key=lambda part: part[0].fused.part if part[0].fused else 0):
        stored = np.transpose(value, np.argsort(_order(param, key.layout))).reshape(part_shape(key, sizes))
        if key.fused is None:
            return np.ascontiguousarray(stored)
        axis, (groups, _, start, end) = _fused_axis(key.layout), key.fused.bounds(sizes)
        arrays.append(stored.reshape(*stored.shape[:axis], groups, end - start, *stored.shape[axis + 1 :]))
    fused = np.concatenate(arrays, axis + 1)
    return np.ascontiguousarray(fused.reshape(disk_shape(key, sizes)))
