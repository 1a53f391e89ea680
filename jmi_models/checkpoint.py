"""Safetensors on disk to stacked parameters, checked before a single weight is read.

Headers are compared with the parameter tree in both directions and every problem is reported at
once. Then tensors stream one by one into preallocated stacked arrays on the device, so that the
peak of host memory is the model plus one tensor.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from jmi.errors import CheckpointError
from jmi_models.families.family import Family
from jmi_models.layout import disk_shape, from_disk
from jmi_models.params import Param, flat, nested
from jmi_models.placement import sharding_of
from jmi_models.transformer import Transformer

_DTYPES = ("F64", "F32", "F16", "BF16")
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Read:
    """One planned read: tensor ``name`` into ``path``, at ``layer`` when stacked."""

    name: str
    path: str
    layer: int | None
    layout: str


def load_params(
    folder: Path, arch: Transformer, family: Family, dtype: Any, mesh: Mesh | None, progress: bool
) -> tuple[Transformer, dict[str, Any]]:
    """Parameters of ``arch`` from the safetensors in ``folder``, in ``dtype``, placed on ``mesh``.

    Returns:
      The architecture (untied where the checkpoint holds a separate head after all) and the
      parameter pytree.

    Raises:
      CheckpointError: everything missing, surplus, mis-shaped, of a foreign dtype or not finite.
    """
    headers = read_headers(folder)
    arch, aliases = _settle_tying(arch, family, headers)
    reads = plan_reads(arch, family, headers, aliases)
    return arch, _stream(reads, headers, flat(arch.param_tree()), dtype, mesh, progress)


def read_headers(folder: Path) -> dict[str, Header]:
    """Name -> `Header` of every tensor, from the index file or the safetensors files themselves."""
    headers: dict[str, Header] = {}
    for file, names in _files(folder).items():
        with _open(file) as tensors:
            present = set(tensors.keys())
            lost = sorted((names or present) - present)
            if lost:
                raise CheckpointError(
                    f"{file.name}: the index promises tensors it does not hold: {_some(lost)}"
                )
            for name in sorted(names or present):
                view = tensors.get_slice(name)
                headers[name] = Header(file, tuple(view.get_shape()), view.get_dtype())
    return headers


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors to take from it (None: all)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
            files: dict[Path, set[str] | None] = {}
            for name, file in weight_map.items():
                files.setdefault(_inside(folder, file), set()).add(name)  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index.name} is not a valid index: it needs a 'weight_map'") from None
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    others = sorted(p.name for p in folder.glob("*.bin")) or sorted(p.name for p in folder.iterdir())
    raise CheckpointError(
        f"{folder}: neither model.safetensors nor model.safetensors.index.json; "
        f"found {_some(others) or 'nothing'}"
    )


def _inside(folder: Path, file: str) -> Path:
    path = folder / file
    # A name with a directory in it could point anywhere; shards always lie beside their index.
    if Path(file).name != file or file in ("", ".", ".."):
        raise CheckpointError(f"the index names {file!r}, outside the model folder; refused")
    if not path.is_file():
        raise CheckpointError(f"shard {file} is missing from {folder}; download the model again")
    return path


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file.name}: not a readable safetensors file ({error}); download it again"
        ) from None


def _settle_tying(
    arch: Transformer, family: Family, headers: Mapping[str, Header]
) -> tuple[Transformer, dict[str, str]]:
    """What to do about a head the config calls tied: (architecture, names to read or to skip).

    As in Hugging Face transformers: a stored head that differs from the embedding stays separate;
    a checkpoint that stores only the head embeds with it.
    """
    embed, head = family.keys["embed.W_E"].name, family.keys["unembed.W_U"].name
    if not arch.tied or head not in headers:
        return arch, {}
    if embed not in headers:
        return arch, {embed: head}
    if headers[embed].shape == headers[head].shape and _equal(headers, embed, head):
        return arch, {head: ""}
    return dataclasses.replace(arch, tied=False), {}


def _equal(headers: Mapping[str, Header], one: str, other: str) -> bool:
    with _open(headers[one].file) as a, _open(headers[other].file) as b:
        first, second = a.get_slice(one), b.get_slice(other)
        rows = headers[one].shape[0]
        spans = [slice(i, min(i + 4096, rows)) for i in range(0, rows, 4096)]
        return all(np.array_equal(first[span], second[span]) for span in spans)


def plan_reads(
    arch: Transformer, family: Family, headers: Mapping[str, Header], aliases: Mapping[str, str]
) -> list[Read]:
    """Match the parameter tree with the checkpoint, strictly both ways.

    Args:
      aliases: expected name -> name to read instead; stored name -> "" for one to skip.

    Raises:
      CheckpointError: listing every mismatch.
    """
    reads, problems = [], []
    for path, param in flat(arch.param_tree()).items():
        key = family.keys[path]
        for layer in range(arch.n_layers) if param.axes[0] == "n_layers" else (None,):
            name = key.name.format(i=layer)
            name = aliases.get(name, name)
            reads.append(Read(name, path, layer, key.layout))
            problems += _mismatch(name, headers.get(name), disk_shape(param, key.layout))
    surplus = set(headers) - {read.name for read in reads} - set(aliases)
    surplus -= {name for name in surplus if any(re.fullmatch(p, name) for p in family.ignored)}
    problems += [f"surplus: {name} {list(headers[name].shape)}" for name in sorted(surplus)]
    if problems:
        raise CheckpointError(
            f"the checkpoint does not fit its config.json ({len(problems)} problems):\n  "
            + "\n  ".join(problems[:_SHOWN])
            + (f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
        )
    return reads


def _mismatch(name: str, header: Header | None, shape: tuple[int, ...]) -> list[str]:
    if header is None:
        return [f"missing: {name} {list(shape)}"]
    if header.shape != shape:
        return [f"shape: {name} is {list(header.shape)}, expected {list(shape)}"]
    if header.dtype not in _DTYPES:
        return [f"dtype: {name} is {header.dtype}; only {', '.join(_DTYPES)} can be loaded"]
    return []


def _stream(
    reads: list[Read],
    headers: Mapping[str, Header],
    tree: Mapping[str, Param],
    dtype: Any,
    mesh: Mesh | None,
    progress: bool,
) -> dict[str, Any]:
    stacked = {path: param for path, param in tree.items() if param.axes[0] == "n_layers"}
    shardings = {path: sharding_of(param, mesh) for path, param in tree.items()}
    params: dict[str, Any] = {p: _empty(param.shape, dtype, shardings[p]) for p, param in stacked.items()}
    finite: dict[str, bool] = {}
    files = {header.file: _open(header.file) for header in headers.values()}
    for read in tqdm(reads, "loading weights", unit="tensor", disable=not progress, leave=False):
        value = _read(files[headers[read.name].file], headers[read.name].file, read.name)
        convert, place = _compiled(tree[read.path], read.layout, np.dtype(dtype), shardings[read.path])
        # Waiting here keeps one tensor in flight, and its host copy is dropped before it is converted.
        value = jax.block_until_ready(jax.device_put(value))
        value, ok = convert(value)
        finite[read.name] = bool(ok)
        layer = np.int32(read.layer or 0)
        params[read.path] = place(params[read.path], value, layer) if read.path in stacked else value
    bad = [name for name, ok in finite.items() if not ok]
    if bad:
        raise CheckpointError(f"weights are not finite (NaN or infinite) as {np.dtype(dtype)}: {_some(bad)}")
    return nested(params)


def _read(tensors: Any, file: Path, name: str) -> np.ndarray:
    try:
        return tensors.get_tensor(name)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{file.name}: {name} cannot be read ({error})") from None


def _empty(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.cache
def _compiled(
    param: Param, layout: str, dtype: np.dtype, sharding: NamedSharding | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``tensor -> (layer of the parameter, is finite)`` and ``(array, layer, index) -> array``.

    Two programs, because one that transposes and writes into the stack is an order of magnitude
    slower on CPU: the transpose is then fused into a strided loop.
    """
    row = sharding
    if sharding is not None and param.axes[0] == "n_layers":
        row = NamedSharding(sharding.mesh, jax.P(*sharding.spec[1:]))

    def convert(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = from_disk(value, param, layout).astype(dtype)
        return value, jnp.isfinite(value).all()

    def place(array: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(array, value, index, 0)

    # The array is donated: it is filled in place, never held twice.
    return (
        jax.jit(convert, out_shardings=(row, None)),
        jax.jit(place, donate_argnums=0, out_shardings=sharding),
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
