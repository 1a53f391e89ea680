"""A checkpoint to stacked parameters, checked before a single weight is read.

Headers are compared with the parameter tree in both directions and every problem is reported at
once. Then tensors stream one by one into stacked arrays on the host, which a CPU takes over as they are, so
that the peak of host memory is the model and a piece of a tensor; for another device the host holds only the
arrays that are being filled. Of several processes each reads only its own bytes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jmi.errors import CheckpointError
from jmi_models.disk import words
from jmi_models.disk.layout import Key, disk_shape
from jmi_models.disk.tensors import Box, Reading, Stored
from jmi_models.disk.words import some
from jmi_models.families.family import AnyArch, Family
from jmi_models.params import flat, nested
from jmi_models.weights.placement import sharding_of
from jmi_models.weights.staging import Staged

_DTYPES = ("F64", "F32", "F16", "BF16")
_SHOWN = 20
_FEW = 1000  # so many problems are told one by one
# Buffers that old checkpoints stored although they follow from the config.
_DERIVED = (r".*\.rotary_emb\.inv_freq",)
# Leading axes of a parameter along which a checkpoint may hold one tensor for each index.
_LEADING = {"n_layers": "{i}", "n_experts": "{e}", "n_heads": "{h}", "n_kv_heads": "{h}"}


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a stored tensor, or a part of it, goes: ``index`` along the leading axes of ``path``."""

    path: str
    key: Key
    index: tuple[int, ...]


Reads = dict[str, list[Target]]
"""Stored name -> what it fills."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One tensor that does not fit: ``kind`` says whether it is missing, surplus, or in shape or dtype."""

    kind: Literal["missing", "surplus", "shape", "dtype"]
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {words.name(self.name)} {self.detail}"


def load_params(
    headers: Mapping[str, Stored],
    arch: AnyArch,
    family: Family,
    dtype: Any,
    mesh: Mesh | None,
    progress: bool,
) -> tuple[AnyArch, dict[str, Any]]:
    """Parameters of ``arch`` from a checkpoint that holds ``headers``, in ``dtype``, placed on ``mesh``.

    Returns:
      The architecture (untied where the checkpoint holds a separate head after all) and the
      parameter pytree.

    Raises:
      CheckpointError: everything missing, surplus, mis-shaped, of a foreign dtype or not finite.
    """
    headers = _as_expected(headers, arch, family)
    arch, aliases = _settle_tying(arch, family, headers, _equal)
    reads = plan_reads(arch, family, aliases)
    _check(_mismatches(reads, arch, family, headers, aliases))
    return arch, _stream(reads, headers, arch, dtype, mesh, progress)


def problems(arch: AnyArch, family: Family, headers: Mapping[str, Stored]) -> list[Problem]:
    """Everything that keeps ``headers`` from being loaded as ``arch``; reads no weights."""
    headers = _as_expected(headers, arch, family)
    # A head that the config ties must have the shape of one, whether or not it equals the embedding.
    arch, aliases = _settle_tying(arch, family, headers, lambda embedding, head: False)
    return _mismatches(plan_reads(arch, family, aliases), arch, family, headers, aliases)


def _as_expected(headers: Mapping[str, Stored], arch: AnyArch, family: Family) -> dict[str, Stored]:
    """``headers`` with full names."""
    _check_extent(arch, family, headers)
    return _with_prefix(headers, family, plan_reads(arch, family, {}))


def _check_extent(arch: AnyArch, family: Family, headers: Mapping[str, Stored]) -> None:
    """Refuse an architecture of far more tensors than there are, before each of them is given a name."""
    keys = family.keys(arch)
    planned = sum(
        math.prod(
            size for axis, size in zip(param.axes, param.shape, strict=True) if _named(axis, keys[path])
        )
        for path, param in flat(arch.param_tree()).items()
    )
    if planned > 2 * len(headers) + _FEW:
        raise CheckpointError(
            f"config.json describes {planned} tensors ({arch.n_layers} layers), but the checkpoint holds "
            f"{len(headers)}; one of the two belongs to another model"
        )


def _named(axis: str, key: Key) -> bool:
    """Whether a checkpoint holds one tensor for each index along ``axis``."""
    return axis in _LEADING and _LEADING[axis] in key.name


def plan_reads(arch: AnyArch, family: Family, aliases: Mapping[str, str]) -> Reads:
    """Every tensor that a checkpoint of ``arch`` holds, with what it fills.

    Args:
      aliases: expected name -> name to read instead.
    """
    keys, reads = family.keys(arch), Reads()
    for path, param in flat(arch.param_tree()).items():
        key = keys[path]
        named = [axis for axis in _LEADING if axis in param.axes and _named(axis, key)]
        for index in np.ndindex(*(param.shape[param.axes.index(axis)] for axis in named)):
            if named and named[0] == "n_layers" and index[0] < key.first:
                continue
            numbers = (i + key.start * (a == "n_layers") for a, i in zip(named, index, strict=True))
            name = key.name.format(
                **dict(zip((_LEADING[a].strip("{}") for a in named), numbers, strict=True))
            )
            reads.setdefault(aliases.get(name, name), []).append(Target(path, key, index))
    return reads


