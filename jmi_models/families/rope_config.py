"""Rotary embeddings as Hugging Face configs describe them: ``rope_theta``, ``rope_scaling`` and
``rope_parameters``, in the spellings of every version."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jmi.errors import ConfigError
from jmi_models.decoder.rope import Dynamic, Linear, Llama3, LongRope, Plain, Rope, Scaling, Yarn
from jmi_models.disk import bounds, words

KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
"""Fields of a config that are read here."""

_ANY = ("rope_theta", "partial_rotary_factor", "rope_type", "type", "original_max_position_embeddings")
"""What the object of every scaling may hold."""


def read(
    config: Mapping[str, Any],
    d_head: int,
    default_theta: float = 1e4,
    default_partial: float | None = None,
    default_length: int = 2048,
) -> Rope:
    """Rope of heads of width ``d_head``.

    Args:
      default_theta: base when the config names none.
      default_partial: share of a head that is rotated when the config does not say
        (``partial_rotary_factor``); None for families that rotate whole heads only.
      default_length: ``max_position_embeddings`` when the config does not say.

    Raises:
      ConfigError: an unknown scaling type, parameters that are missing, ill-typed, out of bounds or
        contradictory.
    """
    given = _merged(config)
    theta = _first(given.get("rope_theta"), config.get("rope_theta"), default_theta)
    theta = bounds.positive("rope_theta", theta)
    if theta <= 1:
        raise ConfigError(f"config.json: 'rope_theta' must be above 1, got {theta!r}")
    dim = _rotated(given.get("partial_rotary_factor"), config, d_head, default_partial)
    kind = _kind(given)
    longest = bounds.integer(
        "max_position_embeddings", _first(config.get("max_position_embeddings"), default_length)
    )
    name = "original_max_position_embeddings"
    original = bounds.integer(name, _whole(_first(config.get(name), given.get(name), longest)))
    reader, _ = _READERS[kind]
    if surplus := _unread(given):
        warnings.warn(f"rope scaling '{kind}': fields without effect: {words.some(surplus)}", stacklevel=3)
    try:
        scaling = reader(given, original, longest)
    except KeyError as missing:
        raise ConfigError(f"rope scaling '{kind}' needs {missing} in the config") from None
    _check(kind, scaling, dim)
    return Rope(theta, dim, scaling)


def unread(config: Mapping[str, Any]) -> list[str]:
    """Fields of ``rope_scaling`` and ``rope_parameters`` that their scaling does not read."""
    return _unread(_merged(config))


def scaled(config: Mapping[str, Any]) -> bool:
    """Whether a scaling is asked for."""
    return _kind(_merged(config)) != "default"


def _merged(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_scaling`` and ``rope_parameters`` as one; they may not contradict each other."""
    merged: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        part = config.get(name)
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"config.json: {name} must be an object, got {words.value(part)}")
        part = part or {}
        clash = sorted(k for k in set(part) & set(merged) if part[k] != merged[k])
        if clash:
            raise ConfigError(f"config.json: rope_scaling and rope_parameters differ in {words.some(clash)}")
        merged.update(part)
    return merged


def _kind(given: Mapping[str, Any]) -> str:
    kind = _first(given.get("rope_type"), given.get("type"), "default")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ConfigError(f"rope scaling {words.value(kind)} is not supported; known: {', '.join(_READERS)}")
    return kind


def _unread(given: Mapping[str, Any]) -> list[str]:
    return sorted(
        name for name in set(given) - set(_ANY) - set(_READERS[_kind(given)][1]) if given[name] is not None
    )


def _rotated(share: Any, config: Mapping[str, Any], d_head: int, default: float | None) -> int:
    """Number of rotated dimensions of a head."""
    name = "partial_rotary_factor"
    share = bounds.positive(name, _first(share, config.get(name), default or 1.0))
    if default is None and share != 1:
        raise ConfigError(f"rope: {name}={share} is not supported in this family")
    dim = int(d_head * share)
    if dim % 2 or not 0 < dim <= d_head:
        raise ConfigError(f"rope: {dim} of {d_head} dimensions of a head are rotated; it must be even")
    return dim


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(v for v in values if v is not None)


def _whole(value: Any) -> Any:
    """A length, which some configs write with a decimal point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _optional(given: Mapping[str, Any], name: str, default: float) -> float:
    """A number above zero; absent, null and zero mean the default."""
    return bounds.positive(name, given.get(name) or default)


def _read_linear(given: Mapping[str, Any], original: int, longest: int) -> Linear:
    return Linear(bounds.positive("factor", given["factor"]))


def _read_dynamic(given: Mapping[str, Any], original: int, longest: int) -> Dynamic:
    return Dynamic(bounds.positive("factor", given["factor"]), longest)


def _read_llama3(given: Mapping[str, Any], original: int, longest: int) -> Llama3:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (bounds.positive(name, given[name]) for name in names)
    if low >= high:
        raise ConfigError(
            f"rope scaling 'llama3': low_freq_factor={low} must be below high_freq_factor={high}"
        )
    return Llama3(factor, low, high, original)


def _read_yarn(given: Mapping[str, Any], original: int, longest: int) -> Yarn:
    factor = bounds.positive("factor", given["factor"] or longest / original)
    sharpen = given.get("attention_factor")
    if sharpen is None:
        both = given.get("mscale") and given.get("mscale_all_dim")
        names = ("mscale", "mscale_all_dim")
        top, bottom = (bounds.positive(name, given[name]) for name in names) if both else (1.0, 0.0)
        sharpen = _mscale(factor, top) / _mscale(factor, bottom)
    return Yarn(
        factor,
        original,
        bounds.positive("attention_factor", sharpen),
        _optional(given, "beta_fast", 32.0),
        _optional(given, "beta_slow", 1.0),
        bounds.flag("truncate", given.get("truncate", True)),
    )


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_longrope(given: Mapping[str, Any], original: int, longest: int) -> LongRope:
    factor = bounds.positive("factor", given.get("factor") or longest / original)
    sharpen = given.get("attention_factor")
    if sharpen is None:
        if factor > 1 and original == 1:
            raise ConfigError("rope scaling 'longrope': original_max_position_embeddings must be above 1")
        sharpen = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (_factors(name, given[name]) for name in ("short_factor", "long_factor"))
    return LongRope(short, long, original, bounds.positive("attention_factor", sharpen))


def _factors(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)):
        raise ConfigError(f"config.json: '{name}' must be a list of numbers, got {words.value(values)}")
    return tuple(bounds.positive(name, value) for value in values)


def _check(kind: str, scaling: Scaling, dim: int) -> None:
    """Refuse a scaling that ``dim`` rotated dimensions cannot have, or that leaves no number of float32."""
    if isinstance(scaling, LongRope) and not len(scaling.short) == len(scaling.long) == dim // 2:
        raise ConfigError(f"longrope needs {dim // 2} short and long factors, one per rotary frequency")
    if isinstance(scaling, Dynamic) and dim == 2:
        raise ConfigError("rope scaling 'dynamic' needs more than two rotated dimensions of a head")


_YARN = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
_READERS: Mapping[str, tuple[Callable[[Mapping[str, Any], int, int], Scaling], tuple[str, ...]]] = {
    "default": (lambda given, original, longest: Plain(), ()),
    "linear": (_read_linear, ("factor",)),
    "llama3": (_read_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "dynamic": (_read_dynamic, ("factor",)),
    "yarn": (_read_yarn, _YARN),
    "longrope": (_read_longrope, ("factor", "attention_factor", "short_factor", "long_factor")),
}
"""Scaling type -> its reader, and the fields it reads."""
