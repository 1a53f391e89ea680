"""What commands share: checks of the files they will write, and the record of a model."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jmi import artefacts
from jmi.errors import ArgumentError, OutputError
from jmi.lm import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")

PytorchBin = Annotated[
    bool,
    typer.Option("--pytorch-bin", help="Read pickled weights (.bin, .pth) where there are no safetensors."),
]


def check_files(files: Mapping[str, Path | None]) -> None:
    """Refuse files that could not be written, before the work rather than after it.

    Args:
      files: option -> what was given for it, or None.

    Raises:
      OutputError: no file can be written there, or two options name one.
      ArgumentError: a picture of unknown kind.
    """
    named: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        if option == "--plot" and path.suffix.lower() not in PICTURES:
            raise ArgumentError(f"--plot {path}: use a name that ends in .png, .pdf or .svg")
        artefacts.check_writable(path)
        other = named.setdefault(os.path.realpath(path), option)
        if other != option:
            raise OutputError(f"{other} and {option} name one file, {path}; give each its own")


def draw(plot: Path, figure: "Figure") -> None:
    """Save a picture, whole or not at all."""
    with artefacts.replacing(plot) as temporary:
        figure.savefig(temporary)


def record(command: str, lm: LanguageModel, **result: Any) -> dict[str, Any]:
    """A result as self-contained plain data."""
    return {
        "schema_version": artefacts.SCHEMA_VERSION,
        "command": command,
        "model": {
            "name": lm.name,
            "revision": lm.identity(),
            "architecture": dataclasses.asdict(cast(Any, lm.arch)),
            "dtype": lm.dtype.name,
        },
        **result,
        **artefacts.environment(),
    }
