"""Two runs of a technique: which of them is changed, and which one it is given something of."""

from typing import Any, Literal

Into = Literal["clean", "corrupted"]
"""Which run is changed: "corrupted" (denoising: does it suffice?) or "clean" (noising: is it necessary?)."""


def turned(pair: tuple[Any, Any], into: Into) -> tuple[Any, Any]:
    """(clean, corrupted) as (changed, patched in)."""
    clean, corrupted = pair
    return (clean, corrupted) if into == "clean" else (corrupted, clean)
