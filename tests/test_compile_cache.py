"""JAX's cache of compiled programs, which test processes share, can fail no run, whatever is in it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEST = "tests/core/test_engine.py::test_jitted_equals_eager"


def run(cache: Path) -> str:
    """What a run of one test of the suite says, which compiles or reads what was compiled before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", TEST]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    return done.stdout


def test_entries_that_are_half_written_change_no_result(tmp_path: Path) -> None:
    assert "compilation cache" not in run(tmp_path)
    entries = list(tmp_path.glob("*-cache"))
    assert entries
    for i, entry in enumerate(entries):
        written = entry.read_bytes()
        entry.write_bytes(written[: (0, 1, len(written) // 2, len(written) - 1)[i % 4]])
    assert "Error reading persistent compilation cache entry" in run(tmp_path)
