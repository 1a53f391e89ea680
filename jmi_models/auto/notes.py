"""What an inference rests on: findings with their source, and assumptions."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Finding:
    """A size, part or field of an architecture, its value, and the config field or tensor that told it."""

    field: str
    value: Any
    source: str


class Notes:
    """Findings and assumptions as they are made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.assumptions: list[str] = []

    def found(self, field: str, value: Any, source: str) -> Any:
        """Write down a finding; gives its value back."""
        self.findings.append(Finding(field, value, source))
        return value

    def assume(self, text: str) -> None:
        """Write down what neither the config nor the tensors tell."""
        self.assumptions.append(text)
