"""What starting costs: CPU-seconds of fresh processes, against that of importing JAX."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

_COMMAND = "import sys; sys.argv[0] = 'jmi'; from jmi.cli import main; main()"
_CASES = {
    "import jax": ("import jax",),
    "from jmi import forward, sweep, interp, LanguageModel": (
        "from jmi import forward, sweep, interp, LanguageModel",
    ),
    "jmi --help": (_COMMAND, "--help"),
    "jmi knockout --help": (_COMMAND, "knockout", "--help"),
    "jmi knockout, nothing compiled": (_COMMAND, "knockout"),
    "jmi knockout, again": (_COMMAND, "knockout"),
}


def start(rounds: int) -> list[dict[str, Any]]:
    """Median over rounds, in each of which every case runs once; knockouts begin with an empty folder."""
    seconds: dict[str, list[float]] = {case: [] for case in _CASES}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for case, arguments in _CASES.items():
                seconds[case].append(_cpu_seconds(folder, *arguments))
    found = {case: statistics.median(each) for case, each in seconds.items()}
    return [
        {
            "case": case,
            "cpu_s": each,
            "of_import_jax": each / found["import jax"],
            "of_first_knockout": each / found["jmi knockout, nothing compiled"],
        }
        for case, each in found.items()
    ]


def _cpu_seconds(programs: str, *arguments: str) -> float:
    """Of one process of Python, its threads included, that keeps programs in a folder."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("JAX_PERSISTENT")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**settings, "JAX_COMPILATION_CACHE_DIR": programs},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
