"""How a sweep is divided: which cells run together, from which layer and position, in what memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jmi.errors import ArgumentError
from jmi.sweeps.cells import Cells
from jmi.sweeps.sharing import Part

TOKENS = 4096
"""Tokens of a chunk beyond which nothing is gained by running more cells at once."""

PASS = 64
"""Reading all weights once costs about as much as this many tokens; fewer are not worth an own chunk."""

STEPS = 4
"""Cells begin at one of so many positions, so a sweep has at most so many programs per structure, and as many
for those of its cells that edit the last layer where the others need one position of it."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Cells with hooks in the same layers and one starting position, which run together.

    Attributes:
      cells: their indices; the last one is repeated to fill the chunk.
      count: how many of them count.
      base: which variant of the base run they have.
      layer: the layer they start at; -1 when they start with the embedding.
      first: the position they start at.
      narrow: whether only the position of the wanted logits passes through the last layer.
    """

    cells: np.ndarray
    count: int
    base: int
    layer: int
    first: int
    narrow: bool

    @property
    def part(self) -> Part:
        """What is run of each."""
        return Part(self.first, self.layer < 0, self.narrow)


def groups_of(
    cells: Cells,
    base: np.ndarray,
    shape: tuple[int, int],
    last_first: int,
    share: bool,
    *,
    narrow: bool = False,
) -> list[Chunk]:
    """One chunk, of any size, for all cells of one base that edit the same layers and start at one position.

    Args:
      base: which variant of the base run each cell has.
      shape: batch, pos.
      last_first: no cell may start after this position.
      share: False runs every cell as a whole.
      narrow: whether nothing but one position's logits is needed of a last layer that a cell does not edit.
    """
    batch, length = shape
    first = np.minimum(cells.first_position, last_first) if share else np.zeros(len(cells), int)
    layer = cells.first_layer if share else np.full(len(cells), -1)
    first = np.where(layer < 0, 0, first)
    step = max(1, -(-length // STEPS))
    first -= first % step
    short = layer >= cells.layers.shape[2] - 1
    slim = narrow & ~short & ~cells.layers[:, :, -1].any(1)
    if slim.any() and short.any():
        # With one layer to run, or none, a later start saves less than a program costs.
        first[short] = first[short].min()
    key = np.concatenate([base[:, None], layer[:, None], cells.layers.reshape(len(cells), -1)], axis=1)
    _, member = np.unique(key, axis=0, return_inverse=True)
    groups = []
    for which in range(member.max() + 1):
        rest = np.flatnonzero(member.reshape(-1) == which)
        while rest.size:
            # A few cells that could start later join those that cannot: they would pay for a pass alone.
            start = first[rest].min()
            joined = rest[first[rest] == start]
            while joined.size < rest.size:
                after = first[np.setdiff1d(rest, joined)].min()
                more = rest[first[rest] == after]
                if more.size * batch * (after - start) > PASS:
                    break
                joined = np.concatenate([joined, more])
            one = rest[0]
            groups.append(
                Chunk(
                    np.sort(joined), joined.size, int(base[one]), int(layer[one]), int(start), bool(slim[one])
                )
            )
            rest = np.setdiff1d(rest, joined)
    return groups


def chunks_of(groups: list[Chunk], size: Callable[[Part, int], int]) -> list[Chunk]:
    """Groups cut into chunks, all chunks of one program equally large.

    Args:
      size: (part that is run, largest group) -> cells per chunk.
    """
    chunks = []
    for part in sorted({group.part for group in groups}):
        mine = [group for group in groups if group.part == part]
        most = size(part, max(group.count for group in mine))
        for group in mine:
            for i in range(0, group.count, most):
                cells = group.cells[i : i + most]
                full = np.pad(cells, (0, most - len(cells)), mode="edge")
                chunks.append(dataclasses.replace(group, cells=full, count=len(cells)))
    # Base runs are few and kept one at a time: cells of one follow each other.
    return sorted(chunks, key=lambda chunk: chunk.base)


def fitting(compile_for: Callable[[int], Any], largest: int, tokens: int, devices: int, memory: int) -> int:
    """The number of cells per chunk that fits into ``memory``: the last one that was compiled for.

    Args:
      compile_for: number of cells -> compiled program.
      largest: most cells that could run together.
      tokens: of one cell.
      devices: cells are spread over so many; a multiple of it is returned.
      memory: bytes on one device.

    Raises:
      ArgumentError: one cell alone does not fit.
    """
    count = max(1, min(-(-largest // devices), TOKENS // max(1, tokens)))
    # Equal chunks rather than full ones and a small rest.
    count = -(-largest // devices // -(-largest // (devices * count))) if largest > devices else count
    while True:
        need = bytes_of(compile_for(count * devices))
        if need <= memory:
            return count * devices
        if count == 1:
            raise ArgumentError(
                f"one cell needs {need / 2**20:.1f} MiB and the sweep may use {memory / 2**20:.1f} MiB: "
                "raise memory=, or run fewer tokens at once"
            )
        count = max(1, min(count - 1, int(count * memory / need)))


def bytes_of(program: Any) -> int:
    """Bytes a compiled program allocates on a device while it runs."""
    analysis = program.memory_analysis()
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
