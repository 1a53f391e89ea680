"""Single arguments, checked: numbers, choices, arrays, functions. What is wrong is one `ArgumentError`.

Each function takes the argument's name for the message and gives the value back in its plainest type. What is
traced is an array like any other; a number that decides a shape must be known.
"""

import functools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import ArgumentError, printable

LARGEST = 2**31 - 1
"""The largest whole number that is taken for a count: what an int32 holds."""


def whole_number(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """A count, a seed or an index: an integer of Python, numpy or jax, but no float and no True.

    Raises:
      ArgumentError: something else, or out of range.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        bound = f"{least} or more" if number < least else f"at most {most:,}"
        raise ArgumentError(f"{name}={shown(value)}: give a whole number, {bound}")
    return number


def real_number(name: str, value: Any, above: float = -np.inf, below: float = np.inf) -> Any:
    """A real number strictly between two bounds; a traced one as it is.

    Raises:
      ArgumentError: no number, NaN, or one out of range.
    """
    if isinstance(value, jax.core.Tracer) and not value.ndim:
        return value
    sides = [f"above {above:g}"] * (above > -np.inf) + [f"below {below:g}"] * (below < np.inf)
    bounds = f" between {above:g} and {below:g}" if len(sides) == 2 else "".join(f" {side}" for side in sides)
    try:
        if getattr(value, "ndim", 0) or isinstance(value, (bool, str, bytes)) or np.iscomplexobj(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    within = above < number < below or (not sides and not np.isnan(number))
    if not within:
        raise ArgumentError(f"{name}={shown(value)}: give a number{bounds}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False; a text such as "no" would otherwise count as True."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ArgumentError(f"{name}={shown(value)}: use True or False")


def choice(name: str, value: Any, options: Collection[str]) -> Any:
    """One of some words."""
    if isinstance(value, str) and value in options:
        return value
    raise ArgumentError(f"{name}={shown(value)}: use one of {', '.join(map(repr, options))}")


def text(name: str, value: Any) -> str:
    """A text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise ArgumentError(f"{name}={shown(value)}: give a text")


def several(name: str, values: Any, kind: str) -> list[Any]:
    """The elements of a list, tuple, range or array; a text is none of these.

    Args:
      kind: what they are, for the message.
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name}={shown(values)}: give a list of {kind}")
    try:
        return list(values)
    except TypeError:
        raise ArgumentError(f"{name}={shown(values)}: give a list of {kind}") from None


def as_array(name: str, value: Any) -> Any:
    """``value`` as an array: those of jax, traced or not, as they are; of PyTorch and others as numpy's."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return value
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        why = printable(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)
        raise ArgumentError(f"{name}={shown(value)}: this cannot be read as an array ({why})") from None


def real_array(name: str, value: Any, least_axes: int = 0) -> Any:
    """``value`` as an array of real numbers (`as_array`) with at least so many axes."""
    array = as_array(name, value)
    if not is_real(array.dtype):
        raise ArgumentError(f"{name}={shown(value)}: give real numbers")
    if array.ndim < least_axes:
        raise ArgumentError(f"{name}={shown(value)}: give an array of {least_axes} or more axes")
    return array


def whole_array(name: str, value: Any) -> Any:
    """``value`` as an array of integers (`as_array`)."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ArgumentError(f"{name}={shown(value)}: give whole numbers")
    return array


def is_real(dtype: Any) -> bool:
    """Whether numbers of a dtype are integers or floats; jax's numpy knows bfloat16 as one, too."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating))


def float_dtype(dtype: Any) -> Any:
    """The dtype of float32, bfloat16, float16 or float64 by any of its names; jax must have it."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating) or found.itemsize not in (2, 4, 8):
        raise ArgumentError(f"dtype={shown(dtype)}: use float32, bfloat16, float16 or float64")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ArgumentError("dtype=float64 needs jax.config.update('jax_enable_x64', True) first")
    return found


def as_function(name: str, value: Any) -> Callable[..., Any]:
    """``value``, found to be callable, no class, and to hold nothing but numbers as data."""
    if isinstance(value, type):
        raise ArgumentError(f"{name}={shown(value)}: give an instance of it, {value.__name__}(...)")
    if not callable(value):
        raise ArgumentError(f"{name}={shown(value)}: give a function, such as jmi.metrics.Prob(token)")
    wrong = no_number_in(value)
    if wrong is not None:
        raise ArgumentError(f"{name}: {type(value).__name__} holds {shown(wrong[0])}; give numbers")
    return value


def check_architecture(arch: Any) -> None:
    """Raise ArgumentError for an architecture that is none."""
    if isinstance(arch, type) or not (callable(getattr(arch, "sites", None)) and hasattr(arch, "n_layers")):
        raise ArgumentError(f"arch={shown(arch)}: give an architecture, such as lm.arch")


def check_model(arch: Any, params: Any) -> None:
    """Raise ArgumentError for an architecture that is none, or parameters that are not its own."""
    check_architecture(arch)
    check_params(params, _parts(arch))


def check_params(params: Any, parts: Collection[str] = ("blocks",)) -> None:
    """Raise ArgumentError for what is no pytree of parameters with these ``parts``."""
    if not isinstance(params, Mapping) or not set(parts) <= set(params) or not jax.tree.leaves(params):
        raise ArgumentError(
            f"params={shown(params)}: give the parameters of this architecture, such as lm.params, "
            f"which are a dict with {', '.join(parts)}"
        )
    wrong = no_number_in(params)
    if wrong is not None:
        raise ArgumentError(f"params= holds {shown(wrong[0])}; parameters are arrays")


@functools.lru_cache(maxsize=256)
def _parts(arch: Any) -> tuple[str, ...]:
    """The first level of an architecture's parameters, as far as it describes them."""
    return tuple(arch.param_tree()) if hasattr(arch, "param_tree") else ("blocks",)


def as_result(what: str, result: Any) -> Any:
    """What a function of the user's returned, found to be an array or a number."""
    if isinstance(result, (jax.Array, np.ndarray, np.generic, float, int)) and _is_data(result):
        return result
    raise ArgumentError(f"{what} returned {shown(result)}; it must return an array, one number for each row")


def as_arrays(what: str, result: Any) -> Any:
    """What a function of the user's returned, found to be a pytree of arrays and numbers."""
    wrong = no_number_in(result)
    if wrong is not None or isinstance(result, (str, bytes)):
        raise ArgumentError(f"{what} returned {shown(result if wrong is None else wrong[0])}; return arrays")
    return result


def no_number_in(tree: Any) -> tuple[Any] | None:
    """The first leaf of a pytree that no program can take, in a tuple; None when there is none."""
    return next(((leaf,) for leaf in jax.tree.leaves(tree) if leaf is not tree and not _is_data(leaf)), None)


def _is_data(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind not in "OSUMm"
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        return -(2**63) <= leaf < 2**64
    return isinstance(leaf, (bool, float, complex, jax.Array, jax.ShapeDtypeStruct))


def shown(value: Any) -> str:
    """A value as a message names it: short, in one line, and in words where its text would say little."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, np.generic):
        return printable(value, 60)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of {value.dtype} {list(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return printable(repr(value), 60)
    if isinstance(value, (list, tuple, range)) and all(isinstance(x, (bool, int, float, str)) for x in value):
        return printable(repr(value), 60)
    if callable(value) and jax.tree_util.all_leaves([value]):
        return "a function"
    return f"a {type(value).__name__}"
