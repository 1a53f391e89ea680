"""How a decoder tells positions apart: rotary embeddings, a table of positions, linear biases.

Axis letters: b batch, t keys, h heads.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi_models.decoder.rope import Rope


@dataclasses.dataclass(frozen=True)
class Alibi:
    """Scores fall linearly with distance, by a slope per head (arXiv:2108.12409).

    Attributes:
      scaled: the bias is multiplied by the scale of the scores as well (Falcon).
      rounded: slopes and biases are rounded to bfloat16, as Hugging Face rounds Falcon's.
    """

    scaled: bool = False
    rounded: bool = False

    def bias(self, n_heads: int, positions: jax.Array, dtype: Any) -> jax.Array:
        """What is added to scores, ``[b, h, 1, t]``, for key ``positions`` ``[b, t]``."""
        slopes = jnp.asarray(_slopes(n_heads), dtype)[None, :, None, None]
        keys = positions[:, None, None, :].astype(dtype)
        if not self.rounded:
            return slopes * keys
        low = jnp.bfloat16
        return (slopes.astype(low) * keys.astype(low)).astype(dtype)


def _slopes(n_heads: int) -> np.ndarray:
    """Powers of ``2 ** (-8 / n)``; between two powers of two, every second one of the next is filled in."""
    whole = 2 ** math.floor(math.log2(n_heads))
    powers = 2.0 ** (-8.0 / whole * np.arange(1, whole + 1))
    between = 2.0 ** (-4.0 / whole * np.arange(1, 2 * whole, 2))
    return np.concatenate([powers, between])[:n_heads]


@dataclasses.dataclass(frozen=True)
class Positions:
    """What a decoder does with positions. A model may have several of these, or none.

    Attributes:
      ropes: rotary embedding, one for all layers or one for each; None for a layer without. Empty: no
        layer has any.
      interleaved: neighbouring dimensions turn together, not the two halves of a head.
      learned: the model has a table of positions, and its first so many rows are unused.
      alibi: linear biases on the scores.
    """

    ropes: tuple[Rope | None, ...] = ()
    interleaved: bool = False
    learned: int | None = None
    alibi: Alibi | None = None

    @property
    def rotary(self) -> bool:
        """Whether any layer turns its queries and keys."""
        return any(self.ropes)
