"""Named axes of a sweep."""

from typing import Any, NoReturn

import numpy as np

from jmi.checks import as_array, is_real, shown
from jmi.errors import ArgumentError


class Swept:
    """An array with one entry for each cell of a grid, to be put into hooks: what makes them differ.

    Made by `Grid`. It knows its grid, so no length decides what is an axis of cells; it does not become a
    plain array, which would forget that.
    """

    def __init__(self, values: np.ndarray, grid: "Grid") -> None:
        self.values = values
        self.grid = grid

    def __repr__(self) -> str:
        return f"Swept({self.values.dtype}{list(self.values.shape)} of {self.grid!r})"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ArgumentError(
            "a value of a Grid belongs into the hooks of jmi.sweep as it is: it has one entry for each cell. "
            "To look it up in a table use grid.take(name, table); the values of an axis are grid.axes[name]"
        )

    __array__ = __getitem__ = __iter__ = __len__ = __index__ = __float__ = __bool__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _refuse


class Grid:
    """Named axes of a sweep and every combination of their values, the last axis fastest.

    Args:
      axes: name -> values ``[n]``, or arrays ``[n, ...]`` such as vectors, one for each value of the axis.

    ``grid["layer"]`` is put into hooks in the place of a number, and `jmi.sweep` gives back one axis for each
    of the grid's.

    Example:
      >>> import numpy as np, jmi
      >>> grid = jmi.Grid(layer=range(3), vector=np.eye(4), strength=[0.5, 1.0])
      >>> grid.shape
      (3, 4, 2)
      >>> steer = jmi.At(grid["layer"], jmi.Add(grid["vector"], grid["strength"]))
    """

    def __init__(self, **axes: Any) -> None:
        self.axes = {name: np.asarray(as_array(name, values)) for name, values in axes.items()}
        for name, values in self.axes.items():
            if not values.ndim or not values.size or not _numbers(values):
                raise ArgumentError(
                    f"Grid: {name}= needs one or more values, real numbers or arrays of them, got "
                    f"{values.dtype} of shape {values.shape}"
                )
        if not axes:
            raise ArgumentError("Grid() has no axis: name one, such as layer=range(6)")
        self._index = dict(zip(self.axes, np.indices(self.shape).reshape(len(axes), -1), strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each axis."""
        return tuple(len(values) for values in self.axes.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __repr__(self) -> str:
        return f"Grid({', '.join(f'{name}: {len(values)}' for name, values in self.axes.items())})"

    def __getitem__(self, name: str) -> Swept:
        return Swept(self._axis(name)[self._index[name]], self)

    def take(self, name: str, table: Any) -> Swept:
        """Rows of ``table`` ``[n, ...]`` at the values of an axis, which are indices into it.

        Example:
          >>> import numpy as np, jmi
          >>> means = np.zeros((6, 128))
          >>> grid = jmi.Grid(layer=[2, 5])
          >>> hooks = {"blocks.*.hook_mlp_out": jmi.At(grid["layer"], jmi.Replace(grid.take("layer", means)))}
        """
        values, rows = self._axis(name), np.asarray(as_array("table", table))
        integers = values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
        if not integers or not rows.ndim or not _numbers(rows):
            raise ArgumentError(f"take: values of {name!r} must be indices into a table [n, ...]")
        if values.min() < -len(rows) or values.max() >= len(rows):
            raise ArgumentError(
                f"take: {name!r} has values from {values.min()} to {values.max()}; there are {len(rows)} rows"
            )
        return Swept(rows[values[self._index[name]]], self)

    def cells(self, values: Any) -> Swept:
        """An array ``[*grid.shape, ...]``, such as a sweep returned, as values of the cells."""
        given = np.asarray(as_array("values", values))
        if not _numbers(given) or given.shape[: len(self.shape)] != self.shape:
            raise ArgumentError(f"cells: got {shown(given)}; this grid begins with {self.shape}")
        return Swept(given.reshape(-1, *given.shape[len(self.shape) :]), self)

    def _axis(self, name: str) -> np.ndarray:
        if not isinstance(name, str) or name not in self.axes:
            raise ArgumentError(f"Grid has no axis {shown(name)}; it has {', '.join(self.axes)}")
        return self.axes[name]


def _numbers(values: np.ndarray) -> bool:
    return values.dtype == bool or is_real(values.dtype)
