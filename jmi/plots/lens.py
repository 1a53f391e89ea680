"""Picture of a lens: which token each stream says, coloured by a measure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jmi.plots import new_figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRITTEN = 24


def plot_lens(
    values: np.ndarray, cells: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, label: str
) -> "Figure":
    """A measure ``[rows, columns]`` in colour, the first row at the bottom; small maps have words written in.

    Args:
      cells: a word for each value.
      rows: labels of the streams.
      columns: the prompt's tokens.
      label: what the values are.
    """
    n_rows, n_columns = values.shape
    figure = new_figure(min(16, max(5, 2.5 + 0.8 * n_columns)), min(14, 2.2 + 0.32 * n_rows), title)
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis", aspect="auto", origin="lower")
    axes.set_yticks(range(n_rows), list(rows), fontsize=8)
    axes.set_ylabel("stream")
    if n_columns <= _WRITTEN:
        axes.set_xticks(range(n_columns), [shown(c) for c in columns], fontsize=8, rotation=60)
        low, high = image.get_clim()
        for (i, j), word in np.ndenumerate(cells):
            dark = values[i, j] < (low + high) / 2
            text = shown(word)[:10]
            axes.text(j, i, text, ha="center", va="center", fontsize=6, color="w" if dark else "k")
    axes.set_xlabel("token")
    figure.colorbar(image, ax=axes, label=label)
    return figure
