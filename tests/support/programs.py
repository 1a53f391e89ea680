"""What a test costs: how many programs it has compiled, and the CPU-seconds it took.

JMI_TEST_PROGRAMS=FILE appends one line for each test to FILE; what fixtures do counts for the test that
needed them first. ``python -m tests.support.programs FILE`` adds the lines up, by file of tests.
A program that JAX finds in its cache on disk counts like one that is compiled. Seconds say something only
of runs without that cache: leave JAX_COMPILATION_CACHE_DIR unset.
"""

import collections
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

_COMPILED: list[float] = []


def _heard(event: str, seconds: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILED.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_heard)


def compiled() -> int:
    """How many programs this process has compiled, or found on disk, up to now."""
    return len(_COMPILED)


class Programs:
    """The plugin that writes the lines."""

    def __init__(self, file: str):
        self.file = Path(file)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        before, seconds = compiled(), _cpu_seconds()
        result = yield
        line = {
            "test": item.nodeid,
            "programs": compiled() - before,
            "seconds": round(_cpu_seconds() - seconds, 3),
        }
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        return result


def _cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(os.times()[:4])


def report(file: Path, longest: int = 30) -> str:
    """Tests, programs and CPU-seconds: of each file, of all, and of the tests that cost most."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    by_file = collections.defaultdict(list)
    for line in lines:
        by_file[line["test"].split("::")[0]].append(line)
    totals = [_row(name, some) for name, some in by_file.items()]
    costliest = [_row(line["test"], [line]) for line in lines]
    by_cost = lambda row: -row[2]
    rows = [*sorted(totals, key=by_cost), _row("all", lines), *sorted(costliest, key=by_cost)[:longest]]
    return "\n".join(
        f"{tests:5} tests {programs:6} programs {seconds:8.1f} s  {name}"
        for tests, programs, seconds, name in rows
    )


def _row(name: str, lines: list[dict]) -> tuple[int, int, float, str]:
    return len(lines), sum(line["programs"] for line in lines), sum(line["seconds"] for line in lines), name


if __name__ == "__main__":
    print(report(Path(sys.argv[1])))
