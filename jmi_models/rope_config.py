"""Rotary embeddings as Hugging Face configs describe them: ``rope_theta``, ``rope_scaling`` and
``rope_parameters``, in the spellings of every version."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.rope import Dynamic, Linear, Llama3, LongRope, Plain, Rope, Scaling, Yarn

KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
"""Fields of a config that are read here."""


def read(
    config: Mapping[str, Any], d_head: int, default_theta: float = 1e4, default_partial: float | None = None
) -> Rope:
    """Rope of heads of width ``d_head``.

    Args:
      default_theta: base when the config names none.
      default_partial: share of a head that is rotated when the config does not say
        (``partial_rotary_factor``); None for families that rotate whole heads only.

    Raises:
      ConfigError: an unknown scaling type, parameters that are missing, ill-typed or contradictory.
    """
    given = _merged(config)
    theta = _first("rope_theta", given.pop("rope_theta", None), config.get("rope_theta"), default_theta)
    dim = _rotated(given.pop("partial_rotary_factor", None), config, d_head, default_partial)
    kinds = [given.pop(name, None) for name in ("rope_type", "type")]
    kind = next((k for k in kinds if k is not None), "default")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ConfigError(f"rope scaling '{kind}' is not supported; known: {', '.join(_READERS)}")
    longest = int(_first("max_position_embeddings", config.get("max_position_embeddings"), 2048))
    name = "original_max_position_embeddings"
    original = int(_first(name, config.get(name), given.pop(name, None), longest))
    reader, fields = _READERS[kind]
    unread = sorted(set(given) - set(fields))
    if unread:
        warnings.warn(f"rope scaling '{kind}': fields without effect: {', '.join(unread)}", stacklevel=3)
    try:
        scaling = reader(given, original, longest)
    except KeyError as missing:
        raise ConfigError(f"rope scaling '{kind}' needs {missing} in the config") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"rope scaling '{kind}': {error}") from None
    if isinstance(scaling, LongRope) and not len(scaling.short) == len(scaling.long) == dim // 2:
        raise ConfigError(f"longrope needs {dim // 2} short and long factors, one per rotary frequency")
    return Rope(theta, dim, scaling)


def _merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_scaling`` and ``rope_parameters`` as one; they may not contradict each other."""
    merged: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        part = config.get(name) or {}
        if not isinstance(part, Mapping):
            raise ConfigError(f"config.json: {name} must be an object, got {part!r}")
        clash = sorted(k for k in set(part) & set(merged) if part[k] != merged[k])
        if clash:
            raise ConfigError(f"config.json: rope_scaling and rope_parameters differ in {', '.join(clash)}")
        merged.update(part)
    return merged


def _rotated(share: Any, config: Mapping[str, Any], d_head: int, default: float | None) -> int:
    """Number of rotated dimensions of a head."""
    share = _first("partial_rotary_factor", share, config.get("partial_rotary_factor"), default or 1.0)
    if default is None and share != 1:
        raise ConfigError(f"rope: partial_rotary_factor={share} is not supported in this family")
    dim = int(d_head * share)
    if dim % 2 or not 0 < dim <= d_head:
        raise ConfigError(f"rope: {dim} of {d_head} dimensions of a head are rotated; it must be even")
    return dim


def _first(name: str, *values: Any) -> float:
    """The first value that is not None, as a positive number."""
    return _positive(name, next(v for v in values if v is not None))


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"config.json: '{name}' must be a positive number, got {value!r}")
    return float(value)


def _read_llama3(given: dict[str, Any], original: int, longest: int) -> Llama3:
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    return Llama3(_positive("factor", given["factor"]), low, high, original)


def _read_yarn(given: dict[str, Any], original: int, longest: int) -> Yarn:
    factor = _positive("factor", given["factor"] or longest / original)
    sharpen = given.get("attention_factor")
    if sharpen is None:
        both = given.get("mscale") and given.get("mscale_all_dim")
        top, bottom = (given["mscale"], given["mscale_all_dim"]) if both else (1.0, 0.0)
        sharpen = _mscale(factor, top) / _mscale(factor, bottom)
    fast, slow = given.get("beta_fast") or 32.0, given.get("beta_slow") or 1.0
    return Yarn(factor, original, float(sharpen), fast, slow, given.get("truncate", True))


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _factors(values: Any) -> tuple[float, ...]:
    return tuple(_positive("short_factor and long_factor", value) for value in values)


def _read_longrope(given: dict[str, Any], original: int, longest: int) -> LongRope:
    factor = _positive("factor", given.get("factor") or longest / original)
    sharpen = given.get("attention_factor")
    if sharpen is None:
        sharpen = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(_factors(given["short_factor"]), _factors(given["long_factor"]), original, float(sharpen))


_YARN = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_READERS: Mapping[str, tuple[Callable[[dict[str, Any], int, int], Scaling], tuple[str, ...]]] = {
    "default": (lambda given, original, longest: Plain(), ()),
    "linear": (lambda given, original, longest: Linear(_positive("factor", given["factor"])), ("factor",)),
    "llama3": (_read_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "dynamic": (
        lambda given, original, longest: Dynamic(_positive("factor", given["factor"]), longest),
        ("factor",),
    ),
    "yarn": (_read_yarn, _YARN),
    "longrope": (_read_longrope, ("factor", "attention_factor", "short_factor", "long_factor")),
}
"""Scaling type -> its reader, and the fields it reads."""
