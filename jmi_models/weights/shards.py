"""Which part of a stored tensor a device needs, so that each process reads only its own bytes."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jmi_models.params import Param
from jmi_models.weights.layout import Key, Sizes, from_disk, groups_of
from jmi_models.weights.stored import Stored

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


def read_part(
    stored: Stored,
    param: Param,
    key: Key,
    sizes: Sizes,
    sharding: NamedSharding,
    index: tuple[int, ...],
    dtype: Any,
) -> tuple[jax.Array, bool]:
    """The part of ``param`` at ``index`` of its leading axes, on its devices; and whether it is finite.

    Every device of this process gets its slice from its own bytes of the file, and a process whose
    devices hold nothing of the part (another expert's) reads nothing. Devices that hold the same slice
    share one read.
    """
    depth = len(index)
    axes, shape = param.axes[depth:], param.shape[depth:]
    holds = _holds(sharding, param.shape, index)
    held: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def fetch(place: Any) -> np.ndarray:
        spans = tuple(s.indices(n)[:2] for s, n in zip(place, shape, strict=True))
        if not holds:
            return np.zeros([end - start for start, end in spans], dtype)
        if spans not in held:
            box = window(key, sizes, dict(zip(axes, spans, strict=True)))
            part = from_disk(np.asarray(stored.read(box.where)), param, box.key, box.sizes)
            cut = tuple(slice(*box.rest.get(axis, (None, None))) for axis in axes)
            held[spans] = np.ascontiguousarray(part[cut]).astype(dtype)
        return held[spans]

    value = jax.make_array_from_callback(shape, row_of(sharding, depth), fetch)
    return value, all(bool(np.isfinite(part).all()) for part in held.values())


def row_of(sharding: NamedSharding, depth: int) -> NamedSharding:
    """Sharding of what is left of an array without its ``depth`` leading axes."""
    return NamedSharding(sharding.mesh, jax.P(*sharding.spec[depth:]))


def _holds(sharding: NamedSharding, shape: tuple[int, ...], index: tuple[int, ...]) -> bool:
    """Whether a device of this process has the entries at ``index`` of the leading axes."""
    places = sharding.addressable_devices_indices_map(shape).values()
    lead = [[s.indices(n) for s, n in zip(place or (), shape, strict=True)][: len(index)] for place in places]
    return any(
        all(start <= i < end for i, (start, end, _) in zip(index, spans, strict=True)) for spans in lead
    )
