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
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

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

    def reach(self, longest: int) -> int:
        """Context length of a model whose config says ``longest``: some configs leave the scaling out."""
        ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """No scaling."""

    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        return _plain(theta, dim)

    def reach(self, longest: int) -> int:
        return longest


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions divided by ``factor``."""

    factor: float
    attention_factor: float = 1.0

    def inv_freq(self, theta: float, dim: int, length: jax.Array) -> Any:
        return _plain(theta, dim) / self.factor

    def reach(self, longest: int) -> int:
        return int(longest * self.factor)


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

    def reach(self, longest: int) -> int:
        return longest if longest > self.original else int(self.original * self.factor)


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

    def reach(self, longest: int) -> int:
        return int(longest * self.factor)


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

    def reach(self, longest: int) -> int:
        return longest if longest > self.original else int(self.original * self.factor)


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

    def reach(self, longest: int) -> int:
        return longest


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding of one model: base, number of rotated dimensions, scaling."""

    theta: float
    dim: int
    scaling: Scaling = Plain()

    @property
    def steady(self) -> float:
        """Length of text up to which angles do not depend on it."""
        return self.scaling.original if isinstance(self.scaling, (Dynamic, LongRope)) else math.inf

    def tables(self, positions: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine ``[b, s, f]`` in at least float32 for integer ``positions`` ``[b, s]``."""
        length = positions.max(-1) + 1
        inv_freq = jnp.asarray(self.scaling.inv_freq(self.theta, self.dim, length)).astype(wide(dtype))
        inv_freq = inv_freq[None, None] if inv_freq.ndim == 1 else inv_freq[:, None]
        angles = positions[..., None].astype(wide(dtype)) * inv_freq
        factor = jnp.asarray(self.scaling.attention_factor, wide(dtype))
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool = False) -> jax.Array:
    """Rotate ``x`` ``[b, s, h, k]`` by tables ``[b, s, f]``; the result has the dtype of ``x``.

    The first 2f dimensions of a head turn, the rest stays.

    Args:
      interleaved: neighbours turn against each other (GPT-J, Cohere), not the first half against
        the second.
    """
    turned, rest = jnp.split(x.astype(cos.dtype), [2 * cos.shape[-1]], axis=-1)
    pairs = jnp.stack([turned[..., ::2], turned[..., 1::2]]) if interleaved else jnp.split(turned, 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    parts = [pairs[0] * cos - pairs[1] * sin, pairs[1] * cos + pairs[0] * sin]
    back = jnp.stack(parts, -1).reshape(turned.shape) if interleaved else jnp.concatenate(parts, -1)
    return jnp.concatenate([back, rest], axis=-1).astype(x.dtype)


def _plain(theta: float, dim: int) -> np.ndarray:
    return 1.0 / theta ** (np.arange(0, dim, 2) / dim)


def _wide() -> Any:
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32  # type: ignore[attr-defined]
