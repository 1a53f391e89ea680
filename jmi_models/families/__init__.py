"""The families jmi knows, by Hugging Face ``model_type``."""

import difflib
from collections.abc import Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.families.family import Family
from jmi_models.families.llama import LLAMA

FAMILIES: Mapping[str, Family] = {family.name: family for family in (LLAMA,)}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a ``config.json`` belongs to; ConfigError names the supported ones."""
    kind = str(config.get("model_type"))
    if kind in FAMILIES:
        return FAMILIES[kind]
    near = difflib.get_close_matches(kind, FAMILIES, n=1)
    hint = f" (nearest: {near[0]})" if near else ""
    raise ConfigError(f"model_type {kind!r} is not supported{hint}; supported: {', '.join(FAMILIES)}")
