"""What the registry says of a dictionary, beside what its files say."""

import dataclasses
import warnings
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk import words
from jmi_sparse.dictionaries.layered import DictionarySet
from jmi_sparse.registry.listed import Entry


def checked(made: Any, entry: Entry, asked: str | None) -> Any:
    """A dictionary as it was read, with the hook of the registry where nothing else said one.

    Args:
      asked: the hook that a caller named; it is right.

    Raises:
      ConfigError: the dictionary's files say another hook.
      CheckpointError: layers of it are missing.
    """
    if entry.layers is not None and len(made.layers) != entry.layers:
        raise CheckpointError(
            f"{entry.name} has {entry.layers} layers, and here are {list(made.layers)}; load it where the "
            "hub can be reached"
        )
    if entry.centred:
        warnings.warn(
            f"{entry.name} was trained on a model whose writes to the residual stream have mean 0 over its "
            "width (center_writing_weights); of another model give it x - x.mean(-1, keepdims=True)",
            stacklevel=3,
        )
    if asked is not None or entry.hook is None or made.hook_in == entry.hook:
        return made
    if made.hook_in is not None:
        raise ConfigError(
            f"{entry.name}: its files say that it reads {words.name(made.hook_in)}, and the registry says "
            f"{entry.hook}; pass hook= with the right one"
        )
    return _read_at(made, entry.hook)


def _read_at(made: Any, hook: str) -> Any:
    if isinstance(made, DictionarySet):
        return dataclasses.replace(made, stacked=_read_at(made.stacked, hook))
    return dataclasses.replace(made, hook_in=hook, hook_out=hook if made.kind == "sae" else made.hook_out)
