"""Any vector of the width of the stream, read as a model reads the end of its stream."""

from typing import Any

import jax

from jmi.model.architecture import Architecture, Params, carry_of
from jmi.model.tap import SILENT, Silent
from jmi.numerics import wide

SCALE = "ln_final.hook_scale"


def logits_of(arch: Architecture, params: Params, vectors: jax.Array, final: Any = None) -> jax.Array:
    """Logits ``[n, vocab]`` of vectors ``[n, d]``, in at least float32: final norm, unembedding, caps.

    Args:
      final: vectors ``[n, d]`` by whose denominator the final norm divides; None for their own.
    """
    tap = SILENT if final is None else _Divided(_scale_of(arch, params, final))
    logits = arch.unembed(params, carry_of(arch, vectors[None]), tap)[0]
    return logits.astype(wide(logits.dtype))


def _scale_of(arch: Architecture, params: Params, vectors: jax.Array) -> jax.Array:
    """What the final norm divides vectors by, ``[1, n, 1]``; logits that nobody reads are not computed."""
    tap = _Listening()
    arch.unembed(params, carry_of(arch, vectors[None]), tap)
    return tap.heard[SCALE]


class _Listening(Silent):
    """A tap that keeps what passes."""

    def __init__(self) -> None:
        self.heard: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        self.heard[name] = value
        return value


class _Divided(Silent):
    """A tap that puts in the denominator of the final norm."""

    def __init__(self, scale: jax.Array) -> None:
        self.scale = scale

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        return self.scale if name == SCALE else value
