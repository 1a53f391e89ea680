"""Picture of an attention knockout: the edges cut, and the probabilities that moved."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jmi.interp.patching.knockout import KnockoutResult
from jmi.plots import new_figure, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEFORE, _AFTER, _CUT = "#4477aa", "#ee6677", "#cc3311"
_LABELLED = 40


def plot_knockout(
    result: KnockoutResult, tokens: Sequence[str], words: Sequence[str], title: str
) -> "Figure":
    """Attention of the cut layers with the cut edges framed, beside the tokens that changed most.

    Args:
      tokens: strings of the prompt's tokens.
      words: strings of ``result.top.tokens``.
    """
    size = len(tokens)
    figure = new_figure(11.5, 4.8 if size <= _LABELLED else 6.0, title)
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _attention(left, result, [shown(t) for t in tokens])
    _changes(right, result, [shown(w) for w in words])
    return figure


def _attention(axes: Any, result: KnockoutResult, tokens: list[str]) -> None:
    heads = result.cut.any((1, 2))
    image = axes.imshow(result.attention[:, heads].mean((0, 1)), cmap="Blues", vmin=0, vmax=1)
    for query, key in np.argwhere(result.cut.any(0)):
        axes.plot(key, query, marker="x", color=_CUT, markersize=8, markeredgewidth=2)
    if len(tokens) <= _LABELLED:
        axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
    first, last = result.layers[0], result.layers[-1]
    some = f"layer {first}" if first == last else f"{len(result.layers)} layers from {first} to {last}"
    axes.set_title(f"attention before, {some}, mean of {heads.sum()} heads", fontsize=9)
    axes.set_xlabel("key (× = edge cut)")
    axes.set_ylabel("query")
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="attention weight")


def _changes(axes: Any, result: KnockoutResult, words: list[str]) -> None:
    rows = np.arange(len(words))
    axes.barh(rows - 0.2, result.top.baseline, 0.4, color=_BEFORE, label="before")
    axes.barh(rows + 0.2, result.top.other, 0.4, color=_AFTER, label="after the cut")
    axes.set_yticks(rows, words, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("probability of the next token")
    found = f"KL(before || after) = {result.kl:.4g} nats" if result.changed else "nothing changed"
    axes.set_title(found, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
