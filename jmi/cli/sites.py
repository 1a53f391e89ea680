"""``jmi sites``: every point of a model with its shape, without loading weights."""

from typing import Annotated

import typer

import jmi_models
from jmi.cli.common import PytorchBin
from jmi.cli.console import show_table
from jmi.lm import site_shapes
from jmi.model.sites import layer_name, table_of


def command(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    batch: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Rows in the batch.")] = 1,
    pos: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Tokens per row.")] = 10,
    pytorch_bin: PytorchBin = False,
    names: Annotated[bool, typer.Option("--names", help="One full name per line, for scripts.")] = False,
) -> None:
    """List every site of MODEL with its axes, shape and dtype. Reads the config, not the weights."""
    arch = jmi_models.architecture(model, pytorch_bin=pytorch_bin)
    found = site_shapes(arch, batch, pos)
    if names:
        typer.echo("\n".join(found))
        return
    rows = []
    for point, site in table_of(arch).items():
        value = found[layer_name(point, 0) if point.startswith("blocks.") else point]
        shape = " ".join(map(str, value.shape))
        rows.append((point.replace("*", "i"), " ".join(site.axes), shape, str(value.dtype)))
    title = f"{model}: {len(found)} sites, layers 0 to {arch.n_layers - 1}"
    show_table(("site", "axes", "shape", "dtype"), rows, title=title, left=4)
