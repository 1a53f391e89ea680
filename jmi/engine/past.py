"""What earlier positions leave behind for later ones: of a transformer, keys and values."""

from typing import Any

from jmi.captures.capture import Capture
from jmi.model.architecture import Continuable


def past_points(arch: Any) -> tuple[str, ...]:
    """Points whose values at earlier positions later ones read; none where positions cannot be run alone."""
    return arch.past_points if isinstance(arch, Continuable) else ()


def past_captures(arch: Any) -> dict[str, Capture]:
    """Captures of them in every layer, by label."""
    captures = [Capture(point, label=f"past:{point}") for point in past_points(arch)]
    return {f"past:{each.name}": each for each in captures}
