"""Two prompts token by token: the tokens of one at the places where the other has its own."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jmi.errors import ArgumentError
from jmi.model.inputs import Prompts, is_known
from jmi.model.padding import numbers, places, take


def repadded(source: Prompts, base: Prompts) -> Prompts:
    """``source`` padded as ``base`` is, so that tokens of one number stand at one place.

    Raises:
      ArgumentError: other rows, or rows of other lengths. Where masks are traced, such a row gets ids that
        are no tokens, and so NaN.
    """
    if source.mask is base.mask and source.shape == base.shape:
        return source
    if source.shape[0] != base.shape[0]:
        raise ArgumentError(f"clean and corrupted have {_both(source, base, 0)} rows; give pairs, row by row")
    own, theirs = _real(source), _real(base)
    if is_known((own, theirs)):
        _check_lengths(np.asarray(own).sum(-1), np.asarray(theirs).sum(-1))
    index = places(numbers(theirs), own)
    tokens = take(jnp.asarray(source.tokens), index, 1, fill=0)
    none = -1 if jnp.issubdtype(tokens.dtype, jnp.integer) else jnp.nan
    unlike = (own.sum(-1) != theirs.sum(-1)).reshape(-1, *[1] * (tokens.ndim - 1))
    tokens = jnp.where(unlike, jnp.asarray(none, tokens.dtype), tokens)
    positions = None if source.positions is None else take(jnp.asarray(source.positions), index, 1, fill=0)
    return Prompts(tokens, base.mask, positions)


def _real(prompts: Prompts) -> Any:
    return np.ones(prompts.shape, bool) if prompts.mask is None else prompts.mask


def _both(source: Prompts, base: Prompts, axis: int) -> str:
    return " and ".join(str(n) for n in sorted((source.shape[axis], base.shape[axis])))


def _check_lengths(own: np.ndarray, theirs: np.ndarray) -> None:
    for row in np.flatnonzero(own != theirs)[:1]:
        raise ArgumentError(
            f"clean and corrupted must line up token by token: in row {row} one has {own[row]} tokens, the "
            f"other {theirs[row]}"
        )
