"""What the RWKV families share: keys of mixes, and sizes that only the tensors tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jmi_models.disk.layout import Key, groups_of
from jmi_models.disk.tensors import HasShape


def mix_keys(path: str, names: Mapping[str, str], layout: str) -> dict[str, Key]:
    """Keys of token-shift mixes: parameter letter -> tensor name."""
    return {f"{path}.mix_{letter}": Key(name, layout) for letter, name in names.items()}


def fit_ranks(arch: Any, keys: Mapping[str, Key], headers: Mapping[str, HasShape]) -> Any:
    """``arch`` with the ranks that its tensors have, whatever its config says or leaves out."""
    return dataclasses.replace(arch, ranks=tuple((r, _size(r, n, keys, headers)) for r, n in arch.ranks))


def _size(axis: str, usual: int, keys: Mapping[str, Key], headers: Mapping[str, HasShape]) -> int:
    """Size of ``axis`` in the first stored tensor that has it by itself; ``usual`` if there is none."""
    for key in keys.values():
        groups = [axes for axes, _ in groups_of(key.layout)]
        name = key.name.format(i=key.first)
        if (axis,) in groups and name in headers and len(headers[name].shape) == len(groups):
            return headers[name].shape[groups.index((axis,))]
    return usual
