"""JSON files of a model folder, read without trust: of a sane size and depth, with finite numbers only."""

import json
from pathlib import Path
from typing import Any

from jmi.errors import JmiError
from jmi_models import words

_LARGEST = 64 << 20  # an index of a million tensors
_DEEPEST = 40


def read_object(file: Path, error: type[JmiError]) -> dict[str, Any]:
    """The object in ``file``.

    Raises:
      error: naming the file: it is absent, no regular file, far too large, not JSON, no object, nested
        without end, or it holds NaN, an infinity or a number that becomes one.
    """
    name = words.name(file.name)
    if not file.is_file():
        raise error(f"{name} is {'no regular file' if file.exists() else 'missing'}")
    if file.stat().st_size > _LARGEST:
        raise error(f"{name} has {file.stat().st_size >> 20} MiB; that is no description of a model")
    try:
        held = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
        _check_depth(held)
    except RecursionError:
        raise error(f"{name} is nested too deeply to be a description of a model") from None
    except (ValueError, OSError) as cause:
        raise error(f"{name} is not valid JSON: {words.reason(cause)}") from None
    if not isinstance(held, dict):
        raise error(f"{name} must hold an object")
    return held


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"it holds {text[:40]}, which is beyond every number")
    return number


def _check_depth(held: Any) -> None:
    """Raise RecursionError for what is nested deeper than a description of a model is."""
    level = [held]
    for _ in range(_DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RecursionError
