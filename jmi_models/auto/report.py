"""Whether a model can be loaded, as what, on which assumptions, and what stands in the way."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jmi.errors import ConfigError
from jmi_models.auto.notes import Finding
from jmi_models.disk import words
from jmi_models.families.family import AnyArch, Family

GAPS = ("missing", "surplus", "mismatched")
"""Ways in which tensors do not fit, as they are called in a report."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """Tensors that do not fit in the same way, one for each layer or expert.

    Attributes:
      name, detail: of the first, and its shape or what is wrong with it.
      count: how many there are.
      nearest: names in the checkpoint that read most like a missing one.
    """

    name: str
    detail: str
    count: int = 1
    nearest: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f", and {self.count - 1} more such" if self.count > 1 else ""
        near = f"; nearest: {words.some(self.nearest)}" if self.nearest else ""
        return f"{words.name(self.name)} {self.detail}{more}{near}"


@dataclasses.dataclass(frozen=True)
class CompatibilityReport:
    """Whether and how a model can be loaded.

    Attributes:
      name: as asked for.
      model_type: of its config.
      read_as: the family whose reader and names are used, called ``auto`` where they are inferred.
      naming: ``usual`` or the family after which tensors are named; None where that is none.
      arch: the architecture, where it could be read.
      storage: how its tensors are stored, where that is not told by their dtypes (GGUF, quantised weights).
      findings: what was inferred, and from what; empty for a known family.
      assumptions: what neither config nor tensors tell.
      missing, surplus, mismatched: tensors that do not fit.
      left_out: parts of a multimodal model beside its text model, with the number of their tensors.
      unread: fields of the config that had no effect.
      remarks: what else reading the config warned about.
      errors: why no architecture could be read, or no tensor.
    """

    name: str
    model_type: str | None
    read_as: Family | None = None
    naming: str | None = None
    arch: AnyArch | None = None
    storage: str | None = None
    findings: tuple[Finding, ...] = ()
    assumptions: tuple[str, ...] = ()
    missing: tuple[Gap, ...] = ()
    surplus: tuple[Gap, ...] = ()
    mismatched: tuple[Gap, ...] = ()
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """``model_type`` of a known family, else ``auto``."""
        return self.read_as.name if self.read_as else "auto"

    @property
    def supported(self) -> bool:
        """Whether the model can be loaded."""
        return self.arch is not None and not (self.errors or self.missing or self.surplus or self.mismatched)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if self.supported:
            return f"{self.name} can be loaded, read as {self.family}"
        counts = {kind: sum(gap.count for gap in getattr(self, kind)) for kind in GAPS}
        reasons = [f"{n} tensor{'s' * (n != 1)} {kind}" for kind, n in counts.items() if n]
        errors = [" ".join(error.splitlines()) for error in self.errors]
        return f"{self.name} cannot be loaded: {'; '.join([*errors, *reasons])}"

    def sections(self) -> dict[str, list[str]]:
        """Lines under headings, those that have any."""
        lists: dict[str, Iterable[Any]] = {
            **{f"{kind} tensors": getattr(self, kind) for kind in GAPS},
            "left out": self.left_out,
            "assumed": self.assumptions,
            "config fields without effect": [words.some(self.unread)] if self.unread else [],
            "remarks": self.remarks,
        }
        return {title: list(map(str, items)) for title, items in lists.items() if items}

    def caution(self) -> str:
        """What to know before trusting an inferred architecture, in one line."""
        unread = tuple(map(words.name, self.unread))
        lists = {"assumed": self.assumptions, "config fields without effect": unread, "": self.remarks}
        parts = [f"{title}: {'; '.join(items)}".removeprefix(": ") for title, items in lists.items() if items]
        return f"{self.name}: architecture inferred; {'. '.join(parts)}"

    def require(self) -> tuple[Family, AnyArch]:
        """Family and architecture of a model that can be loaded.

        Raises:
          ConfigError: it cannot; the message is the whole report.
        """
        if self.read_as is None or self.arch is None or not self.supported:
            raise ConfigError(str(self))
        return self.read_as, self.arch

    def __str__(self) -> str:
        lines = [
            self.verdict,
            f"  model_type {self.model_type!r}, tensors named as in: {self.naming or 'no known family'}",
            *([f"  stored as: {self.storage}"] if self.storage else []),
        ]
        for title, items in self.sections().items():
            lines += [f"  {title}:", *(f"    {item}" for item in items)]
        return "\n".join(lines)
