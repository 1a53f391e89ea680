"""Decoders that stay on disk: headers are read, and rows as they are asked for."""

import dataclasses
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jmi.checks import shown, whole_array, whole_number
from jmi.errors import ArgumentError, CheckpointError
from jmi_models.weights.casting import cast_into
from jmi_sparse.formats.reading.asked import Asked
from jmi_sparse.placement import placed


@dataclasses.dataclass(frozen=True, repr=False)
class Decoders:
    """Decoder rows of dictionaries on disk, read when they are asked for; see `jmi_sparse.open_decoder`.

    Nothing is kept: each call maps the file anew and reads what it gives, no more. Files must stay as they
    are meanwhile.

    Attributes:
      targets: layers that are read, each with those that its features write into, itself first.
      shape: features and width of each matrix.
      dtype: of what is given.
      view: gives the matrix of a layer and a target as a view of its file.
      encode: gives what encodes in one layer; of a cross-layer transcoder its ``W_dec`` has width 0.
      site: that the rows are written at, with the layer open, ``blocks.*.hook_mlp_out``; None where nothing
        says it.
    """

    targets: Mapping[int, tuple[int, ...]]
    shape: tuple[int, ...]
    dtype: Any
    view: Callable[[int, int], np.ndarray]
    encode: Callable[[int], Any]
    site: str | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that are read."""
        return tuple(self.targets)

    @property
    def n_features(self) -> int:
        """How many features each layer has."""
        return self.shape[0]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.shape[1]

    def __repr__(self) -> str:
        features, width = self.shape
        made = f"layers {list(self.layers)}, {features} -> {width}, {np.dtype(self.dtype)}"
        return f"Decoders({made}, {self.site})"

    def rows(self, layer: int, ids: Any, target: int | None = None) -> np.ndarray:
        """Decoder rows ``[n, d_out]`` of the features ``ids`` ``[n]`` of a layer.

        Args:
          target: the layer they write into; by default the layer itself.

        Raises:
          ArgumentError: no such layer, target or feature.
          CheckpointError: a number that is not finite, or a file that has changed.
        """
        view = self._view(layer, target)
        ids = np.asarray(whole_array("ids", ids))
        if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < self.n_features):
            raise ArgumentError(f"ids={shown(ids)}: give a row of ids from 0 to {self.n_features - 1}")
        _expect_few(view)
        return self._cast(view[ids], layer)

    def matrix(self, layer: int, target: int | None = None) -> np.ndarray:
        """All rows ``[features, d_out]``; arguments and errors as of `rows`."""
        return self._cast(self._view(layer, target), layer)

    def encoder(self, layer: int) -> Any:
        """What encodes in one layer, a `Dictionary`; its memory is that layer's, and no other is read.

        Of a cross-layer transcoder it encodes alone: rows of its features come from `rows`.
        """
        self._check(layer)
        return placed(self.encode(layer), None)

    def _check(self, layer: int) -> None:
        if whole_number("layer", layer, 0) not in self.targets:
            raise ArgumentError(f"layer={layer}: there are decoders of {list(self.targets)}")

    def _view(self, layer: int, target: int | None) -> np.ndarray:
        self._check(layer)
        target = layer if target is None else whole_number("target", target, 0)
        if target not in self.targets[layer]:
            raise ArgumentError(f"target={target}: layer {layer} writes into {list(self.targets[layer])}")
        return self.view(layer, target)

    def _cast(self, values: np.ndarray, layer: int) -> np.ndarray:
        held = np.empty(values.shape, self.dtype)
        if not cast_into(held, values):
            raise CheckpointError(
                f"the decoder of layer {layer} is not finite in {np.dtype(self.dtype)}; open it in another "
                "dtype, or download the file again"
            )
        return held


def _expect_few(view: np.ndarray) -> None:
    """Tell the system that single rows are read: it would else read 128 KiB around each."""
    holder: Any = view
    while holder is not None and not isinstance(holder, mmap.mmap):
        holder = getattr(holder, "base", None)
    if holder is not None and hasattr(mmap, "MADV_RANDOM"):
        holder.madvise(mmap.MADV_RANDOM)


class Openable(Protocol):
    """A format whose decoders can stay on disk."""

    def on_disk(self, path: Path, asked: Asked) -> Decoders:
        """Decoders at a path that matches; errors as of `jmi_sparse.load`."""
        ...
