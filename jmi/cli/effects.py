"""Effects of many places on one metric, for a person: a map, the largest ones, a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jmi.cli.pair import Pair
from jmi.lm import LanguageModel
from jmi.sites import find, full_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axes = Mapping[str, Sequence[int] | np.ndarray]


def axes_of(lm: LanguageModel, site: str) -> list[str]:
    """The axes to map at a site: layer and head, or layer and position where it has no heads."""
    found = find(lm.arch, full_name(lm.arch, site))[0][0].axes
    return ["layer", "head" if "head" in found or "kv_head" in found else "position"]


def print_pair(pair: Pair, what: str, metric: str, base: float, source: float) -> None:
    """What is looked at, what the two runs answer, and the metric of each."""
    console = Console(highlight=False)
    right, wrong = pair.lm.token_string(pair.right), pair.lm.token_string(pair.wrong)
    console.print(f"{pair.lm.name}  {what}  answer {right!r}, not {wrong!r}", soft_wrap=True, markup=False)
    for name, text, value in (("base", pair.base, base), ("source", pair.source, source)):
        console.print(f"{name:<7}{metric} {value:+.4f}  {text!r}", soft_wrap=True, markup=False)


def print_effects(
    axes: Axes, shares: np.ndarray, columns: Mapping[str, np.ndarray], top: int, what: str
) -> None:
    """A map of ``shares`` if it fits the console, and the largest of them.

    Args:
      columns: name -> what else to show of each place, in the shape of ``shares``.
      what: the shares are.
    """
    console = Console(highlight=False)
    if shares.ndim == 2 and 5 * shares.shape[1] + 20 <= console.width:
        console.print(f"{what} in %")
        console.print(_map(axes, shares))
    table = Table(title=f"largest of {shares.size} effects")
    for column in (*axes, *columns, what):
        table.add_column(column, justify="right")
    for flat in np.argsort(-np.nan_to_num(np.abs(shares)), axis=None)[:top]:
        where = np.unravel_index(flat, shares.shape)
        place = [str(values[i]) for values, i in zip(axes.values(), where, strict=True)]
        others = [f"{values[where]:+.4f}" for values in columns.values()]
        table.add_row(*place, *others, f"{shares[where]:+.1%}")
    console.print(table)


def _map(axes: Axes, shares: np.ndarray) -> Table:
    (down, rows), (across, columns) = axes.items()
    table = Table(f"{down} / {across}", box=box.SIMPLE, padding=0)
    for value in columns:
        table.add_column(str(value), justify="right", min_width=5)
    for value, row in zip(rows, shares, strict=True):
        table.add_row(str(value), *map(_percent, row))
    return table


def _percent(share: float) -> Text:
    if np.isnan(share):
        return Text("-")
    style = "bold green" if share > 0.2 else "bold red" if share < -0.2 else ""
    return Text(f"{round(100 * share)}", style=style)


def figure_of(axes: Axes, shares: np.ndarray, pair: Pair, title: str, label: str) -> "Figure":
    """The map of two axes as a picture, with tokens at positions."""
    from jmi.plots.heatmap import plot_heatmap

    tokens = [pair.lm.token_string(i) for i in pair.tokens[0][0]]
    rows, columns = (
        (name, [tokens[i] if name == "position" else str(i) for i in values]) for name, values in axes.items()
    )
    return plot_heatmap(shares, rows, columns, f"{pair.lm.name}, {title}\n{pair.base!r}", label)
