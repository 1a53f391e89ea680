"""What the own tools of the suite promise: configs with every pair, counted programs, broken lines."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.oracles import grid
from tests.support.mechanisms import MECHANISMS, covering, each_covering, pairs
from tests.support.mutated_lines import MUTATIONS, Mutation
from tests.support.mutations import ROOT, places, tried
from tests.support.programs import compiled, report


@pytest.mark.parametrize("mechanisms", [tuple(MECHANISMS), ("norm", "norms", "head"), ("windows",)])
def test_fewer_configs_have_every_pair_of_mechanisms(mechanisms: tuple[str, ...]) -> None:
    chosen = covering(grid.COMMITTED, mechanisms)
    every, covered = (
        set.union(*(pairs(name, mechanisms) for name in names)) for names in (grid.COMMITTED, chosen)
    )
    assert covered == every
    assert len(set(chosen)) == len(chosen) < len(grid.COMMITTED)
    assert chosen == covering(grid.COMMITTED, mechanisms)


def test_the_configs_left_out_are_slow() -> None:
    params = each_covering(grid.COMMITTED, ("windows",)).args[1]
    quick = [param.values[0] for param in params if "slow" not in {mark.name for mark in param.marks}]
    assert len(params) == len(grid.COMMITTED)
    assert set(quick) == set(covering(grid.COMMITTED, ("windows",)))


def test_a_program_is_counted_when_it_is_compiled() -> None:
    double, x = jax.jit(lambda x: 2 * x), np.ones(3, np.float32)
    before = compiled()
    double(x)
    double(x + 1)
    assert compiled() == before + 1


def test_what_tests_cost_is_added_up_by_file(tmp_path: Path) -> None:
    lines = [
        {"test": "a.py::one", "programs": 2, "seconds": 0.5},
        {"test": "a.py::two", "programs": 1, "seconds": 0.25},
        {"test": "b.py::one", "programs": 0, "seconds": 2.0},
    ]
    file = tmp_path / "costs"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, total, costliest, *_ = report(file).splitlines()
    assert first.split() == ["1", "tests", "0", "programs", "2.0", "s", "b.py"]
    assert second.split() == ["2", "tests", "3", "programs", "0.8", "s", "a.py"]
    assert total.split() == ["3", "tests", "3", "programs", "2.8", "s", "all"]
    assert costliest.endswith("b.py::one")


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A package of one line and a test of it."""
    files = {
        "jmi/__init__.py": "",
        "jmi/lines.py": "def double(x):\n    return 2 * x\n",
        "test_lines.py": (
            "from jmi.lines import double\n\ndef test_zero():\n    assert double(0) == 0\n\n"
            "def test_two():\n    assert double(2) == 4\n\ndef test_never():\n    assert False\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = hub\n  slow\n  oracle\n")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "test", "verdict"),
    [
        ("return 2 * x", "return 3 * x", "::test_two", "caught"),
        ("return 2 * x", "return 3 * x", "::test_zero", "missed"),
        ("return 2 * x", "return 3 * x", "::test_never", "fails without it, too"),
        ("return 2 * x", "return 2 *", "::test_two", "no test failed, pytest ended with"),
        ("return 5 * x", "return 3 * x", "::test_two", "found 0 times"),
    ],
)
def test_a_mistake_is_caught_where_a_test_fails_that_passes_without_it(
    small_tree: Path, old: str, new: str, test: str, verdict: str
) -> None:
    before = (small_tree / "jmi" / "lines.py").read_text()
    found = tried(small_tree, Mutation(old, new, (f"test_lines.py{test}",)), "")
    assert verdict in found.verdict
    assert (small_tree / "jmi" / "lines.py").read_text() == before


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_line_of_a_mutation_stands_in_the_packages_once_and_its_tests_exist(name: str) -> None:
    assert len(places(ROOT, MUTATIONS[name].old)) == 1
    for test in MUTATIONS[name].tests:
        file, _, function = test.partition("::")
        assert f"def {function.split('[')[0]}" in (ROOT / file).read_text()


def test_mutations_that_do_not_exist_are_named() -> None:
    command = [sys.executable, "-m", "tests.support.mutations", "no such"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such mutations: no such" in done.stderr
