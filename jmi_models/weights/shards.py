"""Which box of a stored tensor a device needs, so that each process reads only its own bytes."""

import dataclasses

import numpy as np

from jmi_models.disk.layout import Key, Sizes, groups_of

Bounds = dict[str, tuple[int, int]]
"""Logical axis -> first and last + 1 index wanted; axes not named are wanted whole."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The smallest box of a stored tensor that holds what is wanted.

    Attributes:
      where: one slice for each stored axis.
      key: how to read the box as a part of the parameter.
      sizes: axis sizes within the box.
      rest: what of the wanted bounds the box does not already cut.
    """

    where: tuple[slice, ...]
    key: Key
    sizes: Sizes
    rest: Bounds


def window(key: Key, sizes: Sizes, bounds: Bounds) -> Window:
    """The box of a tensor stored as ``key`` that holds ``bounds`` of the parameter."""
    where, inside, rest, fused = [], dict(sizes), dict(bounds), key.fused
    for group, is_fused in groups_of(key.layout):
        if not group:
            where.append(slice(None))
            continue
        first, unit = group[0], int(np.prod([sizes[axis] for axis in group[1:]], dtype=int))
        start, end = bounds.get(first, (0, sizes[first]))
        if is_fused and key.fused is not None:
            repeats, entries, begin, stop = key.fused.bounds(sizes)
            if repeats == 1:
                where.append(slice(begin + start * unit, begin + end * unit))
                fused = None
            else:
                # Whole repetitions: parts of one lie within each other's rows.
                each = (stop - begin) // unit
                low, high = start // each, -(-end // each)
                where.append(slice(low * entries, high * entries))
                inside[key.fused.groups], start, end = high - low, low * each, high * each
        else:
            where.append(slice(start * unit, end * unit))
        inside[first] = end - start
        if first in rest:
            rest[first] = (bounds[first][0] - start, bounds[first][1] - start)
    layout = key.layout if fused else key.layout.replace("[", "(").replace("]", ")")
    return Window(tuple(where), Key(key.name, layout, fused), inside, rest)
