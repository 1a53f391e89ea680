"""From a config and the headers of a checkpoint to a compatibility report."""

import collections
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jmi.errors import ConfigError, JmiError
from jmi_models.auto.infer import infer
from jmi_models.auto.naming import convention, nearest, template
from jmi_models.auto.report import GAPS, CompatibilityReport, Gap
from jmi_models.disk.tensors import Stored
from jmi_models.disk.words import some
from jmi_models.families import FAMILIES, described, is_known
from jmi_models.families.family import UnreadFields
from jmi_models.families.multimodal import text_part
from jmi_models.gguf.model import open_model
from jmi_models.weights.checkpoint import Problem, problems
from jmi_models.weights.quantised.methods import unquantised

Config = Mapping[str, Any]
Headers = Mapping[str, Stored]

_OTHERWISE = {
    "nanochat": "normalises queries and keys without weights",
    "phimoe": "chooses experts otherwise than by a softmax",
}
"""Families that would be inferred wrongly, with what cannot be seen of them."""


def examine(name: str, config: Config, headers: Headers, errors: Iterable[str] = ()) -> CompatibilityReport:
    """Read ``config`` as its family or infer one, and compare with the tensors; reads no weights.

    Args:
      name: of the model, for messages.
      errors: why ``headers`` are not there, if they are not.
    """
    kind = config.get("model_type")
    report = CompatibilityReport(name, None if kind is None else str(kind), errors=tuple(errors))
    plain, tensors = dict[str, Any](), dict[str, Stored]()

    def prepare(report: CompatibilityReport) -> CompatibilityReport:
        part = text_part(config, headers)
        whole = unquantised(part.config, part.headers)
        plain.update(whole.config)
        tensors.update(whole.headers)
        return dataclasses.replace(
            report,
            storage=whole.told,
            naming=convention(tensors) if tensors else None,
            left_out=(part.told(),) if part.left_out else (),
        )

    def read(report: CompatibilityReport) -> CompatibilityReport:
        return (_known if is_known(plain, tensors) else _inferred)(report, plain, tensors)

    return _examined(report, (prepare, read), tensors)


def examine_gguf(name: str, file: Path) -> CompatibilityReport:
    """The same of a GGUF file, which has its own names for tensors and tells its family."""
    report, tensors = CompatibilityReport(name, None, naming="llama.cpp"), dict[str, Stored]()

    def read(report: CompatibilityReport) -> CompatibilityReport:
        model = open_model(file)
        tensors.update(model.tensors)
        kind = model.family.name
        return dataclasses.replace(
            report, model_type=kind, storage=model.storage, read_as=model.family, arch=model.arch()
        )

    return _examined(report, (read,), tensors)


def _examined(
    report: CompatibilityReport,
    steps: Iterable[Callable[[CompatibilityReport], CompatibilityReport]],
    headers: Headers,
) -> CompatibilityReport:
    """``report`` as ``steps`` go on with it, compared with the tensors, with what was warned about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for step in steps:
                report = step(report)
            report = _compared(report, headers) if headers else report
        except JmiError as error:
            report = dataclasses.replace(report, errors=(*report.errors, str(error)))
    messages = [warning.message for warning in caught if issubclass(warning.category, UserWarning)]
    return dataclasses.replace(
        report,
        unread=tuple(
            name for message in messages if isinstance(message, UnreadFields) for name in message.names
        ),
        remarks=tuple(str(message) for message in messages if not isinstance(message, UnreadFields)),
    )


def _known(report: CompatibilityReport, config: Config, headers: Headers) -> CompatibilityReport:
    family, arch = described(config, headers)
    return dataclasses.replace(report, read_as=family, arch=arch)


def _inferred(report: CompatibilityReport, config: Config, headers: Headers) -> CompatibilityReport:
    near = difflib.get_close_matches(str(report.model_type), FAMILIES, n=1)
    unknown = f"model_type {report.model_type!r} is not known" + (f" (nearest: {near[0]})" if near else "")
    reason = _hopeless(report, headers)
    if reason is not None:
        raise ConfigError(f"{unknown}, and {reason}")
    found = infer(config, {name: stored.shape for name, stored in headers.items()})
    trace = "nothing happens in it that leaves no trace in config or tensors"
    return dataclasses.replace(
        report,
        read_as=found.family,
        arch=found.arch,
        findings=found.findings,
        assumptions=(f"{unknown}; {trace}", *found.assumptions),
    )


def _hopeless(report: CompatibilityReport, headers: Headers) -> str | None:
    """Why an unknown family cannot be inferred, if it cannot."""
    if not headers:
        return (
            "without its weights nothing can be inferred: jmi_models.load downloads them, jmi_models.inspect "
            "reads their headers"
        )
    if report.model_type in _OTHERWISE:
        return f"it {_OTHERWISE[report.model_type]}, which is not implemented"
    if report.naming is None:
        expected = "model.layers.0.self_attn.q_proj.weight"
        close = nearest(expected, headers)
        return (
            f"its tensors are named as in no known family: {some(sorted(headers)[:5])}, ...; expected names "
            f"such as {expected}" + (f"; nearest: {some(close)}" if close else "")
        )
    if report.naming != "usual":
        return (
            f"its tensors are named as in {report.naming}: only models named as Llama can be inferred. If it "
            f"is a {report.naming}, set model_type to '{report.naming}' in config.json"
        )
    return None


def _compared(report: CompatibilityReport, headers: Headers) -> CompatibilityReport:
    """``report`` with the tensors that do not fit."""
    assert report.arch is not None
    assert report.read_as is not None
    found: dict[str, list[Problem]] = collections.defaultdict(list)
    for problem in problems(report.arch, report.read_as, headers):
        found[problem.kind if problem.kind in GAPS else "mismatched"].append(problem)
    unexplained = [problem.name for problem in found["surplus"]]
    return dataclasses.replace(
        report,
        missing=_gaps(found["missing"], unexplained),
        surplus=_gaps(found["surplus"], []),
        mismatched=_gaps(found["mismatched"], []),
    )


def _gaps(found: list[Problem], candidates: list[str]) -> tuple[Gap, ...]:
    """One gap for the problems of all layers and experts; ``candidates`` may be what is meant."""
    alike: dict[str, list[Problem]] = collections.defaultdict(list)
    for problem in found:
        alike[template(problem.name)].append(problem)
    return tuple(
        Gap(same[0].name, same[0].detail, len(same), nearest(same[0].name, candidates))
        for same in alike.values()
    )
