"""``jmi inspect``: can a model be loaded, as what, on which assumptions, and if not, why not."""

import dataclasses
from typing import Any

import jmi_models
from jmi import artefacts, cli
from jmi.cli.options import Files, ModelName, Output, record
from jmi.errors import ConfigError
from jmi_models.commands.model import PytorchBin, Revision


def command(
    model: ModelName = "atlas",
    *,
    revision: Revision = None,
    pytorch_bin: PytorchBin = False,
    output: Output = None,
) -> None:
    """Say whether MODEL can be loaded, and as what.

    Reads the config and the headers of the weights. A family that is not known is inferred from both.
    Exit code 0 if it can be loaded, 2 if not.
    """
    Files(output).check()
    report = jmi_models.inspect(model, revision=revision, pytorch_bin=pytorch_bin)
    if output is not None:
        artefacts.write_json(output, _record(report))
    _print(report)
    if not report.supported:
        raise ConfigError(report.verdict)


def _print(report: "jmi_models.CompatibilityReport") -> None:
    cli.console.say(report.verdict)
    cli.console.show_table(("", ""), _summary(report), left=2)
    if report.findings:
        rows = [(finding.field, str(finding.value), finding.source) for finding in report.findings]
        cli.console.show_table(("field", "value", "from"), rows, title="inferred", left=3)
    for title, items in report.sections().items():
        cli.console.say(f"{title}:", style="bold")
        cli.console.say(*(f"  {item}" for item in items))


def _summary(report: "jmi_models.CompatibilityReport") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("model_type", str(report.model_type)),
        ("read as", report.family if report.arch else "nothing"),
        ("tensors named as in", report.naming or "no known family"),
    ]
    if report.storage is not None:
        rows.append(("stored as", report.storage))
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


def _record(report: "jmi_models.CompatibilityReport") -> dict[str, Any]:
    """The report as self-contained plain data."""
    fields = dataclasses.asdict(dataclasses.replace(report, read_as=None))
    del fields["read_as"]
    return record("inspect", supported=report.supported, family=report.family, **fields)
