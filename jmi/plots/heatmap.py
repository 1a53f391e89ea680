"""A heat map of effects: layers down, positions or heads across."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jmi.plots import new_figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELLED, _WRITTEN = 48, 12
FAINT = 1e-3
"""A share of an effect that is none: it may be what rounding leaves."""


def plot_heatmap(
    values: np.ndarray,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    title: str,
    label: str,
) -> "Figure":
    """Shares ``[rows, columns]`` in colours around zero; small maps have their numbers written in.

    Full colour is the largest of them, or 1 when all are fainter than `FAINT`: a map of nothing is pale.

    Args:
      rows, columns: name of the axis, and of each of its entries.
      label: what the values are.
    """
    n_rows, n_columns = values.shape
    width, height = min(14, max(6.5, 3.2 + 0.45 * n_columns)), min(12, 2.2 + 0.4 * n_rows)
    figure = new_figure(width, height, title)
    axes = figure.subplots()
    largest = np.nan_to_num(np.abs(values)).max(initial=0)
    if largest < FAINT:
        largest = 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    for axis, (name, entries) in ((axes.yaxis, rows), (axes.xaxis, columns)):
        axis.set_label_text(name)
        if len(entries) <= _LABELLED:
            axis.set_ticks(range(len(entries)), [shown(e) for e in entries], fontsize=8)
    if max(map(len, columns[1])) > 2:
        axes.tick_params(axis="x", labelrotation=60)
    if max(n_rows, n_columns) <= _WRITTEN:
        for (i, j), value in np.ndenumerate(values):
            dark = abs(value) > 0.6 * largest
            axes.text(
                j,
                i,
                f"{value + 0.0:.2f}".replace("-0.00", "0.00"),
                ha="center",
                va="center",
                fontsize=7,
                color="w" if dark else "k",
            )
    figure.colorbar(image, ax=axes, label=label)
    return figure
