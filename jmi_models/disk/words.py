"""What files say, put into messages: bounded in length, and with nothing that a terminal would obey."""

import re
import reprlib
from collections.abc import Iterable
from typing import Any

_SHOWN, _LONGEST = 20, 120

_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist = 4, 8, 8
_short.maxstring, _short.maxother, _short.maxlong = _LONGEST, _LONGEST, 40


def value(given: Any) -> str:
    """``given`` by its `repr`, cut short where it is long or deep."""
    return _short.repr(given)


def name(given: Any) -> str:
    """A name as it is, or by its `repr` where it is not made of letters, digits and the usual marks."""
    plain = isinstance(given, str) and len(given) <= _LONGEST and re.fullmatch(r"[\w.+/\-]+", given, re.ASCII)
    return given if plain else value(given)


def some(names: Iterable[Any]) -> str:
    """The first of ``names`` in words."""
    all_of = list(names)
    more = f" and {len(all_of) - _SHOWN} more" if len(all_of) > _SHOWN else ""
    return ", ".join(map(name, all_of[:_SHOWN])) + more
