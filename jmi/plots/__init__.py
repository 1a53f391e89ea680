"""Pictures: the only place that imports a plotting library, and only when something is drawn."""

import textwrap
from typing import TYPE_CHECKING

from jmi.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABEL, _LINES, _SIZE = 24, 6, 10


def new_figure(width: float, height: float, title: str) -> "Figure":
    """An empty figure in inches; a long title is broken into lines, and a very long one ends in dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    figure.suptitle(_wrapped(title, 0.95 * 72 * width), fontsize=_SIZE, parse_math=False)
    return figure


def _wrapped(title: str, points: float) -> str:
    """A title in lines no wider than ``points``, of which there are 72 in an inch."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    def wide(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, FontProperties(size=_SIZE), False)[0] > points

    letters, lines = int(points / 5), [""]
    while lines == [""] or any(map(wide, lines)):
        lines = [
            line
            for part in title.split("\n")
            for line in textwrap.wrap(printable(part, None), letters, max_lines=_LINES, placeholder=" …")
        ]
        letters = letters * 9 // 10
    return "\n".join(lines)


def shown(token: str) -> str:
    """A token as a label: spaces and line breaks made visible, and not too long."""
    text = printable(token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))
    text = text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"
    return text.replace("$", r"\$")  # which would start mathematics
