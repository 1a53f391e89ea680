"""Compiled programs: made once for each shape and structure, and not kept for ever."""

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jmi.errors import RetraceWarning

KEPT = 64
"""Programs that one function keeps; each takes 3 to 13 MiB of host memory."""

_Place = tuple[str, int, str]

_seen: dict[_Place, weakref.WeakSet[Any]] = {}
"""Functions of users in the last trace that had one of this place in their source."""

_warned: set[_Place] = set()


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
        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            warn_of_retraces(args)
            return function(*args)

        jitted: Any = jax.jit(traced, static_argnums=static)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            if jitted._cache_size() > KEPT:
                jitted.clear_cache()
            return jitted(*args)

        call.trace, call.lower = jitted.trace, jitted.lower  # type: ignore[attr-defined]
        return call

    return decorate


def warn_of_retraces(given: Any) -> None:
    """While tracing: warn, once for each place in the source, where its function is not that of before.

    Args:
      given: a pytree with the hooks, reducers and metrics of the trace. A plain function is part of its
        structure, so that a new object compiles anew, though its code be the same: what it closes over may
        not be.
    """
    is_function = lambda x: isinstance(x, jax.tree_util.Partial)  # noqa: E731
    here: dict[_Place, weakref.WeakSet[Any]] = {}
    for leaf in jax.tree.leaves(given, is_leaf=is_function):
        function = getattr(leaf, "func", None) if is_function(leaf) else None
        if inspect.isfunction(function):
            code = function.__code__
            place = code.co_filename, code.co_firstlineno, code.co_qualname
            here.setdefault(place, weakref.WeakSet()).add(function)
    for place, functions in here.items():
        before = _seen.get(place)
        _seen[place] = functions
        if before is None or place in _warned or any(f in before for f in functions):
            continue
        _warned.add(place)
        warnings.warn_explicit(
            f"{place[2]} comes as a new function each time, and each is traced and compiled anew. Define it "
            "once, outside of the loop; for what differs between its uses give "
            "jax.tree_util.Partial(function, array), whose arrays are data",
            RetraceWarning,
            *place[:2],
        )
