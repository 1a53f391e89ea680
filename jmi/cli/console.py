"""What commands print. Names of files, tokens and prompts are shown, never obeyed.

No markup, no emoji codes, no control characters: ``[red]`` and ``:cat:`` are tokens like any other.
"""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jmi.errors import printable


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `jmi.cli.failures`, as every other failure, instead of an exit from here."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output as it is now."""
    return _Console(markup=False, emoji=False, highlight=False)


def say(*lines: str, style: str | None = None) -> None:
    """Print lines, however long."""
    for line in lines:
        console().print(printable(line, None), style=style, soft_wrap=True)


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    left: int = 0,
    narrow: bool = False,
) -> None:
    """Print a table; long cells go on in the next line, nothing is cut off.

    Args:
      left: so many columns hold words and start at the left; the others hold numbers.
      narrow: without lines and space around numbers.
    """
    table = Table(
        title=title and printable(title, None),
        title_justify="left",
        show_header=any(columns),
        box=box.SIMPLE if narrow else box.HEAVY_HEAD,
        padding=(0, 0 if narrow else 1),
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else printable(cell, None) for cell in row))
    console().print(table)
