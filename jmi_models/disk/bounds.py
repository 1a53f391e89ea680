"""Numbers that files give, within bounds: what no model has is refused before anything is computed with it.

The bounds are those of the arithmetic, not of taste: float32 holds nothing beyond them, and positions are
counted in int32.
"""

import math
from typing import Any

from jmi.errors import ConfigError
from jmi_models.disk import words

TINY, HUGE = 1e-30, 1e30
MOST = 2**31 - 1
MOST_LAYERS = 10_000
"""Many times as deep as any model; each layer is planned by itself."""


def integer(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """``value`` if it is an integer from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "a positive integer" if least == 1 else f"an integer from {least} on"
        raise ConfigError(f"config.json: '{name}' must be {kind}, got {words.value(value)}")
    if value > most:
        raise ConfigError(f"config.json: '{name}' must be at most {most}, got {words.value(value)}")
    return value


def number(name: str, value: Any) -> float:
    """``value`` if it is a number within the range of float32."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"config.json: '{name}' must be a number, got {words.value(value)}")
    if not -HUGE <= value <= HUGE:
        raise ConfigError(f"config.json: '{name}' must be a finite number, got {words.value(value)}")
    return float(value)


def positive(name: str, value: Any, least: float = TINY, most: float = HUGE) -> float:
    """``value`` if it is a number above zero, from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"config.json: '{name}' must be a positive number, got {words.value(value)}")
    if not least <= value <= most:
        raise ConfigError(
            f"config.json: '{name}' must be between {least:g} and {most:g}, got {words.value(value)}"
        )
    return float(value)


def flag(name: str, value: Any) -> bool:
    """``value`` if it is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: '{name}' must be true or false, got {words.value(value)}")
    return value
