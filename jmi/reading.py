"""Small files of a model, read with care: they come from strangers."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from jmi.errors import JmiError, printable

LARGEST_FILE = 2**27
"""Bytes of the largest file that is read whole, 128 MiB; the largest published tokenizers have about 35."""

DEEPEST = 40
"""Levels of objects and lists within each other; what comes back can be walked by recursion."""


def read_bytes(path: Path, refusal: type[JmiError]) -> bytes:
    """Content of a regular file of at most `LARGEST_FILE` bytes.

    Raises:
      refusal: it is missing, no regular file (a pipe would wait for ever), or too large.
    """
    name = printable(path.name)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise refusal(f"{name} is not a regular file; put the file itself there")
        if found.st_size > LARGEST_FILE:
            raise refusal(
                f"{name} has {found.st_size:,} bytes, more than the {LARGEST_FILE:,} that are read; use less"
            )
        return path.read_bytes()
    except OSError as error:
        raise refusal(f"{name} cannot be read: {error.strerror}; fix or remove it") from None


def read_text(path: Path, refusal: type[JmiError]) -> str:
    """Text of such a file; ``refusal`` too when it is not UTF-8."""
    try:
        return read_bytes(path, refusal).decode()
    except UnicodeDecodeError as error:
        raise refusal(
            f"{printable(path.name)} is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None


def read_object(path: Path, refusal: type[JmiError]) -> dict[str, Any]:
    """The JSON object in such a file; errors as `parse_object`."""
    return parse_object(read_text(path, refusal), path.name, refusal)


def parse_object(text: str, name: str, refusal: type[JmiError]) -> dict[str, Any]:
    """The JSON object in the text of the file ``name``.

    Raises:
      refusal: the text is no JSON, nested deeper than `DEEPEST`, or no object, or a number in it is NaN,
        infinite or becomes so.
    """
    name = printable(name)
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        _check_depth(found)
    except ValueError as error:
        raise refusal(f"{name} is not valid JSON: {printable(error)}; fix it") from None
    except RecursionError:
        raise refusal(f"{name} is nested too deeply; fix it") from None
    if not isinstance(found, dict):
        raise refusal(f"{name} must hold an object, not {type(found).__name__}; fix it")
    return found


def read_if_there(path: Path, refusal: type[JmiError]) -> dict[str, Any]:
    """As `read_object`; empty where there is nothing of that name (a dangling link is something)."""
    return read_object(path, refusal) if os.path.lexists(path) else {}


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {text[:40]}, which is beyond every number")
    return number


def _check_depth(found: Any) -> None:
    """Raise RecursionError for what is nested deeper than a description of a model is."""
    level = [found]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RecursionError
