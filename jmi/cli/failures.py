"""How a command that fails ends: one sentence on standard error, and an exit code."""

import contextlib
import os
import sys
import traceback

import typer

from jmi.errors import JmiError, printable

DEBUG = "JMI_DEBUG"
"""Environment variable; when set, the traceback is printed, too."""

_NOISE = "Value error, "
"""What pydantic, with which some versions of typer check values, puts in front of a message."""

_UNEXPECTED, _BAD_INPUT, _INTERRUPTED, _NO_READER = 1, 2, 130, 141


def explained(error: BaseException) -> tuple[str, int]:
    """One sentence for a person, and the exit code: 2 for what was asked, 1 for what jmi did not expect."""
    usage = getattr(error, "format_message", None)  # of the command line's own errors
    if usage is not None:
        said = getattr(error, "message", "")
        return usage().replace(said, said.removeprefix(_NOISE), 1), _BAD_INPUT
    if isinstance(error, JmiError):
        return str(error), _BAD_INPUT
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return "interrupted", _INTERRUPTED
    if isinstance(error, MemoryError) or _out_of_device_memory(error):
        return "memory ran out; a shorter prompt or --dtype bfloat16 needs less", _UNEXPECTED
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}", _BAD_INPUT
    said = " ".join(str(error).split())[:200]
    return (
        f"unexpected {type(error).__name__}: {said}. Please report this, with what {DEBUG}=1 adds to it",
        _UNEXPECTED,
    )


def complain(sentence: str) -> None:
    """Print an error. Lists, which are indented, keep their lines."""
    print("error: " + "\n  ".join(printable(line, None) for line in sentence.split("\n  ")), file=sys.stderr)


def ended(error: BaseException) -> int:
    """Say what ended a command; its exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    if isinstance(error, OSError):
        _drop_output()
    if isinstance(error, BrokenPipeError):
        return _NO_READER  # as a shell does; who closed the pipe knows
    sentence, code = explained(error)
    complain(sentence)
    return code


def _out_of_device_memory(error: BaseException) -> bool:
    # By name: a command that fails before it needs JAX need not import it.
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)


def _drop_output() -> None:
    """Let go of what standard output did not take, or the interpreter fails at it again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
