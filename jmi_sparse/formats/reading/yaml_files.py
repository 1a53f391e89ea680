"""Small YAML files of strangers, read with care: only data, and no more of it than such a file has."""

from pathlib import Path
from typing import Any

import yaml

from jmi.errors import JmiError, printable
from jmi.reading import DEEPEST, read_text

LARGEST = 2**20
"""Bytes of the largest file that is read; the longest published lists of transcoders have some 10,000."""

_LONGEST, _MOST = 4096, 20_000
"""Letters of one value, and values of one file."""


def read_yaml(path: Path, refusal: type[JmiError]) -> dict[str, Any]:
    """The mapping in a YAML file, of plain data alone.

    Raises:
      refusal: it is missing, too large, no YAML, or no mapping with names for keys; it is nested deeper than
        `DEEPEST`, or names a part of itself (an alias), by which a few lines can stand for billions.
    """
    name = printable(path.name)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise refusal(f"{name} has {path.stat().st_size:,} bytes, more than the {LARGEST:,} that are read")
    text = read_text(path, refusal)
    try:
        _check(text)
        found = yaml.safe_load(text)
    # Numbers and dates that cannot be are errors of Python's own.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise refusal(f"{name} is not YAML of plain data: {printable(error)}; fix it") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise refusal(f"{name} must hold names and values, not {type(found).__name__}; fix it")
    return found


def _check(text: str) -> None:
    """Raise ValueError for what a small file of data does not have, before anything is built of it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{event.anchor}; write out what it stands for")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _LONGEST:
            raise ValueError(f"it has a value of more than {_LONGEST:,} letters")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > _MOST:
            raise ValueError("it is nested too deeply, or has too many values")
