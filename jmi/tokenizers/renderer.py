"""The process that renders chat templates, `jmi.tokenizers.sandbox`: kept for the next, ended when late."""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jmi.errors import TokenizerError

MOST_SECONDS = 10.0
"""Time for one text. Templates in use take a thousandth of a second."""

PROGRAM = Path(__file__).with_name("sandbox.py")

_lock = threading.Lock()
_kept: dict[int, subprocess.Popen[str]] = {}
"""The process by the id of the one that started it: a fork must not read answers to its parent."""


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one request; the process is started by the first, in a tenth of a second.

    Raises:
      TokenizerError: the answer does not come in `MOST_SECONDS`, or the template ends the process.
    """
    with _lock:
        process = _started()
        start, timer = time.monotonic(), threading.Timer(MOST_SECONDS, process.kill)
        timer.start()
        try:
            found = _exchanged(process, json.dumps(request))
        except BaseException:
            # Interrupted: what is still to come must not be taken for the answer to the next request.
            _stop()
            raise
        finally:
            timer.cancel()
        late = time.monotonic() - start >= MOST_SECONDS
        if late or not found:
            _stop()
    if late:
        raise TokenizerError(
            f"the chat template is not done after {MOST_SECONDS:g} seconds and was stopped; use "
            "another, template="
        )
    if not found:
        raise TokenizerError(
            "the chat template ended the process that renders it, by too much memory or depth; use another, "
            "template="
        )
    return dict(json.loads(found))


def _exchanged(process: subprocess.Popen[str], line: str) -> str:
    """One line for another; empty when the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except OSError:
        return ""
    return process.stdout.readline()


def _started() -> subprocess.Popen[str]:
    process = _kept.get(os.getpid())
    if process is not None and process.poll() is None:
        return process
    _stop()
    # -P: modules in the program's folder are not to be imported by their short names.
    command = [sys.executable, "-P", str(PROGRAM)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, encoding="utf-8", stdin=pipe, stdout=pipe, stderr=nowhere)
    except OSError as error:
        raise TokenizerError(f"chat templates need a process, which cannot start: {error.strerror}") from None
    _kept[os.getpid()] = process
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        _stop()
        raise TokenizerError(
            f"chat templates need jinja2 in {sys.executable}; run: pip install 'jinja2>=3.1.6'"
        )
    return process


@atexit.register
def _stop() -> None:
    process = _kept.pop(os.getpid(), None)
    if process is not None:
        process.kill()
        process.communicate()
