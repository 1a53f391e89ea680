"""Fields of a config read one by one, with all that is wrong with them in one list."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from jmi.errors import ArgumentError
from jmi_models.disk import words
from jmi_sparse.formats.reading.asked import Asked

_LARGEST = 2**31 - 1
_UNUSED = {
    "k": "dictionaries of this kind keep no fixed number of features",
    "norm_factor": "files of this format hold what their inputs were multiplied by, if anything",
}


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields read one by one; what is wrong with them is gathered, and a value that fits stands in."""

    given: Mapping[str, Any]
    problems: list[str]

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.given.get(name)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST:
            return value
        self.problems.append(f"{name} must be a whole number, 1 or more, not {words.value(value)}")
        return 1

    def number(self, name: str, default: float, least: float = 0.0) -> float:
        value = self.given.get(name, default)
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Whole numbers of JSON may be beyond every float.
        if real and least <= value <= sys.float_info.max:
            return float(value)
        self.problems.append(f"{name} must be a number, {least:g} or more, not {words.value(value)}")
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.given.get(name, default)
        if not isinstance(value, bool):
            self.problems.append(f"{name} must be true or false, not {words.value(value)}")
        return value is True

    def word(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.given.get(name, default)
        if value in known:
            return str(value)
        self.problems.append(f"{name} {words.value(value)} is none of {', '.join(known)}")
        return default

    def text(self, holder: Mapping[str, Any], name: str) -> str | None:
        value = holder.get(name)
        if value is None or (isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()):
            return value
        self.problems.append(f"{name} must be a short name, not {words.value(value)}")
        return None

    def dtype(self) -> None:
        value = self.given.get("dtype", "float32")
        if str(value).removeprefix("torch.") not in ("float32", "float64", "float16", "bfloat16"):
            self.problems.append(f"dtype {words.value(value)} is no float that is known")

    def k(self, activation: str, most: int, instead: int | None) -> float | None:
        """How many are kept: a whole number, or a mean that need not be one."""
        if activation not in ("topk", "batch"):
            if instead is not None:
                self.problems.append(f"k={instead} was given, and this kind keeps no fixed number")
            return None
        value = self.given.get("k", 100) if instead is None else instead
        numbers = int if activation == "topk" else (int, float)
        if isinstance(value, numbers) and not isinstance(value, bool) and 0 < value <= most:
            return value
        self.problems.append(f"k must be a number from 1 to d_sae {most}, not {words.value(value)}")
        return 1


def refuse(asked: Asked, *names: str) -> None:
    """ArgumentError where a caller asked for what dictionaries of a format do not have."""
    for name in names:
        if getattr(asked, name) is not None:
            raise ArgumentError(f"{name}={getattr(asked, name)}: {_UNUSED[name]}; leave it out")


def about(**facts: Any) -> str:
    """Metadata of a dictionary: short names and numbers, of those that are known."""
    return json.dumps(
        {
            name: value
            for name, value in facts.items()
            if (isinstance(value, str) and len(value) <= 200 and value.isprintable())
            or (isinstance(value, int) and abs(value) <= _LARGEST)
        }
    )
