"""``jmi inspect``: can a model be loaded, as what, on which assumptions, and if not, why not."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jmi_models
from jmi import artefacts
from jmi.cli.common import PytorchBin
from jmi.errors import ConfigError


def command(
    model: Annotated[str, typer.Argument(help="Embedded name, folder or Hugging Face id.")] = "atlas",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    pytorch_bin: PytorchBin = False,
    output: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
) -> None:
    """Say whether MODEL can be loaded, without loading it: exit code 0 if it can, 2 if not.

    Reads the config and the headers of the weights. A family that is not known is inferred from both.
    """
    if output is not None:
        artefacts.check_writable(output)
    report = jmi_models.inspect(model, revision=revision, pytorch_bin=pytorch_bin)
    _print(report)
    if output is not None:
        artefacts.write_json(output, _record(report))
    if not report.supported:
        raise ConfigError(report.verdict)


def _print(report: jmi_models.CompatibilityReport) -> None:
    console = Console(highlight=False)
    console.print(escape(report.verdict), soft_wrap=True)
    console.print(_table("", ("", ""), _summary(report)))
    if report.findings:
        rows = [(finding.field, str(finding.value), finding.source) for finding in report.findings]
        console.print(_table("inferred", ("field", "value", "from"), rows))
    for title, items in report.sections().items():
        console.print(f"{title}:", style="bold")
        for item in items:
            console.print(f"  {escape(item)}", soft_wrap=True)


def _summary(report: jmi_models.CompatibilityReport) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("model_type", str(report.model_type)),
        ("read as", report.family if report.arch else "nothing"),
        ("tensors named as in", report.naming or "no known family"),
    ]
    if report.arch is not None:
        arch = report.arch
        rows += [
            ("layers", str(arch.n_layers)),
            ("width", f"{arch.d_model}, MLP {arch.d_mlp}"),
            *_attention(arch),
            ("vocabulary", str(arch.d_vocab)),
            ("parameters", f"{jmi_models.n_params(arch):,}"),
        ]
    return rows


def _attention(arch: Any) -> list[tuple[str, str]]:
    heads = f"{arch.n_heads} of {arch.d_head}"
    if not hasattr(arch, "n_ctx"):
        return [("heads", heads)]
    return [("heads", f"{heads}, {arch.n_kv_heads} for keys and values"), ("context", str(arch.n_ctx))]


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title or None, show_header=any(columns), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _record(report: jmi_models.CompatibilityReport) -> dict[str, Any]:
    """The report as self-contained plain data."""
    fields = dataclasses.asdict(dataclasses.replace(report, read_as=None))
    del fields["read_as"]
    return {
        "schema_version": artefacts.SCHEMA_VERSION,
        "command": "inspect",
        "supported": report.supported,
        "family": report.family,
        **fields,
        **artefacts.environment(),
    }
