"""What the recurrences of RWKV-6 and RWKV-7 read and what they return.

Axis letters: b batch, s sequence, h heads, k key channels, v value channels. A state is ``[b, h, k, v]``.
"""

from typing import NamedTuple

import jax


class Inputs(NamedTuple):
    """What the recurrence reads, in at least float32.

    Attributes:
      receptance, key, decay: ``[b, s, h, k]``; the decay is a factor in (0, 1).
      value: ``[b, s, h, v]``.
      write: ``[b, s, h]``, how much of each token is written: 1, or 0 for one that leaves no trace.
      remove, add: ``[b, s, h, k]`` of RWKV-7, else None.
      bonus: ``[h, k]`` of RWKV-6, else None.
    """

    receptance: jax.Array
    key: jax.Array
    decay: jax.Array
    value: jax.Array
    write: jax.Array
    remove: jax.Array | None = None
    add: jax.Array | None = None
    bonus: jax.Array | None = None


class Outputs(NamedTuple):
    """``y`` ``[b, s, h, v]``, the final state, and per token the states before and after edits, or None."""

    y: jax.Array
    state: jax.Array
    arrived: jax.Array | None
    states: jax.Array | None
