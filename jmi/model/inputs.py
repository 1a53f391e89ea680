"""Arguments of a run, checked before anything is traced."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.captures.capture import Plan
from jmi.checks import as_array, shown
from jmi.errors import ArgumentError, ConfigError, HookError
from jmi.model.architecture import Architecture
from jmi.model.padding import check_token
from jmi.model.sites import part_of


def as_tokens(given: Any, name: str = "tokens") -> Any:
    """Token ids as given: an array (of jax, numpy, PyTorch, ...), or a list, which is one row or several.

    Raises:
      ArgumentError: text, or what cannot be read as an array.
    """
    first = given[0] if isinstance(given, (list, tuple)) and given else given
    if isinstance(first, str):
        raise ArgumentError(
            f"{name}={shown(given)}: this takes token ids; make them of a text with lm.to_tokens(text)"
        )
    tokens = as_array(name, given)
    return tokens[None] if isinstance(given, (list, tuple)) and tokens.ndim == 1 else tokens


def check_arrays(tokens: Any, mask: Any, positions: Any, arch: Any = None) -> tuple[Any, Any]:
    """``mask`` and ``positions`` as arrays, found to fit ``tokens``, and the positions those of ``arch``."""
    if getattr(tokens, "ndim", 0) != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        shape, dtype = getattr(tokens, "shape", None), getattr(tokens, "dtype", type(tokens).__name__)
        raise ConfigError(f"tokens must be integers of shape [batch, pos]; got {dtype} {shape}")
    if 0 in tokens.shape:
        raise ConfigError("the prompt is empty: there is no token to run")
    mask = None if mask is None else as_array("mask", mask)
    positions = None if positions is None else as_array("positions", positions)
    for name, given in (("mask", mask), ("positions", positions)):
        if given is not None and given.shape != tokens.shape:
            raise ConfigError(f"{name}= has shape {given.shape}; it must be like tokens, {tokens.shape}")
    if mask is not None and mask.dtype != bool:
        raise ConfigError(f"mask= must be booleans, True at real tokens; got {mask.dtype}: mask.astype(bool)")
    if positions is not None:
        _check_positions(positions, mask, arch)
    return mask, positions


def _check_positions(positions: Any, mask: Any, arch: Any) -> None:
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ConfigError(f"positions= must be integers; got {positions.dtype}")
    if not is_known((positions, mask)):
        return
    real = np.asarray(positions) if mask is None else np.asarray(positions)[np.asarray(mask)]
    if real.size and real.min() < 0:
        raise ConfigError(f"positions= has {real.min()}; a token stands at position 0 or later")
    if real.size and getattr(arch, "learned_positions", None) is not None and real.max() >= arch.n_ctx:
        raise ConfigError(f"positions= has {real.max()}; this model has a table of 0 to {arch.n_ctx - 1}")


def check_tokens(arch: Architecture, tokens: Any) -> None:
    """Raise ConfigError for a prompt longer than the context, or ids outside the vocabulary.

    Traced ids are not known: one outside of the vocabulary, or a negative one, gives NaN.
    """
    n_ctx, d_vocab = getattr(arch, "n_ctx", None), getattr(arch, "d_vocab", None)
    if n_ctx is not None and tokens.shape[1] > n_ctx:
        raise ConfigError(f"the prompt has {tokens.shape[1]} tokens; the context of this model holds {n_ctx}")
    check_ids("token ids", tokens, d_vocab)


def check_ids(what: str, ids: Any, d_vocab: int | None) -> None:
    """Raise ConfigError where ``ids`` that are known are not tokens of a vocabulary of ``d_vocab``."""
    if d_vocab is None or not is_known(ids):
        return
    # In numpy: within a trace, to look at a device array would be traced.
    given = np.asarray(ids)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ConfigError(f"{what} must be integers; got {given.dtype}")
    if given.size and (given.min() < 0 or given.max() >= d_vocab):
        wrong = given[(given < 0) | (given >= d_vocab)].flat[0]
        raise ConfigError(f"{what} must be 0 to {d_vocab - 1}; found {wrong}")


def is_known(arrays: Any) -> bool:
    """Whether numbers can be looked at here: not traced, and none in the memory of another process."""
    return not any(
        isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable)
        for x in jax.tree.leaves(arrays)
    )


def layer_bound(arch: Architecture, name: str, layer: Any) -> Any:
    """A layer given as an int, as int32; a traced one as it is."""
    if layer is None or isinstance(layer, jax.core.Tracer):
        return layer
    given = np.asarray(as_array(name, layer))
    if not np.issubdtype(given.dtype, np.integer) or given.ndim or not 0 <= given <= arch.n_layers:
        raise ConfigError(
            f"{name}={shown(layer)}: use 0 to {arch.n_layers}, this model has {arch.n_layers} layers"
        )
    return np.int32(given)


def check_logits_at(
    arch: Architecture, at: Any, shape: tuple[int, int], points: Iterable[str], mask: Any = None
) -> Any:
    """``logits_at`` as int32; refused where it would hide what a hook or capture at ``points`` asks for.

    Args:
      mask: checked already; every row needs the token, as far as they are known.
    """
    for point in points:
        if part_of(arch, point) == "readout":
            raise HookError(f"{point}: logits_at= computes one position of it only; drop logits_at=")
    return check_token("logits_at", at, shape, mask)


def check_reached(arch: Architecture, hooks: dict[str, Any], layout: Plan, start: Any, stop: Any) -> None:
    """Refuse hooks and captures that a partial run never reaches, as far as its bounds are known."""
    low = 0 if start is None or isinstance(start, jax.core.Tracer) else int(start)
    high = arch.n_layers if stop is None or isinstance(stop, jax.core.Tracer) else int(stop)
    for point, layers in _named(arch, hooks, layout):
        if layers is None:
            skipped = start if part_of(arch, point) == "embed" else stop
            if skipped is not None:
                raise HookError(f"{point}: not reached by a run of some layers only; drop it")
        elif layers.size and not ((low <= layers) & (layers < high)).all():
            raise HookError(
                f"{point}: layers {layers.tolist()} are not all within the run, {low} to {high - 1}"
            )


def _named(arch: Architecture, hooks: dict[str, Any], layout: Plan) -> Iterator[tuple[str, Any]]:
    """Points with the layers a user named there (None outside the blocks); "every layer" is no name."""
    for point, sequence in hooks.items():
        if not point.startswith("blocks."):
            yield point, None
        for hook in sequence if point.startswith("blocks.") else ():
            if isinstance(hook.layers, np.ndarray) and not hook.layers.all():
                yield point, np.flatnonzero(hook.layers)
    for group, layers in zip(layout.groups, layout.layers, strict=True):
        if not group.whole:
            yield group.point, None if layers is None else np.asarray(layers)
