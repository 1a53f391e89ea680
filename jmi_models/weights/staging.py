"""One parameter on its way from a checkpoint to its devices: filled on the host, then handed over.

Only what the devices of this process hold is kept and read. A CPU takes the filled arrays over as they are,
so that nothing is held twice and nothing is compiled; any other device gets a copy, after which they go.
"""

import math
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jmi.errors import CheckpointError
from jmi_models.disk.layout import Key, Sizes, from_disk, groups_of
from jmi_models.disk.tensors import Reading
from jmi_models.params import Param
from jmi_models.weights.casting import cast_into
from jmi_models.weights.shards import Bounds, window

# Whole pages, because JAX copies arrays that do not begin at a multiple of 64 bytes; made present at once
# where the system can (Linux), which takes two thirds of the time of one by one.
_PAGES = {}
if sys.platform != "win32":
    _PAGES["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)

_PIECE = 16 << 20  # bytes; of a larger tensor so much is read at a time

Spans = tuple[tuple[int, int], ...]
"""First and last + 1 index along each axis of a parameter."""


class Staged:
    """The parts of one parameter that devices of this process hold, each kept once.

    Attributes:
      parts: what they span of the parameter -> the array on the host; zero where nothing was filled in.

    Raises:
      CheckpointError: they are larger than memory.
    """

    def __init__(self, param: Param, dtype: Any, sharding: NamedSharding | None) -> None:
        self.param, self.dtype, self.sharding = param, np.dtype(dtype), sharding
        whole = tuple(slice(None) for _ in param.shape)
        places = sharding.addressable_devices_indices_map(param.shape).values() if sharding else [whole]
        self.parts = {
            spans: _zeros(tuple(end - start for start, end in spans), self.dtype)
            for spans in {self._spans(place) for place in places}
        }

    def fill(self, read: Reading, key: Key, sizes: Sizes, index: tuple[int, ...]) -> bool:
        """Fill in the stored tensor at ``index`` of the leading axes; whether what was filled in is finite.

        Nothing is read where no device of this process holds that index (the expert of another process).
        """
        lead, axes = len(index), self.param.axes[len(index) :]
        finite = True
        for spans, part in self.parts.items():
            if all(start <= i < end for i, (start, end) in zip(index, spans, strict=False)):
                at: tuple[Any, ...] = (*(i - span[0] for i, span in zip(index, spans, strict=False)), ...)
                bounds = dict(zip(axes, spans[lead:], strict=True))
                for piece, where in _pieces(part[at], key, bounds):
                    finite &= self._fill(piece, read, key, sizes, where)
        return finite

    def _fill(self, out: np.ndarray, read: Reading, key: Key, sizes: Sizes, bounds: Bounds) -> bool:
        box = window(key, sizes, bounds)
        values = from_disk(read(box.where), self.param, box.key, box.sizes)
        return cast_into(out, values[tuple(slice(*box.rest.get(axis, (None, None))) for axis in bounds)])

    def place(self) -> jax.Array:
        """The parameter on its devices. What was filled in must not be changed any more."""
        if self.sharding is None:
            (part,) = self.parts.values()
            return jax.device_put(part)
        return jax.make_array_from_callback(
            self.param.shape, self.sharding, lambda place: self.parts[self._spans(place)], dtype=self.dtype
        )

    def _spans(self, place: Any) -> Spans:
        return tuple(s.indices(size)[:2] for s, size in zip(place or (), self.param.shape, strict=True))


def _pieces(out: np.ndarray, key: Key, bounds: Bounds) -> Iterator[tuple[np.ndarray, Bounds]]:
    """``out`` and its ``bounds`` cut along the first stored axis: little of a file is mapped at once."""
    axis = next((group[0] for group, _ in groups_of(key.layout) if group), None)
    if axis is None or out.nbytes <= _PIECE:
        yield out, bounds
        return
    low, high = bounds[axis]
    step, before = max(1, (high - low) * _PIECE // out.nbytes), (slice(None),) * list(bounds).index(axis)
    for start in range(low, high, step):
        end = min(start + step, high)
        yield out[(*before, slice(start - low, end - low))], {**bounds, axis: (start, end)}


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    try:
        pages = mmap.mmap(-1, max(1, count * dtype.itemsize), **_PAGES)
    except (OSError, OverflowError):
        raise CheckpointError(f"a parameter of {list(shape)} in {dtype} is larger than memory") from None
    return np.frombuffer(pages, dtype, count).reshape(shape)
