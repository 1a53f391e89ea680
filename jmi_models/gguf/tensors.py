"""The tensors of a GGUF file as loading wants them: unpacked, and what the format turned around turned back.

The values are those of the model before it was converted, rounded by its quantisation.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from jmi_models.disk.mapped import contiguous, mapped
from jmi_models.disk.tensors import Box, Stored
from jmi_models.gguf.header import Entry, Header
from jmi_models.gguf.kinds import name_of, unpacked

_ROTARY = re.compile(r"blk\.\d+\.attn_[qk]\.(weight|bias)")
_GAIN = re.compile(r".*norm\.weight")
_ASIDE = re.compile(r"rope_(freqs|factors_(short|long))\.weight|.*\.attn_rot_embd|split\..*")
"""Tensors that are no parameters: what they say of positions is in the config."""


@dataclasses.dataclass(frozen=True)
class Turned:
    """What llama.cpp's converter does to the tensors of an architecture.

    Attributes:
      halves: dimensions of queries and keys are put in pairs, each of the first half of a head followed by
        that of the second with which it turns.
      plus_one: gains of norms are stored plus one.
      rescaled: what is written to the stream is halved once every so many layers, for float16.
    """

    halves: bool = False
    plus_one: bool = False
    rescaled: int = 0


AS_IS = Turned()


def stored_of(header: Header, turned: Turned, d_head: int) -> dict[str, Stored]:
    """Every parameter of the file by its name there, read and turned back when it is asked for."""
    return {
        name: _stored(header, name, entry, turned, d_head)
        for name, entry in header.tensors.items()
        if not _ASIDE.fullmatch(name)
    }


def values(header: Header, name: str) -> np.ndarray:
    """A tensor as it stands in the file."""
    entry = header.tensors[name]
    return _unpacked(header, entry, entry.shape, ())


def _stored(header: Header, name: str, entry: Entry, turned: Turned, d_head: int) -> Stored:
    shape = _shape(name, entry.shape)
    order = None
    if turned.halves and _ROTARY.fullmatch(name) and shape[0] % d_head == 0:
        order = _halves(shape[0], d_head)
    shift = -1.0 if turned.plus_one and _GAIN.fullmatch(name) else 0.0
    line = _rescaling(name, turned.rescaled), shift
    read = functools.partial(_read, header, entry, shape, order, line)
    dtype = entry.kind.name if entry.kind.plain is not None else "F32"
    return Stored(header.file, shape, dtype, read)


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape under which a tensor is known: ggml drops axes of one at the end, and has some in between."""
    if name.endswith("time_mix_lerp_fused.weight"):
        return (math.prod(shape),)
    if name.endswith("ffn_gate_inp_shexp.weight"):
        return (1, math.prod(shape))
    return shape


def _halves(rows: int, d_head: int) -> np.ndarray:
    """Where each row lies in the file, whose heads have pairs (first half, second half) side by side."""
    within = np.arange(d_head).reshape(d_head // 2, 2).T.reshape(-1)
    return (np.arange(0, rows, d_head)[:, None] + within).reshape(-1)


def _rescaling(name: str, every: int) -> float:
    found = re.fullmatch(r"blk\.(\d+)\.(time_mix_output|channel_mix_value)\.weight", name)
    return 2.0 ** (int(found[1]) // every) if every and found else 1.0


def _read(
    header: Header,
    entry: Entry,
    shape: tuple[int, ...],
    order: np.ndarray | None,
    line: tuple[float, float],
    box: Box | None = None,
) -> np.ndarray:
    """A box of a tensor, its rows in ``order``, times the first of ``line`` plus the second."""
    index: tuple[slice | np.ndarray, ...] = tuple(box or ())
    if order is not None:
        index = (order[index[0] if index else slice(None)], *index[1:])
    found = _unpacked(header, entry, shape, index)
    scale, shift = map(np.float32, line)
    return found if line == (1.0, 0.0) else found * scale + shift


def _unpacked(
    header: Header, entry: Entry, shape: tuple[int, ...], box: tuple[slice | np.ndarray, ...]
) -> np.ndarray:
    """A box of a tensor; only whole rows (the last axis) can be unpacked, so these are cut afterwards."""
    row_bytes = shape[-1] // entry.kind.block * entry.kind.n_bytes if shape else entry.kind.n_bytes
    whole = (*shape[:-1], row_bytes)
    raw = mapped(header.file, entry.start, whole, np.dtype(np.uint8), contiguous(whole))
    leading, rest = box[: len(shape) - 1], box[len(shape) - 1 :]
    found = unpacked(np.ascontiguousarray(raw[leading]), entry.kind)
    return found[(..., *rest)] if rest else found


def summary(header: Header) -> str:
    """How tensors are stored, most bytes first: ``Q4_K_M, 100.2 MiB (tensors: Q4_K 108, F32 61)``."""
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for entry in header.tensors.values():
        name = entry.kind.name
        counts[name] = counts.get(name, 0) + 1
        sizes[name] = sizes.get(name, 0) + math.prod(entry.shape) // entry.kind.block * entry.kind.n_bytes
    parts = ", ".join(f"{name} {counts[name]}" for name in sorted(counts, key=lambda name: -sizes[name]))
    named = name_of(header.metadata.get("general.file_type"))
    mixture = f"{named}, " if named else ""
    return f"{mixture}{sum(sizes.values()) / 2**20:.1f} MiB (tensors: {parts})"
