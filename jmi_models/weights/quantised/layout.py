"""What every way to store a matrix in few bits has: the tensors it takes, and how rows of it are read."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError
from jmi_models.disk import words
from jmi_models.disk.tensors import Box, Stored

Parts = Mapping[str, Stored]
"""End of a name -> the tensor of that name."""

Config = Mapping[str, Any]
"""``quantization_config`` of a ``config.json``."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to store a matrix as several tensors, told apart by the ends of their names.

    Attributes:
      mark: of the tensor by which a matrix stored so is known.
      gives: of the matrix that they stand for.
      read: its parts, by their ends -> the matrix, read in float32; raises CheckpointError saying what does
        not fit.
      needs, may: of the others that there must be, and of those that there may be.
    """

    mark: str
    gives: str
    read: Callable[[Parts], Stored]
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """What a ``quant_method`` means.

    Attributes:
      layouts: its config -> the ways in which its matrices may be stored; ConfigError for a variant that is
        not read.
      told: its config -> the variant, in words.
    """

    layouts: Callable[[Config], tuple[Layout, ...]]
    told: Callable[[Config], str]


def by_rows(like: Stored, shape: tuple[int, int], decode: Callable[[int, int], np.ndarray]) -> Stored:
    """A matrix of ``shape``, outputs first, of which ``decode(start, stop)`` gives rows in float32."""
    return Stored(like.file, shape, "F32", functools.partial(_read_rows, shape, decode))


def _read_rows(
    shape: tuple[int, int], decode: Callable[[int, int], np.ndarray], box: Box | None = None
) -> np.ndarray:
    rows, columns = (*(box or ()), slice(None), slice(None))[:2]
    start, stop, _ = rows.indices(shape[0])
    return decode(start, max(start, stop))[:, columns]


def matrix_shape(stored: Stored, what: str) -> tuple[int, int]:
    """The shape of a tensor, found to be a matrix."""
    if len(stored.shape) != 2:
        raise CheckpointError(f"{what} {list(stored.shape)} are not those of a matrix")
    return stored.shape[0], stored.shape[1]


def check(stored: Stored, what: str, shape: tuple[int, ...], *dtypes: str) -> None:
    """Raise CheckpointError where a part is of another shape or dtype."""
    if dtypes and stored.dtype not in dtypes:
        raise CheckpointError(f"{what} are {stored.dtype}, not {' or '.join(dtypes)}")
    if stored.shape != shape:
        raise CheckpointError(f"{what} are {list(stored.shape)}, expected {list(shape)}")


def floats(values: np.ndarray) -> np.ndarray:
    """``values`` in float32; those of one byte by a table, several times as fast as one by one."""
    values = np.asarray(values)
    if values.dtype.itemsize > 1:
        return values.astype(np.float32)
    table = np.arange(256, dtype=np.uint8).view(values.dtype).astype(np.float32)
    return table[values.view(np.uint8)]


def unpacked(packed: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Unsigned numbers of ``bits`` bits; each int32 holds several along ``axis``, the first lowest."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words_of = np.expand_dims(np.asarray(packed).view(np.uint32), axis + 1)
    shape = [1] * words_of.ndim
    shape[axis + 1] = len(shifts)
    found = (words_of >> shifts.reshape(shape)) & np.uint32(2**bits - 1)
    lengths = list(packed.shape)
    lengths[axis] *= len(shifts)
    return found.reshape(lengths)


def only(config: Config, field: str, *values: Any, why: str = "only") -> Any:
    """A field of a config that must have one of ``values``, the first where it is left out.

    Raises:
      ConfigError: naming the method and the fix.
    """
    given = config.get(field)
    given = values[0] if given is None else given
    if given not in values or isinstance(given, bool) != isinstance(values[values.index(given)], bool):
        raise refused(config, f"{field}={words.value(given)}, {why} {' or '.join(map(repr, values))}")
    return given


def group_size(config: Config, default: int) -> int:
    """The number of inputs that share a scale; 0 for all."""
    given = config.get("group_size", default)
    if given is None or given == -1:
        return 0
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise refused(config, f"group_size={words.value(given)}, only whole numbers or -1")
    return given


def refused(config: Config, why: str) -> ConfigError:
    """The error of weights that are not read."""
    return ConfigError(
        f"weights quantised with {words.value(method_of(config))} are not supported where {why}; use the "
        "full-precision model"
    )


def method_of(config: Any) -> Any:
    """The ``quant_method`` of a config."""
    if not isinstance(config, Mapping):
        return config
    if "quant_method" not in config and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return "bitsandbytes"
    return config.get("quant_method", "unknown")
