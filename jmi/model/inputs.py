"""What a model is run on: `Prompts`, and the checks of them that are made before anything is traced."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import as_array, shown
from jmi.errors import ArgumentError


@tree.dataclass
class Prompts:
    """What a model is run on, one value.

    Attributes:
      tokens: int32 ``[b, s]``, token ids; of a network that reads numbers, floats ``[b, s, ...]``.
      mask: bool ``[b, s]``, True at real tokens; None when every place holds one. Padding on either side
        changes nothing for them, and a position that is asked for, in hooks, reducers, ``logits_at`` or a
        metric, names the p-th real token of its row, counted from the end if negative. Arrays keep the padded
        axis.
      positions: int32 ``[b, s]``, from 0; by default real tokens are counted from 0.

    Example:
      >>> import jmi, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> prompts = lm.prompts(["Paris is in", "The capital of France is"])
      >>> prompts.mask.shape == prompts.tokens.shape
      True
    """

    tokens: Any
    mask: Any = None
    positions: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and positions."""
        batch, length = jnp.shape(self.tokens)[:2]
        return batch, length

    def part(self, first: Any, length: int) -> "Prompts":
        """``length`` positions from ``first`` on, which may be traced."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, length, axis=1), self)


def as_prompts(given: Any, name: str = "prompts") -> Prompts:
    """Prompts as a user gives them: `Prompts`, tokens, ``(tokens, mask)``; texts take a `LanguageModel`.

    Tokens are an array (of jax, numpy, PyTorch, ...), or a list, which is one row or several.

    Raises:
      ArgumentError: text, or what cannot be read as an array.
    """
    if isinstance(given, Prompts):
        # An argument of tree.map need not hold arrays: then there is nothing to read.
        return given
    if isinstance(given, tuple) and len(given) == 2 and _is_mask(given[1]):
        return Prompts(as_tokens(given[0], name), given[1])
    return Prompts(as_tokens(given, name))


def _is_mask(given: Any) -> bool:
    return hasattr(given, "dtype") and np.dtype(given.dtype) == np.bool_


def as_tokens(given: Any, name: str = "tokens") -> Any:
    """Token ids, or numbers, as given: an array, or a list, which is one row or several."""
    first = given[0] if isinstance(given, (list, tuple)) and given else given
    if isinstance(first, str):
        raise ArgumentError(
            f"{name}={shown(given)}: this takes token ids; make them of a text with lm.to_tokens(text)"
        )
    tokens = as_array(name, given)
    return tokens[None] if isinstance(given, (list, tuple)) and tokens.ndim == 1 else tokens


def checked(arch: Any, given: Any) -> Prompts:
    """``given`` as prompts whose arrays fit each other and ``arch``.

    An architecture that has ``check(prompts)`` says itself what it reads; any other reads token ids, of its
    vocabulary ``d_vocab`` and no more of them than ``n_ctx``, where it has these.

    Raises:
      ArgumentError: what cannot be run. Traced ids are not known: one outside of the vocabulary gives NaN.
    """
    prompts = as_prompts(given)
    own = hasattr(arch, "check")
    tokens = as_array("tokens", prompts.tokens)
    if getattr(tokens, "ndim", 0) < 2 or not (own or _is_ids(tokens)):
        raise ArgumentError(
            f"tokens must be integers of shape [batch, pos]; got {tokens.dtype} {tokens.shape}"
        )
    if 0 in tokens.shape[:2]:
        raise ArgumentError("the prompt is empty: there is no token to run")
    mask = None if prompts.mask is None else as_array("mask", prompts.mask)
    positions = None if prompts.positions is None else as_array("positions", prompts.positions)
    for name, array in (("mask", mask), ("positions", positions)):
        if array is not None and array.shape != tokens.shape[:2]:
            raise ArgumentError(
                f"{name}= has shape {array.shape}; it must be like tokens, {tokens.shape[:2]}"
            )
    if mask is not None and mask.dtype != bool:
        raise ArgumentError(
            f"mask= must be booleans, True at real tokens; got {mask.dtype}: mask.astype(bool)"
        )
    found = Prompts(tokens, mask, positions)
    if positions is not None:
        _check_positions(found, arch)
    if own:
        arch.check(found)
    else:
        _check_tokens(arch, found)
    return found


def _is_ids(tokens: Any) -> bool:
    return tokens.ndim == 2 and jnp.issubdtype(tokens.dtype, jnp.integer)


def _check_positions(prompts: Prompts, arch: Any) -> None:
    positions, mask = prompts.positions, prompts.mask
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ArgumentError(f"positions= must be integers; got {positions.dtype}")
    if not is_known((positions, mask)):
        return
    real = np.asarray(positions) if mask is None else np.asarray(positions)[np.asarray(mask)]
    if real.size and real.min() < 0:
        raise ArgumentError(f"positions= has {real.min()}; a token stands at position 0 or later")
    n_places = getattr(arch, "n_places", None)
    if real.size and n_places is not None and real.max() >= n_places:
        raise ArgumentError(f"positions= has {real.max()}; this model has a table of 0 to {n_places - 1}")


def _check_tokens(arch: Any, prompts: Prompts) -> None:
    n_ctx, length = getattr(arch, "n_ctx", None), prompts.shape[1]
    if n_ctx is not None and length > n_ctx:
        raise ArgumentError(f"the prompt has {length} tokens; the context of this model holds {n_ctx}")
    check_ids("token ids", prompts.tokens, getattr(arch, "d_vocab", None))


def check_ids(what: str, ids: Any, d_vocab: int | None) -> None:
    """Raise ArgumentError where ``ids`` that are known are not tokens of a vocabulary of ``d_vocab``."""
    if d_vocab is None or not is_known(ids):
        return
    # In numpy: within a trace, to look at a device array would be traced.
    given = np.asarray(ids)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ArgumentError(f"{what} must be integers; got {given.dtype}")
    if given.size and (given.min() < 0 or given.max() >= d_vocab):
        wrong = given[(given < 0) | (given >= d_vocab)].flat[0]
        raise ArgumentError(f"{what} must be 0 to {d_vocab - 1}; found {wrong}")


def is_known(arrays: Any) -> bool:
    """Whether numbers can be looked at here: not traced, and none in the memory of another process."""
    return not any(
        isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable)
        for x in jax.tree.leaves(arrays)
    )


def joined(parts: Sequence[Prompts]) -> Prompts:
    """Prompts one after the other, as one text; a mask where one of them has one.

    Raises:
      ArgumentError: other batches, or positions given for some of them only.
    """
    if len({part.shape[0] for part in parts}) != 1:
        raise ArgumentError(f"prompts of {[part.shape[0] for part in parts]} rows do not follow each other")
    if len({part.positions is None for part in parts}) != 1:
        raise ArgumentError("positions= must be given for all parts of a text, or for none")
    masked = any(part.mask is not None for part in parts)
    masks = [np.ones(part.shape, bool) if part.mask is None else part.mask for part in parts]
    joint = lambda arrays: jnp.concatenate([jnp.asarray(x) for x in arrays], axis=1)  # noqa: E731
    return Prompts(
        joint([part.tokens for part in parts]),
        joint(masks) if masked else None,
        None if parts[0].positions is None else joint([part.positions for part in parts]),
    )
