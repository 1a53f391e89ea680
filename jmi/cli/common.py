"""What commands share: checks of the files they will write, and the record of a model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jmi import artefacts
from jmi.errors import ConfigError
from jmi.lm import LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".pdf", ".svg")

PytorchBin = Annotated[
    bool,
    typer.Option("--pytorch-bin", help="Read pickled weights (.bin, .pth) where there are no safetensors."),
]


def check_files(output: Path | None, plot: Path | None) -> None:
    """Raise ConfigError for a file that could not be written, before the work rather than after it."""
    for path in (output, plot):
        if path is not None:
            artefacts.check_writable(path)
    if plot is None:
        return
    if plot.suffix not in PICTURES:
        raise ConfigError(f"--plot {plot}: use a name that ends in .png, .pdf or .svg")
    from jmi.plots import new_figure

    new_figure(1, 1)


def draw(plot: Path | None, figure: Callable[[], "Figure"]) -> None:
    """Save a picture, whole or not at all."""
    if plot is not None:
        with artefacts.replacing(plot) as temporary:
            figure().savefig(temporary)


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
