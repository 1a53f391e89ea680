"""The base runs of a sweep: one, or where values of the grid stand in its hooks, one for each of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmi.hooks.grid import Grid
from jmi.hooks.resolve import Hooks
from jmi.model.sites import HasSites
from jmi.sweeps.cells import Cells, cells_of


@dataclasses.dataclass(frozen=True)
class Bases:
    """Prepared hooks of every variant of the base run.

    Attributes:
      cells: hooks of the base as each cell has them.
      of_cell: int ``[cells]``, which variant each cell has.
      examples: int ``[variants]``, a cell of each variant.
    """

    cells: Cells
    of_cell: np.ndarray
    examples: np.ndarray

    def __len__(self) -> int:
        return len(self.examples)

    def hooks(self, which: int) -> Mapping[str, Any]:
        """Prepared hooks of one variant; their arrays are data of one program."""
        cell = self.examples[which]
        return self.cells.structure.hooks(
            self.cells.layers[cell], self.cells.shared, [x[cell, ...] for x in self.cells.swept]
        )


def bases_of(arch: HasSites, base: Hooks | None, grid: Grid, shape: tuple[int, int], mask: Any) -> Bases:
    """The variants of the hooks of a base run, checked as `cells_of` does."""
    cells = cells_of(arch, base or {}, grid, shape, mask)
    columns = [x.reshape(len(cells), -1) for x in (cells.layers, *cells.swept)]
    if not sum(x.size for x in columns):
        return Bases(cells, np.zeros(len(cells), int), np.zeros(1, int))
    rows = np.concatenate(
        [np.ascontiguousarray(x).view(np.uint8).reshape(len(cells), -1) for x in columns], 1
    )
    _, examples, of_cell = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return Bases(cells, of_cell.reshape(-1), examples)
