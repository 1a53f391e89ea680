"""Whether the suite notices mistakes: lines of the library are broken, one at a time, and tests run.

Run by hand: ``python -m tests.support.mutations``, with the names of some mutations for these alone, with
``--tree FOLDER`` for another state of the repository. The tree is copied, and nothing is changed in it.
Of each mutation the tests that its table names run up to the first failure, as without torch or network.
A test that fails is run again on the unchanged copy: only where it passes there is the mistake caught.
The table names tests that run the line; where one is missed, tests elsewhere might still notice it.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.mutated_lines import MUTATIONS, Mutation

PACKAGES = ("jmi", "jmi_models", "jmi_sparse")
ROOT = Path(__file__).parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one mutation: ``caught``, ``missed``, or why nothing can be said; and by which test."""

    verdict: str
    test: str = ""


def places(tree: Path, old: str) -> list[Path]:
    """The files of the packages that hold ``old``, each as often as it does."""
    files = sorted(file for package in PACKAGES for file in (tree / package).rglob("*.py"))
    return [file for file in files for _ in range(file.read_text().count(old))]


def tried(copy: Path, mutation: Mutation, shared: str) -> Outcome:
    """The outcome of ``mutation`` in ``copy``, which is afterwards what it was."""
    found = places(copy, mutation.old)
    if len(found) != 1:
        return Outcome(f"the line is found {len(found)} times: adapt the table")
    (file,) = found
    text = file.read_text()
    try:
        file.write_text(text.replace(mutation.old, mutation.new))
        status, said = _pytest(copy, mutation.tests, shared)
    finally:
        file.write_text(text)
    if status == 0:
        return Outcome("missed")
    failed = re.search(r"^FAILED (.+?)( - .*)?$", said, re.MULTILINE)
    if status != 1 or failed is None:
        return Outcome(f"no test failed, pytest ended with {status}", said.strip().splitlines()[-1])
    test = failed.group(1)
    status, _ = _pytest(copy, [test], shared)
    return Outcome("caught" if status == 0 else "fails without it, too", test)


def _pytest(copy: Path, tests: Sequence[str], shared: str) -> tuple[int, str]:
    """Exit status and output of the tests in ``copy``."""
    marks = "not hub and not slow and not oracle"
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", marks]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("JMI_SHARED", shared)
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="mutations; by default all")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the repository whose tests are tried")
    args = parser.parse_args()
    unknown = set(args.names) - set(MUTATIONS)
    if unknown:
        parser.error(f"no such mutations: {', '.join(sorted(unknown))}; there are {', '.join(MUTATIONS)}")
    chosen = {name: MUTATIONS[name] for name in args.names or MUTATIONS}
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(args.tree, copy, ignore=_LEFT_OUT)
        for name, mutation in chosen.items():
            started = time.monotonic()
            outcome = tried(copy, mutation, str(args.tree.resolve().parent / "shared"))
            caught += outcome.verdict == "caught"
            seconds = time.monotonic() - started
            print(f"{outcome.verdict:8} {name:32} {seconds:5.0f} s  {outcome.test}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
