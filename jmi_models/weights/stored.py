"""Tensors on disk: what a model folder holds, known from headers before any data is read.

Safetensors, single or sharded, and on request the legacy ``pytorch_model.bin``, read without torch
and without running the pickle's code (`jmi_models.weights.pickled`).
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jmi.errors import CheckpointError, printable
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.mapped import NUMPY, contiguous, mapped
from jmi_models.disk.tensors import Box, Stored
from jmi_models.disk.words import some
from jmi_models.weights import pickled

INDEX, ADAPTER = "model.safetensors.index.json", "adapter_model.safetensors"
_SINGLE, _BIN, _BIN_INDEX = "model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"

Files = dict[Path, set[str] | None]


def read_headers(folder: Path, pytorch_bin: bool = False) -> dict[str, Stored]:
    """Every tensor of a model folder, by name.

    Args:
      pytorch_bin: take ``pytorch_model.bin`` where there are no safetensors.

    Raises:
      CheckpointError: no weights, or a file that is damaged, missing or outside the folder.
    """
    _check_regular(folder)
    files, read = _files(folder, pytorch_bin)
    headers: dict[str, Stored] = {}
    for file, names in files.items():
        present = read(file)
        lost = sorted((names or set(present)) - set(present))
        if lost:
            raise CheckpointError(
                f"{words.name(file.name)}: the index promises tensors it does not hold: {some(lost)}"
            )
        headers |= {name: present[name] for name in sorted(names or present)}
    return headers


def _files(folder: Path, pytorch_bin: bool) -> tuple[Files, Callable[[Path], dict[str, Stored]]]:
    """Weight files, each with the tensors to take from it (None: all), and what reads their headers."""
    # The kind of the index decides how its shards are read, not their names: one of safetensors that
    # names a pickle must not get it read.
    kinds = [(INDEX, _SINGLE, read_safetensors), (_BIN_INDEX, _BIN, _pickled)]
    # With a single file and an index, transformers reads the single file: the index is of an earlier save.
    for index, single, read in kinds if pytorch_bin else kinds[:1]:
        if (folder / single).is_file():
            return {folder / single: None}, read
        if (folder / index).is_file():
            return _shards(folder, folder / index), read
    # Files of RWKV's author are named after the model, and stand alone.
    for pattern, read in (("*.safetensors", read_safetensors), ("*.pth", _pickled))[
        : 2 if pytorch_bin else 1
    ]:
        alone = sorted(file for file in folder.glob(pattern) if file.name != ADAPTER)
        if len(alone) == 1:
            return {alone[0]: None}, read
    usual = [_BIN for name in (_BIN, _BIN_INDEX) if (folder / name).is_file()]
    if pickles := [*usual, *sorted(file.name for file in folder.glob("*.pth"))]:
        raise CheckpointError(
            f"{folder}: only {pickles[0]}, the pickled format; pass pytorch_bin=True (--pytorch-bin) to read "
            "it (weights only, no code in it is run), or convert it to safetensors"
        )
    others = sorted(p.name for p in folder.iterdir())
    raise CheckpointError(f"{folder}: neither {_SINGLE} nor {INDEX}; found {some(others) or 'nothing'}")


def _check_regular(folder: Path) -> None:
    """Refuse pipes, devices and sockets among the files of a model: reading one may never end."""
    for file in sorted(folder.iterdir()):
        if file.exists() and not file.is_file() and not file.is_dir():
            raise CheckpointError(f"{words.name(file.name)} in {folder} is no regular file; refused")


def _shards(folder: Path, index: Path) -> Files:
    needs = f"{index.name} is not a valid index: it needs a 'weight_map'"
    try:
        weight_map = read_object(index, CheckpointError).get("weight_map")
    except CheckpointError as error:
        raise CheckpointError(f"{needs} ({error})") from None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(needs)
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(file, set()).add(name)
    return {_inside(folder, file): names for file, names in files.items()}


def _inside(folder: Path, file: str) -> Path:
    path = folder / file
    # A name with a directory in it could point anywhere; shards always lie beside their index.
    if Path(file).name != file or file in ("", ".", "..") or "\0" in file or len(file) > 200:
        raise CheckpointError(f"the index names {words.value(file)}, outside the model folder; refused")
    if not path.is_file():
        raise CheckpointError(f"shard {words.name(file)} is missing from {folder}; download the model again")
    return path


def read_safetensors(file: Path) -> dict[str, Stored]:
    """Every tensor of one file; CheckpointError where it is damaged."""
    try:
        # It checks that the header is well formed, fits the file and leaves no byte out.
        with safe_open(file, framework="np"), file.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{words.name(file.name)}: not a readable safetensors file ({printable(error, 500)}); "
            "download it again"
        ) from None
    header.pop("__metadata__", None)
    found = {}
    for name, said in header.items():
        shape, start = tuple(said["shape"]), 8 + size + said["data_offsets"][0]
        read = functools.partial(_read_safetensor, file, name, start, shape, said["dtype"])
        found[name] = Stored(file, shape, said["dtype"], read)
    return found


def _read_safetensor(
    file: Path, name: str, start: int, shape: tuple[int, ...], dtype: str, box: Box | None = None
) -> np.ndarray:
    where = f"{words.name(file.name)}: {words.name(name)}"
    if dtype not in NUMPY:
        raise CheckpointError(f"{where} cannot be read (it is {dtype})")
    try:
        return mapped(file, start, shape, NUMPY[dtype], contiguous(shape))[box or ...]
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{where} cannot be read ({printable(error, 500)})") from None


def _pickled(file: Path) -> dict[str, Stored]:
    return {
        name: Stored(file, tensor.shape, tensor.dtype, functools.partial(pickled.read_tensor, tensor))
        for name, tensor in pickled.read_headers(file).items()
    }
