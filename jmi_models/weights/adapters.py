"""LoRA adapters as peft writes them, merged into the weights that they stand beside.

A matrix ``W`` becomes ``W + s B A`` with ``s = alpha / r`` (arXiv:2106.09685), or ``alpha / sqrt(r)``
(rank-stabilised, arXiv:2312.03732). It happens as the matrix is read, so nothing is held twice. The sum is
made in float32, or float64 where either has it, before it is cast: peft adds in the dtype of the model.
Only this plain kind is merged; whatever else an adapter asks for is refused.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmi.errors import CheckpointError, ConfigError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.tensors import Box, Stored
from jmi_models.weights.stored import ADAPTER, read_safetensors

CONFIG = "adapter_config.json"

_READ = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("base_model_name_or_path", "init_lora_weights", "bias"),
)
_NEUTRAL = (
    # Which matrices were trained is told by the tensors; the rest is of training.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying"),
)
"""Fields that may have any value. Every other one must be absent or switched off."""

_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the weights as they were; the others (PiSSA, OLoRA ...) change them."""

_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float32, "BF16": np.float32}
_ROWS = 1024
_LEAVE = "adapter=False leaves it out"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is added to the weights of a model.

    Attributes:
      base: the model that it was trained on, as its config names it.
      pairs: module -> its A ``[r, inputs]``, its B ``[outputs, r]`` and their factor.
      transposed: the matrices of the model are stored inputs first (GPT-2).
    """

    base: str | None
    pairs: Mapping[str, tuple[Stored, Stored, float]]
    transposed: bool


def find(folder: Path) -> dict[str, Any] | None:
    """The config of the adapter in ``folder``, if there is one.

    Raises:
      ConfigError: it is there and cannot be read.
    """
    return read_object(folder / CONFIG, ConfigError) if (folder / CONFIG).exists() else None


def base_of(config: Mapping[str, Any]) -> str | None:
    """The model that an adapter was trained on."""
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def read(folder: Path, config: Mapping[str, Any]) -> Adapter:
    """The adapter in ``folder``; its headers only.

    Raises:
      ConfigError: it is none of the plain kind.
      CheckpointError: its tensors are absent, damaged, or not pairs of A and B of one rank.
    """
    _check_plain(config)
    if not (folder / ADAPTER).is_file():
        raise CheckpointError(f"{CONFIG} is here, but {ADAPTER} is not; {_LEAVE}")
    found: dict[str, dict[str, Stored]] = {}
    for name, stored in read_safetensors(folder / ADAPTER).items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(stored.shape) != 2 or stored.dtype not in _DTYPES:
            raise CheckpointError(
                f"{ADAPTER}: {words.name(name)} {list(stored.shape)} {stored.dtype} is not a matrix A or B "
                f"of a plain LoRA; {_LEAVE}"
            )
        found.setdefault(match[1], {})[match[2]] = stored
    if not found:
        raise CheckpointError(f"{ADAPTER} holds no tensors; {_LEAVE}")
    pairs = {module: _pair(module, parts, config) for module, parts in found.items()}
    return Adapter(base_of(config), pairs, _flag(config, "fan_in_fan_out"))


def merged(headers: Mapping[str, Stored], adapter: Adapter) -> dict[str, Stored]:
    """``headers`` in which each matrix that ``adapter`` changes is read with the change.

    Raises:
      CheckpointError: naming a matrix that is not there or of another shape.
    """
    out = dict(headers)
    for module, (a, b, scale) in adapter.pairs.items():
        # A model saved without its head lacks the first part of every name.
        names = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
        name = next((name for name in names if name in headers), None)
        if name is None:
            raise CheckpointError(
                f"{ADAPTER} changes {words.name(module)}, but the model has no tensor "
                f"{words.name(names[0])}; is it an adapter of {words.value(adapter.base)}? {_LEAVE}"
            )
        base, change = headers[name], (b.shape[0], a.shape[1])
        shape = change[::-1] if adapter.transposed else change
        if base.shape != shape or base.dtype not in _DTYPES:
            raise CheckpointError(
                f"{ADAPTER} changes {words.name(name)} by {list(shape)}, but it is {list(base.shape)} "
                f"{base.dtype}; {_LEAVE}"
            )
        wide = np.result_type(*(_DTYPES[stored.dtype] for stored in (base, a, b)))
        read = functools.partial(_read, base, (a, b), scale, adapter.transposed, wide)
        out[name] = Stored(base.file, base.shape, "F64" if wide == np.float64 else "F32", read)
    return out


def _read(
    base: Stored,
    pair: tuple[Stored, Stored],
    scale: float,
    transposed: bool,
    wide: np.dtype,
    box: Box | None = None,
) -> np.ndarray:
    (a, b), (rows, columns) = pair, box or (slice(None), slice(None))
    out = np.array(base.read(box), dtype=wide)
    left, right = (np.asarray(part.read(), wide) for part in ((a, b) if transposed else (b, a)))
    left, right = (left.T, right.T) if transposed else (left, right)
    left, right = left[rows] * wide.type(scale), right[:, columns]
    for start in range(0, len(out), _ROWS):
        out[start : start + _ROWS] += left[start : start + _ROWS] @ right
    return out


def _pair(
    module: str, parts: Mapping[str, Stored], config: Mapping[str, Any]
) -> tuple[Stored, Stored, float]:
    missing = {"A", "B"} - set(parts)
    if missing:
        raise CheckpointError(f"{ADAPTER}: {words.name(module)} has no lora_{missing.pop()}; {_LEAVE}")
    rank = _positive(_of_module(config, "rank_pattern", module, config.get("r", 8)), "r")
    alpha = _positive(_of_module(config, "alpha_pattern", module, config.get("lora_alpha", 8)), "lora_alpha")
    a, b = parts["A"], parts["B"]
    if not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"{ADAPTER}: lora_A of {words.name(module)} is {list(a.shape)} and its lora_B {list(b.shape)}; "
            f"their rank is not {rank:g}, as {CONFIG} says"
        )
    return a, b, alpha / (math.sqrt(rank) if _flag(config, "use_rslora") else rank)


def _of_module(config: Mapping[str, Any], field: str, module: str, usual: Any) -> Any:
    """What a pattern says of ``module``: the end of its name, from a dot on."""
    patterns = config.get(field) or {}
    if not isinstance(patterns, Mapping):
        raise ConfigError(f"{CONFIG}: '{field}' must be an object, got {words.value(patterns)}")
    for pattern, value in patterns.items():
        # A pattern with repetitions could run for ever.
        if not re.fullmatch(r"[\w.^$\\]+", pattern):
            raise ConfigError(f"{CONFIG}: {field} {words.value(pattern)} is not a plain name of modules")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise ConfigError(f"{CONFIG}: {field} {words.value(pattern)} is no pattern") from None
    return usual


def _check_plain(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"{CONFIG}: an adapter of kind {words.value(kind)}; only 'LORA' is merged. {_LEAVE}"
        )
    asked = {name: value for name, value in config.items() if name not in (*_READ, *_NEUTRAL)}
    asked = {name: value for name, value in asked.items() if value not in (None, False, "", [], {})}
    if config.get("bias") not in (None, "none"):
        asked["bias"] = config["bias"]
    if config.get("init_lora_weights") not in _STARTS:
        asked["init_lora_weights"] = config["init_lora_weights"]
    if asked:
        told = ", ".join(
            f"{words.name(name)}={words.value(value)}" for name, value in list(asked.items())[:8]
        )
        raise ConfigError(f"{CONFIG}: {told}: only plain LoRA is merged, A and B alone. {_LEAVE}")


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigError(f"{CONFIG}: '{name}' must be a positive number, got {words.value(value)}")
    return value


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name) or False
    if not isinstance(value, bool):
        raise ConfigError(f"{CONFIG}: '{name}' must be true or false, got {words.value(value)}")
    return value
