"""Compiled programs: made once for each shape and structure, and not kept for ever."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

KEPT = 64
"""Programs that one function keeps; each takes 3 to 13 MiB of host memory."""


def compiled(static: int | Sequence[int] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: `jax.jit` that forgets its programs when there are more than `KEPT` of them.

    jax.jit alone keeps a program for every shape and structure it ever saw, so that a loop over prompts of
    many lengths, or over fresh lambdas, fills the memory.

    Args:
      static: arguments by their places, as ``static_argnums``.

    Example:
      >>> from jmi.engine.programs import compiled
      >>> @compiled()
      ... def double(x):
      ...     return 2 * x
      >>> int(double(3))
      6
    """

    def decorate(function: Callable[..., Any]) -> Any:
        jitted: Any = jax.jit(function, static_argnums=static)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if jitted._cache_size() > KEPT:
                jitted.clear_cache()
            return jitted(*args)

        call.trace, call.lower = jitted.trace, jitted.lower  # type: ignore[attr-defined]
        return call

    return decorate
