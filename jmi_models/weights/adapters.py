"""LoRA adapters as peft writes them: what their config and their file say.

Read is the plain kind: a matrix ``W`` becomes ``W + s B A`` with ``s = alpha / r`` (arXiv:2106.09685), or
``alpha / sqrt(r)`` (rank-stabilised, arXiv:2312.03732), for embeddings with A and B the other way round; and
modules that were trained whole (``modules_to_save``) or resized. Whatever else an adapter asks for is
refused.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jmi.errors import CheckpointError, ConfigError
from jmi.reading import read_object
from jmi_models.disk import words
from jmi_models.disk.tensors import Stored
from jmi_models.weights.stored import ADAPTER, read_safetensors

CONFIG = "adapter_config.json"

_READ = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("base_model_name_or_path", "init_lora_weights", "bias", "modules_to_save", "ensure_weight_tying"),
)
_NEUTRAL = (
    # Which matrices were trained is told by the tensors; the rest is of training.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    "runtime_config",
)
"""Fields that may have any value. Every other one must be absent or switched off."""

_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the weights as they were; the others (PiSSA, OLoRA ...) change them."""

_PAIRED = re.compile(r"base_model\.model\.(.+)\.lora_(embedding_)?([AB])(\.weight)?")
_WHOLE = re.compile(r"base_model\.model\.(.+?)(\.base_layer)?\.(weight|bias)")
FLOATS = ("F64", "F32", "F16", "BF16")
LEAVE = "adapter=False leaves it out"


@dataclasses.dataclass(frozen=True)
class Pair:
    """The change of one matrix.

    Attributes:
      a, b: ``[r, inputs]`` and ``[outputs, r]``.
      scale: their factor.
      transposed: the matrix is stored inputs first (GPT-2, embeddings).
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix as it is stored."""
        change = self.b.shape[0], self.a.shape[1]
        return change[::-1] if self.transposed else change


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is done to the weights of a model.

    Attributes:
      base: the model that it was trained on, as its config names it.
      pairs: module -> the change of its matrix.
      whole: tensor -> what replaces it: of modules that were trained whole.
      resized: tensor -> the one of the base model under the adapter, with other rows than it had.
      keeps_tie: an embedding and its tied head change together.
      left_out: how many changes of parts that are not read there were.
    """

    base: str | None
    pairs: Mapping[str, Pair]
    whole: Mapping[str, Stored]
    resized: Mapping[str, Stored]
    keeps_tie: bool
    left_out: int = 0


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
        raise CheckpointError(f"{CONFIG} is here, but {ADAPTER} is not; {LEAVE}")
    trained = _names(config, "modules_to_save")
    paired: dict[str, dict[str, tuple[Stored, bool]]] = {}
    whole, resized = dict[str, Stored](), dict[str, Stored]()
    for name, stored in read_safetensors(folder / ADAPTER).items():
        pair, other = _PAIRED.fullmatch(name), _WHOLE.fullmatch(name)
        if stored.dtype not in FLOATS or (pair is not None and len(stored.shape) != 2):
            pair = other = None
        if pair is not None and (pair[2] is None) == (pair[4] is None):
            pair = None
        if pair is not None:
            paired.setdefault(pair[1], {})[pair[3]] = stored, pair[2] is not None
        elif other is not None and _is_of(other[1], trained):
            whole[f"{other[1]}.{other[3]}"] = stored
        elif other is not None and other[3] == "weight" and len(stored.shape) == 2:
            resized[f"{other[1]}.weight"] = stored
        else:
            raise CheckpointError(
                f"{ADAPTER}: {words.name(name)} {list(stored.shape)} {stored.dtype} is not a matrix A or B "
                f"of a plain LoRA, nor of a module in modules_to_save; {LEAVE}"
            )
    for module in trained:
        if not any(_is_of(name.rpartition(".")[0], [module]) for name in whole):
            raise CheckpointError(
                f"{CONFIG}: modules_to_save names {words.name(module)}, but {ADAPTER} holds no tensor of it; "
                f"{LEAVE}"
            )
    if not (paired or whole):
        raise CheckpointError(f"{ADAPTER} holds no tensors; {LEAVE}")
    pairs = {module: _pair(module, parts, config) for module, parts in paired.items()}
    return Adapter(base_of(config), pairs, whole, resized, _flag(config, "ensure_weight_tying"))


def renamed(adapter: Adapter, rename: Callable[[str], str | None]) -> Adapter:
    """``adapter`` of a model that has other names, without what it changes beside that."""

    def of(named: Mapping[str, Any], end: str) -> dict[str, Any]:
        pairs = ((rename(f"{name}{end}"), value) for name, value in named.items())
        return {new.removesuffix(end): value for new, value in pairs if new is not None}

    pairs, whole, resized = of(adapter.pairs, ".weight"), of(adapter.whole, ""), of(adapter.resized, "")
    given = len(adapter.pairs) + len(adapter.whole) + len(adapter.resized)
    left_out = given - len(pairs) - len(whole) - len(resized)
    return dataclasses.replace(adapter, pairs=pairs, whole=whole, resized=resized, left_out=left_out)


def _pair(module: str, parts: Mapping[str, tuple[Stored, bool]], config: Mapping[str, Any]) -> Pair:
    missing = {"A", "B"} - set(parts)
    if missing:
        raise CheckpointError(f"{ADAPTER}: {words.name(module)} has no lora_{missing.pop()}; {LEAVE}")
    rank = _positive(_of_module(config, "rank_pattern", module, config.get("r", 8)), "r")
    alpha = _positive(_of_module(config, "alpha_pattern", module, config.get("lora_alpha", 8)), "lora_alpha")
    (a, embedding), (b, other) = parts["A"], parts["B"]
    if embedding != other or not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"{ADAPTER}: lora_A of {words.name(module)} is {list(a.shape)} and its lora_B {list(b.shape)}; "
            f"their rank is not {rank:g}, as {CONFIG} says"
        )
    scale = alpha / (math.sqrt(rank) if _flag(config, "use_rslora") else rank)
    return Pair(a, b, scale, embedding or _flag(config, "fan_in_fan_out"))


def _is_of(module: str, trained: list[str]) -> bool:
    """Whether ``module`` is one of ``trained`` or inside one; as in peft, the end of a name stands for it."""
    parts = module.split(".")
    return any(".".join(parts[:i]).endswith(name) for i in range(1, len(parts) + 1) for name in trained)


def _names(config: Mapping[str, Any], field: str) -> list[str]:
    names = config.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{CONFIG}: '{field}' must be a list of modules, got {words.value(names)}")
    return names


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
        raise ConfigError(f"{CONFIG}: an adapter of kind {words.value(kind)}; only 'LORA' is read. {LEAVE}")
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
        raise ConfigError(f"{CONFIG}: {told}: only plain LoRA is read, A and B alone. {LEAVE}")


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigError(f"{CONFIG}: '{name}' must be a positive number, got {words.value(value)}")
    return value


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name) or False
    if not isinstance(value, bool):
        raise ConfigError(f"{CONFIG}: '{name}' must be true or false, got {words.value(value)}")
    return value
