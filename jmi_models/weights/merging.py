"""An adapter merged into the weights that it stands beside.

It happens as a matrix is read, so nothing is held twice. The sum is made in float32, or float64 where either
has it, before it is cast: peft adds in the dtype of the model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.tensors import Box, Stored
from jmi_models.weights.adapters import ADAPTER, FLOATS, LEAVE, Adapter, Pair

_ROWS = 1024

Headers = Mapping[str, Stored]


def replaced(headers: Headers, adapter: Adapter) -> dict[str, Stored]:
    """``headers`` with the tensors that ``adapter`` holds whole in place of the model's."""
    # A tied head has no tensor of its own until it is trained by itself.
    found = {named(headers, name) or name: stored for name, stored in _all_whole(adapter).items()}
    return {**headers, **found}


def resized(config: Mapping[str, Any], headers: Headers, adapter: Adapter) -> Mapping[str, Any]:
    """``config`` with the number of tokens of an adapter whose embeddings were resized with it."""
    vocab = config.get("vocab_size")
    for name, stored in _all_whole(adapter).items():
        base = headers.get(named(headers, name) or "")
        if base is not None and base.shape[:1] == (vocab,) != stored.shape[:1] != ():
            return {**config, "vocab_size": stored.shape[0]}
    return config


def merged(headers: Headers, adapter: Adapter, embed: str, head: str) -> dict[str, Stored]:
    """``headers`` in which each matrix that ``adapter`` changes is read with the change.

    Args:
      embed, head: names of the embedding and of its head, which may be tied. As in peft, what is done to one
        of the two is not done to the other, unless the adapter says that they stay tied.

    Raises:
      CheckpointError: naming a matrix that is not there or of another shape.
    """
    for name in adapter.resized:
        if name not in (embed, head):
            raise CheckpointError(
                f"{ADAPTER} holds {words.name(name)} whole, which is neither the embedding nor its head nor "
                f"in modules_to_save; {LEAVE}"
            )
    out = replaced(headers, adapter)
    embed, before = named(out, embed) or embed, dict(out)
    if named(out, head) is None and embed in headers and not adapter.keeps_tie:
        untrained = replaced(headers, dataclasses.replace(adapter, whole={}))[embed]
        before[head] = untrained
        changed = [*adapter.whole, *(f"{module}.weight" for module in adapter.pairs)]
        if any(named(out, name) == embed for name in changed):
            out[head] = untrained
    for module, pair in adapter.pairs.items():
        found = named(before, f"{module}.weight")
        if found is None:
            raise CheckpointError(
                f"{ADAPTER} changes {words.name(module)}, but the model has no tensor "
                f"{words.name(module)}.weight; is it an adapter of {words.value(adapter.base)}? {LEAVE}"
            )
        out[found] = _changed(found, before[found], pair)
    return out


def _all_whole(adapter: Adapter) -> Headers:
    return {**adapter.resized, **adapter.whole}


def named(headers: Headers, name: str) -> str | None:
    """``name`` as the model has it: one saved without its head lacks the first part of every name."""
    return next((each for each in (name, name.partition(".")[2]) if each in headers), None)


def _changed(name: str, base: Stored, pair: Pair) -> Stored:
    if base.shape != pair.shape or base.dtype not in FLOATS:
        raise CheckpointError(
            f"{ADAPTER} changes {words.name(name)} by {list(pair.shape)}, but it is {list(base.shape)} "
            f"{base.dtype}; {LEAVE}"
        )
    wide = "F64" if "F64" in (base.dtype, pair.a.dtype, pair.b.dtype) else "F32"
    read = functools.partial(_read, base, pair, np.float64 if wide == "F64" else np.float32)
    return dataclasses.replace(base, dtype=wide, read=read)


def _read(base: Stored, pair: Pair, wide: Any, box: Box | None = None) -> np.ndarray:
    rows, columns = (*(box or ()), slice(None), slice(None))[:2]
    out = np.array(base.read(box), dtype=wide)
    a, b = (np.asarray(part.read(), wide) for part in (pair.a, pair.b))
    left, right = (a.T, b.T) if pair.transposed else (b, a)
    left, right = left[rows] * wide(pair.scale), right[:, columns]
    for start in range(0, len(out), _ROWS):
        out[start : start + _ROWS] += left[start : start + _ROWS] @ right
    return out
