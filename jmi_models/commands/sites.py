"""``jmi sites``: every point of a model with its shape, without loading weights."""

from typing import Annotated

import typer

import jmi_models
from jmi import artefacts, cli
from jmi.cli.options import Files, ModelName, Output, record
from jmi_models.commands.model import PytorchBin, Revision


def command(
    model: ModelName = "atlas",
    *,
    batch: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Rows in the batch.")] = 1,
    pos: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Tokens per row.")] = 10,
    names: Annotated[bool, typer.Option("--names", help="One full name per line, for scripts.")] = False,
    revision: Revision = None,
    pytorch_bin: PytorchBin = False,
    output: Output = None,
) -> None:
    """List every site of MODEL, with axes, shape and dtype.

    Reads the config, not the weights.
    """
    from jmi.engine.site_shapes import site_shapes
    from jmi.model.sites import layer_name, table_of

    Files(output).check()
    arch = jmi_models.architecture(model, revision=revision, pytorch_bin=pytorch_bin)
    found = site_shapes(arch, batch, pos)
    if output is not None:
        sites = [{"name": name, "shape": x.shape, "dtype": str(x.dtype)} for name, x in found.items()]
        artefacts.write_json(output, record("sites", model={"name": model}, sites=sites))
    if names:
        typer.echo("\n".join(found))
        return
    rows = []
    for point, site in table_of(arch).items():
        value = found[layer_name(point, 0) if point.startswith("blocks.") else point]
        shape = " ".join(map(str, value.shape))
        rows.append((point.replace("*", "i"), " ".join(site.axes), shape, str(value.dtype)))
    title = f"{model}: {len(found)} sites, layers 0 to {arch.n_layers - 1}"
    cli.console.show_table(("site", "axes", "shape", "dtype"), rows, title=title, left=4)
