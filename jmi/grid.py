"""Named axes of a sweep."""

from typing import Any

import jax
import numpy as np

from jmi.errors import ConfigError


class Grid:
    """Named axes of a sweep and every combination of their values, the last axis fastest.

    ``grid["layer"]`` is one value for each cell, to be put into hooks; ``grid.fold(results)`` gives
    results their axes back.

    Example:
      >>> import jmi
      >>> grid = jmi.Grid(layer=range(3), position=[0, 5])
      >>> grid["position"].tolist()
      [0, 5, 0, 5, 0, 5]
      >>> grid.fold(grid["layer"]).shape
      (3, 2)
    """

    def __init__(self, **axes: Any) -> None:
        self.axes = {name: np.asarray(values) for name, values in axes.items()}
        for name, values in self.axes.items():
            if values.ndim != 1 or not values.size:
                raise ConfigError(
                    f"Grid: {name}= needs one or more values in a row, got shape {values.shape}; for an "
                    f"axis of vectors, give indices and look the vectors up with grid[{name!r}]"
                )
        index = np.indices(self.shape).reshape(len(self.axes), -1)
        self._values = {n: v[i] for (n, v), i in zip(self.axes.items(), index, strict=True)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each axis."""
        return tuple(len(values) for values in self.axes.values())

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            raise ConfigError(f"Grid has no axis {name!r}; it has {', '.join(self._values)}")
        return self._values[name]

    def fold(self, results: Any) -> Any:
        """Results ``[cells, ...]``, a pytree, as ``[*grid.shape, ...]``."""
        return jax.tree.map(lambda x: x.reshape(*self.shape, *x.shape[1:]), results)
