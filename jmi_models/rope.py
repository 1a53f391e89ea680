"""Rotary position embedding and its scalings.

Axis letters: b batch, s sequence, h heads, k head width, f = k/2 frequencies.

The angle of frequency f at position p is ``p * inv_freq[f]``; the first half of a head is rotated
against the second (the half-split layout of Hugging Face checkpoints). Frequencies are computed in
float64 on the host and angles in at least float32, in bfloat16 models too: bfloat16 cannot even
tell position 257 from 256. Formulas: RoFormer (arXiv:2104.09864), Llama 3.1, YaRN
(arXiv:2309.00071), LongRoPE (arXiv:2402.13753), as implemented in Hugging Face transformers.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import ConfigError
from jmi.numerics import wide


class Scaling(Protocol):
    """How frequencies change for contexts longer than those trained on."""

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        """Inverse frequencies ``[f]``, or ``[b, f]`` where they depend on ``length`` ``[b]``."""
        ...

    @property
    def attention_factor(self) -> float:
        """Multiplies cosine and sine."""
        ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """No scaling."""

    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        return _plain(theta, dim)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions divided by ``factor``."""

    factor: float
    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        return _plain(theta, dim) / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Long wavelengths divided by ``factor``, short ones kept, a smooth mix between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original: int
    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        plain = _plain(theta, dim)
        turns = self.original * plain / (2 * math.pi)
        mix = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        mix = np.clip(mix, 0, 1)
        return plain * mix + plain / self.factor * (1 - mix)


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """NTK-aware: the base grows with the length of the sequence, row by row, past ``original``."""

    factor: float
    original: int
    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        ratio = jnp.maximum(length, self.original).astype(_wide()) / self.original
        growth = (self.factor * ratio - (self.factor - 1)) ** (dim / (dim - 2))
        exponent = jnp.asarray(np.arange(0, dim, 2) / dim, _wide())
        return 1 / (theta * growth[:, None]) ** exponent[None]


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Interpolates slow frequencies, keeps fast ones, and sharpens attention."""

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        low = self._correction(self.beta_fast, theta, dim)
        high = self._correction(self.beta_slow, theta, dim)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        # Equal ends would divide by zero.
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
        plain = _plain(theta, dim)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _correction(self, turns: float, theta: float, dim: int) -> float:
        return dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclasses.dataclass(frozen=True)
class LongRope:
    """One factor per frequency: ``short`` up to the original length, ``long`` past it, row by row."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention_factor: float

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        plain = _plain(theta, dim)
        short, long = (jnp.asarray(plain / np.asarray(f), _wide()) for f in (self.short, self.long))
        return jnp.where((length > self.original)[:, None], long[None], short[None])


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one model: base, number of rotated dimensions, scaling."""

    theta: float
    dim: int
    scaling: Scaling = Plain()

    def tables(self, positions: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine ``[b, s, f]`` in at least float32 for integer ``positions`` ``[b, s]``."""
        length = positions.max(-1) + 1
        inv_freq = jnp.asarray(self.scaling.inv_freq(self.theta, self.dim, length)).astype(wide(dtype))
        inv_freq = inv_freq[None, None] if inv_freq.ndim == 1 else inv_freq[:, None]
        angles = positions[..., None].astype(wide(dtype)) * inv_freq
        factor = jnp.asarray(self.scaling.attention_factor, wide(dtype))
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate ``x`` ``[b, s, h, k]`` by tables ``[b, s, f]``; the result has the dtype of ``x``."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _plain(theta: float, dim: int) -> np.ndarray:
    return 1.0 / theta ** (np.arange(0, dim, 2) / dim)


def _wide() -> Any:
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32  # type: ignore[attr-defined]


def read(config: Mapping[str, Any], dim: int, default_theta: float) -> Rope:
    """Rope of a Hugging Face config: ``rope_theta``, ``rope_scaling`` and ``rope_parameters``.

    Raises:
      ConfigError: an unknown scaling type, or one whose parameters are missing.
    """
    scaling_of = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling_of, Mapping):
        raise ConfigError(f"config.json: rope_scaling must be an object, got {scaling_of!r}")
    given = dict(scaling_of)
    theta = _positive(
        "rope_theta", given.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    )
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    longest = int(_positive("max_position_embeddings", config.get("max_position_embeddings") or 2048))
    original = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    original = int(_positive("original_max_position_embeddings", original or longest))
    if not isinstance(kind, str) or kind not in _READERS:
        raise ConfigError(f"rope scaling '{kind}' is not supported; known: {', '.join(_READERS)}")
    try:
        scaling = _READERS[kind](given, original, longest)
    except KeyError as missing:
        raise ConfigError(f"rope scaling '{kind}' needs {missing} in the config") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"rope scaling '{kind}': {error}") from None
    _check_unread(kind, given)
    if isinstance(scaling, LongRope) and not len(scaling.short) == len(scaling.long) == dim // 2:
        raise ConfigError(f"longrope needs {dim // 2} short and long factors, one per rotary frequency")
    return Rope(theta, dim, scaling)


_READ = {
    *("factor", "attention_factor", "original_max_position_embeddings", "low_freq_factor"),
    *("high_freq_factor", "short_factor", "long_factor", "beta_fast", "beta_slow", "mscale"),
    *("mscale_all_dim", "truncate"),
}


def _check_unread(kind: str, given: Mapping[str, Any]) -> None:
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(
            f"rope: partial_rotary_factor={given['partial_rotary_factor']} is not supported here"
        )
    unread = sorted(set(given) - _READ - {"partial_rotary_factor"})
    if unread:
        warnings.warn(f"rope scaling '{kind}': fields without effect: {', '.join(unread)}", stacklevel=3)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ConfigError(f"config.json: '{name}' must be a positive number, got {value!r}")
    return float(value)


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


_READERS: Mapping[str, Callable[[dict[str, Any], int, int], Scaling]] = {
    "default": lambda given, original, longest: Plain(),
    "linear": lambda given, original, longest: Linear(_positive("factor", given["factor"])),
    "llama3": lambda given, original, longest: Llama3(
        _positive("factor", given["factor"]),
        float(given["low_freq_factor"]),
        float(given["high_freq_factor"]),
        original,
    ),
    "dynamic": lambda given, original, longest: Dynamic(_positive("factor", given["factor"]), longest),
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}
