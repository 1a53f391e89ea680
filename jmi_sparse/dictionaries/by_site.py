"""Dictionaries as callers give them: by the site that each reads."""

from collections.abc import Mapping
from typing import Any

from jmi.checks import shown
from jmi.errors import ArgumentError
from jmi.model.sites import layer_name
from jmi_sparse.dictionaries.crosslayer import CrossLayerTranscoder
from jmi_sparse.dictionaries.layered import DictionarySet


def by_site(given: Any) -> dict[str, Any]:
    """``{site: dictionary}``, of a dict or of a dictionary that says itself where it reads.

    Raises:
      ArgumentError: nothing, what is no name of a site, or a dictionary that does not say it.
    """
    if isinstance(given, Mapping):
        found = dict(given)
    elif hasattr(given, "hook_in"):
        found = {given.hook_in: given}
    else:
        found = {}
    if not found:
        raise ArgumentError(
            f"dictionaries={shown(given)}: give a dict, {{site: dictionary}}, or a dictionary"
        )
    for name in found:
        if name is None:
            raise ArgumentError("this dictionary does not say where it reads; give {site: dictionary}")
        if not isinstance(name, str):
            raise ArgumentError(
                f"dictionaries: {shown(name)} is no name of a site; give {{site: dictionary}}"
            )
    return found


def sites_of(name: str, dictionary: Any) -> dict[str, int | None]:
    """The sites that a dictionary under a name reads, each with its layer in a dictionary of several.

    Raises:
      ArgumentError: ``blocks.*`` for one of one layer, or one layer for one of several.
    """
    several = isinstance(dictionary, (DictionarySet, CrossLayerTranscoder))
    if several != ("*" in name):
        raise ArgumentError(
            f"{shown(name)}: a dictionary of one layer reads one site, blocks.3.…, and one of several layers "
            "blocks.*.…"
        )
    return {layer_name(name, layer): layer for layer in dictionary.layers} if several else {name: None}