def _with_prefix(headers: Mapping[str, Stored], family: Family, wanted: Reads) -> dict[str, Stored]:
    """``headers`` as a model with a head names them, for checkpoints saved without one."""
    if any(name.startswith(family.prefix) for name in headers):
        return dict(headers)

    def whole(name: str) -> str:
        longer = family.prefix + name
        return longer if name not in wanted and (longer in wanted or _ignored(longer, family)) else name

    return {whole(name): header for name, header in headers.items()}


def _ignored(name: str, family: Family) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in (*_DERIVED, *family.ignored))


def _settle_tying(
    arch: AnyArch,
    family: Family,
    headers: Mapping[str, Stored],
    equal: Callable[[Stored, Stored], bool],
) -> tuple[AnyArch, dict[str, str]]:
    """What to do about a head the config calls tied: (architecture, names to read or to skip).

    As in Hugging Face transformers: a stored head that differs from the embedding stays separate;
    a checkpoint that stores only the head embeds with it.
    """
    keys = family.keys(arch)
    embed, head = keys["embed.W_E"].name, keys["unembed.W_U"].name
    if not arch.tied or head not in headers:
        return arch, {}
    if embed not in headers:
        return arch, {embed: head}
    if headers[embed].shape == headers[head].shape and equal(headers[embed], headers[head]):
        return arch, {head: ""}
    return dataclasses.replace(arch, tied=False), {}


def _equal(one: Stored, other: Stored) -> bool:
    rows = one.shape[0]
    boxes = [(slice(i, min(i + 4096, rows)), slice(None)) for i in range(0, rows, 4096)]
    return one.dtype == other.dtype and all(np.array_equal(one.read(b), other.read(b)) for b in boxes)


def _check(found: list[Problem]) -> None:
    if found:
        raise CheckpointError(
            f"the checkpoint does not fit its config.json ({len(found)} problems):\n  "
            + "\n  ".join(map(str, found[:_SHOWN]))
            + (f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        )


def _mismatches(
    reads: Reads, arch: AnyArch, family: Family, headers: Mapping[str, Stored], aliases: Mapping[str, str]
) -> list[Problem]:
    """Match what is expected with what is stored, strictly both ways."""
    sizes, found = arch.sizes(), []
    for name, targets in reads.items():
        found += _mismatch(name, headers.get(name), disk_shape(targets[0].key, sizes))
    surplus = set(headers) - set(reads) - set(aliases)
    surplus -= {name for name in surplus if _ignored(name, family)}
    return found + [Problem("surplus", name, str(list(headers[name].shape))) for name in sorted(surplus)]


def _mismatch(name: str, header: Stored | None, shape: tuple[int, ...]) -> list[Problem]:
    if header is None:
        return [Problem("missing", name, str(list(shape)))]
    if header.shape != shape:
        return [Problem("shape", name, f"is {list(header.shape)}, expected {list(shape)}")]
    if header.dtype not in _DTYPES:
        return [Problem("dtype", name, f"is {header.dtype}; only {', '.join(_DTYPES)} can be loaded")]
    return []


def _stream(
    reads: Reads,
    headers: Mapping[str, Stored],
    arch: AnyArch,
    dtype: Any,
    mesh: Mesh | None,
    progress: bool,
) -> dict[str, Any]:
    tree, sizes, bad = flat(arch.param_tree()), arch.sizes(), list[str]()
    shardings = {path: sharding_of(param, mesh) for path, param in tree.items()}
    # A parameter is handed over with the last tensor that fills it: a device other than a CPU gets a copy,
    # and the host holds those under way alone.
    last = {target.path: name for name, targets in reads.items() for target in targets}
    staged, params = dict[str, Staged](), dict[str, Any]()

    def stage(path: str) -> Staged:
        if path not in staged:
            staged[path] = Staged(tree[path], dtype, shardings[path])
        return staged[path]

    for name, targets in tqdm(
        reads.items(), "loading weights", unit="tensor", disable=not progress, leave=False
    ):
        read = headers[name].read if len(targets) == 1 else _once(headers[name].read)
        finite = [stage(target.path).fill(read, target.key, sizes, target.index) for target in targets]
        if not all(finite):
            bad.append(name)
        for path in {target.path for target in targets}:
            if last[path] == name:
                params[path] = jax.block_until_ready(staged.pop(path).place())
    if bad:
        raise CheckpointError(f"weights are not finite (NaN or infinite) as {np.dtype(dtype)}: {some(bad)}")
    # A parameter that no layer stores is zero in all of them.
    params |= {path: stage(path).place() for path in set(tree) - set(params)}
    return nested({path: params[path] for path in tree})


def _once(read: Reading) -> Reading:
    """``read`` that gives a box it gave before again: parts of one tensor may need the same."""
    boxes: dict[str, Any] = {}

    def again(box: Box | None = None) -> Any:
        if str(box) not in boxes:
            boxes[str(box)] = read(box)
        return boxes[str(box)]

    return again
