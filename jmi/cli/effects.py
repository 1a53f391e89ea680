"""Effects of many places on one metric, for a person: a map, the largest ones, a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from jmi.cli.console import console, say, show_table
from jmi.cli.pair import Pair
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel
from jmi.model.sites import Site, find, full_name
from jmi.plots.heatmap import FAINT, plot_heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axes = Mapping[str, Sequence[int] | np.ndarray]


def point_of(lm: LanguageModel, site: str) -> Site:
    """The one point that ``--site`` names; HookError or ArgumentError when there is none, or several."""
    found = find(lm.arch, full_name(lm.arch, site))
    if len(found) != 1:
        raise ArgumentError(f"--site {site} names {len(found)} points: name one")
    return found[0][0]


def axes_of(point: Site) -> list[str]:
    """The axes to map at a site: layer and head, or layer and position where it has no heads."""
    return ["layer", "head" if "head" in point.axes or "kv_head" in point.axes else "position"]


def print_pair(pair: Pair, what: str, metric: str, values: tuple[float, float]) -> None:
    """What is looked at, what the two runs answer, and the metric of each."""
    right, wrong = pair.lm.token_string(pair.right), pair.lm.token_string(pair.wrong)
    say(f"{pair.lm.name}  {what}  answer {right!r}, not {wrong!r}")
    for name, text, value in zip(("clean", "corrupted"), pair.texts, values, strict=True):
        say(f"{name:<10}{metric} {value:+.4f}  {text!r}")


def print_effects(
    axes: Axes, shares: np.ndarray, columns: Mapping[str, np.ndarray], top: int, what: str
) -> None:
    """A map of ``shares`` if it fits the console, and the largest of them.

    Args:
      columns: name -> what else to show of each place, in the shape of ``shares``.
      what: the shares are.
    """
    if shares.ndim == 2 and 5 * shares.shape[1] + 20 <= console().width:
        say(f"{what} in %")
        (down, rows), (across, values) = axes.items()
        cells = [[Text(str(v)), *map(_percent, row)] for v, row in zip(rows, shares, strict=True)]
        show_table([f"{down} / {across}", *(f"{v:>5}" for v in values)], cells, left=1, narrow=True)
    largest = []
    for flat in np.argsort(-np.nan_to_num(np.abs(shares)), axis=None, kind="stable")[:top]:
        where = np.unravel_index(flat, shares.shape)
        place = [str(values[i]) for values, i in zip(axes.values(), where, strict=True)]
        others = [f"{values[where]:+.4f}" for values in columns.values()]
        largest.append([*place, *others, "-" if np.isnan(shares[where]) else f"{shares[where]:+.1%}"])
    show_table([*axes, *columns, what], largest, title=f"largest of {shares.size} effects")
    if (np.abs(shares) < FAINT).all():
        say(f"nothing here changes the answer: every {what} is below {FAINT:.1%}")


def _percent(share: float) -> Text:
    if np.isnan(share):
        return Text("-")
    style = "bold green" if share > 0.2 else "bold red" if share < -0.2 else ""
    return Text(f"{round(100 * share)}", style=style)


def figure_of(axes: Axes, shares: np.ndarray, pair: Pair, title: str, label: str) -> "Figure":
    """The map of two axes as a picture, with tokens at positions."""
    tokens = [pair.lm.token_string(i) for i in pair.changed(pair.tokens)[0]]
    rows, columns = (
        (name, [tokens[i] if name == "position" else str(i) for i in values]) for name, values in axes.items()
    )
    return plot_heatmap(
        shares, rows, columns, f"{pair.lm.name}, {title}\n{pair.changed(pair.texts)!r}", label
    )
