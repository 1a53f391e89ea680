"""Results of a sweep: chunks put together, on every process."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jmi.sweeps.chunks import Chunk
from jmi.sweeps.work import Programs, Work


def assembled(
    work: Work, chunks: list[Chunk], programs: Programs, results: Mapping[int, list[np.ndarray]]
) -> Any:
    """Results with the axes of the grid, on every process."""
    shapes, tree = jax.tree.flatten(programs[chunks[0].part].program.out_info)
    axis = int(work.fixed.models)
    whole = []
    for i, shape in enumerate(shapes):
        size = (*shape.shape[:axis], len(work.cells), *shape.shape[axis + 1 :])
        out = np.zeros(size, shape.dtype)
        for index, arrays in results.items():
            chunk = chunks[index]
            # A file does not know bfloat16: its bytes come back without a name.
            values = arrays[i].view(shape.dtype)[(slice(None),) * axis + (slice(chunk.count),)]
            out[(slice(None),) * axis + (chunk.cells[: chunk.count],)] = values
        whole.append(out)
    if jax.process_count() > 1:
        whole = _exchanged(whole, chunks, axis)
    folded = [x.reshape(*x.shape[:axis], *work.cells.grid.shape, *x.shape[axis + 1 :]) for x in whole]
    return jax.tree.unflatten(tree, folded)


def _exchanged(parts: list[np.ndarray], chunks: list[Chunk], axis: int) -> list[np.ndarray]:
    """Whole results of parts that each process has, cells on ``axis``."""
    from jax.experimental import multihost_utils  # Slow to import, and for several processes alone.

    owner = np.zeros(parts[0].shape[axis], int)
    for index, chunk in enumerate(chunks):
        owner[chunk.cells] = index % jax.process_count()
    every = np.arange(len(owner))
    gathered = [np.asarray(x) for x in multihost_utils.process_allgather(parts)]
    return [x[owner, every] if not axis else np.moveaxis(x[owner, :, every], 0, 1) for x in gathered]
