"""Normalisation of the residual stream and of queries and keys.

Axis letters: b batch, s sequence, d model width, h heads, k head width.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jmi.model.tap import Tap
from jmi.numerics import wide


@dataclasses.dataclass(frozen=True)
class Norm:
    """A kind of normalisation.

    Attributes:
      kind: ``rms`` divides by the root mean square, ``layer`` subtracts the mean first.
      eps: added to the mean square under the root.
      gain: what multiplies the normalised value: the weight, one plus the weight (Gemma), nothing.
      bias: whether a bias is added after the gain.
    """

    kind: Literal["rms", "layer"]
    eps: float
    gain: Literal["w", "1 + w", "none"] = "w"
    bias: bool = False

    def inits(self) -> dict[str, str]:
        """Initial value of each parameter, by name."""
        gain = {"w": {"w": "ones"}, "1 + w": {"w": "zeros"}, "none": {}}[self.gain]
        return {**gain, "b": "zeros"} if self.bias else gain


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """Normalisation of queries and keys after their projection.

    Attributes:
      norm: its kind.
      joint: one norm over all heads together (OLMo 2), or each head by itself.
      axes: axes of the gain: ``d_head`` shared by the heads, or ``n_heads d_head``.
    """

    norm: Norm
    joint: bool = False
    axes: Literal["d_head", "n_heads d_head"] = "d_head"


@dataclasses.dataclass(frozen=True)
class Norms:
    """The norms of a decoder's residual stream, all of one kind.

    Attributes:
      norm: their kind.
      where: ``pre`` each module reads a normalised stream; ``post`` it writes a normalised output
        (OLMo 2); ``both`` (Gemma 2); ``stream`` the sum itself is normalised after each module
        (OPT 350m), and there is no final norm.
      shared: attention and MLP, which stand side by side, read the stream through one norm.
      embed: the embedding is normalised, too.
    """

    norm: Norm
    where: Literal["pre", "post", "both", "stream"] = "pre"
    shared: bool = False
    embed: bool = False

    @property
    def read(self) -> bool:
        """Whether what a module reads is normalised."""
        return self.where in ("pre", "both")

    @property
    def written(self) -> bool:
        """Whether what a module writes is normalised."""
        return self.where in ("post", "both")

    @property
    def in_stream(self) -> bool:
        """Whether the sum itself is normalised."""
        return self.where == "stream"


def normalise(norm: Norm, p: Any, x: jax.Array, tap: Tap, name: str) -> jax.Array:
    """``x`` ``[b, s, d]`` normalised, with its points under ``name`` (``"ln1"``).

    All of it is computed in at least float32, and so are its points; what comes out has the dtype of ``x``.
    """
    centred = _centred(norm, x, -1)
    normed = centred / tap(f"{name}.hook_scale", _scale(norm, centred, -1))
    normed = tap(f"{name}.hook_normalized", normed)
    return _gained(norm, p, normed).astype(x.dtype)


def normalise_heads(spec: HeadNorm, p: Any, x: jax.Array) -> jax.Array:
    """Queries or keys ``[b, s, h, k]`` normalised."""
    over = (-2, -1) if spec.joint else -1
    centred = _centred(spec.norm, x, over)
    return _gained(spec.norm, p, centred / _scale(spec.norm, centred, over)).astype(x.dtype)


def _centred(norm: Norm, x: jax.Array, over: Any) -> jax.Array:
    x = x.astype(wide(x.dtype))
    return x - jnp.mean(x, over, keepdims=True) if norm.kind == "layer" else x


def _scale(norm: Norm, centred: jax.Array, over: Any) -> jax.Array:
    square = jnp.mean(jnp.square(centred), over, keepdims=True)
    return jnp.sqrt(square + jnp.asarray(norm.eps, centred.dtype))


def _gained(norm: Norm, p: Any, x: jax.Array) -> jax.Array:
    """``x`` times the gain, plus the bias; they have the shape ``[d]``, ``[k]`` or ``[h, k]``."""
    lead = (None,) * (x.ndim - next(iter(p.values())).ndim) if norm.inits() else ()
    if norm.gain != "none":
        gain = p["w"].astype(x.dtype)[lead]
        x = x * (1 + gain if norm.gain == "1 + w" else gain)
    return x + p["b"].astype(x.dtype)[lead] if norm.bias else x
