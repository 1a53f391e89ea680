"""Many lines that differ in numbers alone, kept as a template and the numbers."""

import re
from collections.abc import Iterable, Mapping

Line = Mapping[str, str]
"""Texts by the name of a column."""

EACH = "each"
"""Where the rows of a group are, beside a template for each column: ``{0}`` is the first number of a row."""

_NUMBER = re.compile(r"(?!(?<=_l)0_)\d+(?:\.\d+(?:e[+-]?\d+)?)?")
"""The 0 of ``average_l0_71`` is a part of that word."""


def grouped(lines: Iterable[Line]) -> list[dict[str, str]]:
    """Templates and rows that `expanded` turns back into the same lines, those of one template together.

    A number that stands in the first column, too, is held once.
    """
    rows: dict[tuple[tuple[str, str], ...], list[str]] = {}
    patterns: dict[tuple[tuple[str, str], ...], re.Pattern[str]] = {}
    for line in lines:
        text = _joined(line.items())
        key = next((key for key, pattern in patterns.items() if pattern.fullmatch(text)), None)
        if key is None:
            key = tuple(_template(line).items())
            patterns[key] = _pattern(key)
        match = patterns[key].fullmatch(text)
        assert match is not None
        rows.setdefault(key, []).append(" ".join(match.groups()))
    return [{**dict(key), EACH: ";".join(each)} for key, each in rows.items()]


def expanded(group: Line) -> list[dict[str, str]]:
    """The lines of a template with its rows."""
    columns = {name: template for name, template in group.items() if name != EACH}
    return [
        {name: template.format(*row.split()) for name, template in columns.items()}
        for row in group[EACH].split(";")
    ]


def _joined(columns: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name} {text}" for name, text in columns)


def _template(line: Line) -> dict[str, str]:
    """A template for each column of one line."""
    numbers: list[str] = []
    held = 0

    def opened(match: re.Match[str]) -> str:
        if match[0] in numbers[:held]:
            return f"{{{numbers.index(match[0])}}}"
        numbers.append(match[0])
        return f"{{{len(numbers) - 1}}}"

    template = {}
    for name, text in line.items():
        if set("{}\n") & set(text):
            raise ValueError(f"{text!r} would not come back as it is")
        template[name] = _NUMBER.sub(opened, text)
        held = held or len(numbers)
    return template


def _pattern(template: Iterable[tuple[str, str]]) -> re.Pattern[str]:
    """What matches the lines of a template, with its numbers as groups."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        if match[1] in seen:
            return rf"(?P=n{match[1]})"
        seen.add(match[1])
        return rf"(?P<n{match[1]}>{_NUMBER.pattern})"

    return re.compile(re.sub(r"\\\{(\d+)\\\}", group, re.escape(_joined(template))))
