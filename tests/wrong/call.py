"""What a good call of an entry point is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jmi import metrics

PARIS, MADRID = 1809, 1724
POINT, SCORES, PATTERN = (
    "blocks.2.hook_mlp_out",
    "blocks.2.attn.hook_attn_scores",
    "blocks.2.attn.hook_pattern",
)


@dataclasses.dataclass(frozen=True)
class Call:
    """An entry point.

    Attributes:
      name: of it.
      function: takes arguments by name.
      good: arguments of a right call.
      kinds: argument -> its kind (`tests.wrong.values.KINDS`); with "?" None is fine, too.
    """

    name: str
    function: Callable[..., Any]
    good: Mapping[str, Any]
    kinds: Mapping[str, str]


DIFF = metrics.LogitDiff(PARIS, MADRID)
MODEL = {"arch": "architecture", "params": "weights"}
