"""Options that commands share, what is checked of them, and the record that they write."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jmi import artefacts
from jmi.errors import ArgumentError, OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jmi.lm import LanguageModel

PICTURES = (".png", ".pdf", ".svg")

ModelName = Annotated[str, typer.Argument(help="Embedded name, folder or Hugging Face id.")]
Output = Annotated[Path | None, typer.Option(help="Write the result as JSON.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the result (.png, .pdf or .svg).")]


@dataclasses.dataclass(frozen=True)
class Files:
    """Files that a command writes."""

    output: Output = None
    plot: Plot = None

    def check(self, **others: Path | None) -> None:
        """Refuse files that could not be written, before the work rather than after it.

        Args:
          others: further options of the command that name files.

        Raises:
          OutputError: no file can be written there, or two options name one.
          ArgumentError: a picture of unknown kind.
        """
        if self.plot is not None and self.plot.suffix.lower() not in PICTURES:
            raise ArgumentError(f"--plot {self.plot}: use a name that ends in .png, .pdf or .svg")
        named: dict[str, str] = {}
        for name, path in {**dataclasses.asdict(self), **others}.items():
            if path is None:
                continue
            artefacts.check_writable(path)
            other = named.setdefault(os.path.realpath(path), f"--{name}")
            if other != f"--{name}":
                raise OutputError(f"{other} and --{name} name one file, {path}; give each its own")

    def draw(self, figure: "Figure") -> None:
        """Save a picture, whole or not at all."""
        with artefacts.replacing(cast(Path, self.plot)) as temporary:
            figure.savefig(temporary)


def record(command: str, **result: Any) -> dict[str, Any]:
    """A result as self-contained plain data."""
    return {
        "schema_version": artefacts.SCHEMA_VERSION,
        "command": command,
        **result,
        **artefacts.environment(),
    }


def described(lm: "LanguageModel") -> dict[str, Any]:
    """A model as plain data, for a record."""
    return {
        "name": lm.name,
        "revision": lm.identity(),
        "architecture": dataclasses.asdict(cast(Any, lm.arch)),
        "dtype": lm.dtype.name,
    }
