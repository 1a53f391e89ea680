"""The command line, in this process or as one of its own."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
from unittest import mock

import jmi as package
from jmi.cli import main

# Another process may write what this one reads of the programs kept on disk: JAX says so and compiles.
WARNINGS = ["-W", "error", "-W", "default:Error reading persistent compilation cache entry"]
JMI = [sys.executable, *WARNINGS, "-c", "from jmi.cli import main; main()"]
_PROGRAMS = tempfile.TemporaryDirectory()
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": _PROGRAMS.name,
    **os.environ,
    "COLUMNS": "200",
    "HF_HUB_OFFLINE": "1",
}


@dataclasses.dataclass(frozen=True)
class Done:
    """What `subprocess.CompletedProcess` has of a command that ran in this process."""

    returncode: int
    stdout: str
    stderr: str


def typed(*arguments, **environment):
    """A command as a person types it: a process of its own."""
    return subprocess.run(
        [*JMI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**ENVIRONMENT, **environment},
    )


def jmi(*arguments):
    """The same without the seconds in which a process imports jax; no folder for programs is set for good."""
    out, errors = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["jmi", *map(str, arguments)])
    wide = mock.patch.dict(os.environ, {"COLUMNS": "200"})
    unkept = mock.patch.object(package, "cache_programs", return_value=None)
    with argv, wide, unkept, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code
    return Done(code, out.getvalue(), errors.getvalue())


def refused(*arguments):
    """What the command says on standard error; its exit code must be 2, and no traceback left."""
    done = jmi(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
