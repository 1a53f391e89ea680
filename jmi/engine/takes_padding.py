"""Which hooks, reducers and metrics padding is nothing to: only around these are prompts padded."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jmi.captures.capture import CARRY, Capture, as_list
from jmi.hooks.grid import Swept
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.reach import takes_padding
from jmi.hooks.resolve import Hooks, as_data, as_sequence, named
from jmi.model.inputs import is_known
from jmi.model.sites import Site, find
from jmi.tree import Structure, structure_of

_LENGTHS = 1021, 1031
"""What fits tensors of both has no entry for each place."""


class Held(NamedTuple):
    """A hook, reducer or metric of a run.

    Attributes:
      what: itself.
      site: where it acts; None for a metric.
    """

    what: Any
    site: Site | None = None


def held_in(arch: Any, hooks: Hooks | None, capture: Sequence[str | Capture] = ()) -> list[Held]:
    """The interventions and reducers of a run, whose names are known to be right."""
    given = [(name, hook) for name, given_there in named(hooks).items() for hook in as_sequence(given_there)]
    reducing = [c for c in as_list(capture) if isinstance(c, Capture) and c.reduce is not None]
    given += [(c.name, c.reduce) for c in reducing if c.name != CARRY]
    # What enters a layer may be any pytree: nobody knows what a reducer makes of it.
    entering = [Held(None) for c in reducing if c.name == CARRY]
    return entering + [Held(what, site) for name, what in given for site, _ in find(arch, name)]


def same_beside_padding(held: Held, batch: int, dtype: Any) -> bool:
    """Whether one does the same to real tokens beside any padding, and has no entry for each place."""
    what = held.what.hook if isinstance(held.what, At) else held.what
    rows = isinstance(what, PerLayer)
    own = as_data(what.hook if rows else what)
    if not takes_padding(own):
        return False
    leaves = [x.values[0] if isinstance(x, Swept) else x for x in jax.tree.leaves(own)]
    if held.site is None or not is_known(leaves):
        return held.site is None
    shapes = [jax.ShapeDtypeStruct(np.shape(x)[int(rows) :], jax.numpy.result_type(x)) for x in leaves]
    return _fits(structure_of(own), tuple(shapes), held.site, batch, np.dtype(dtype))


@functools.lru_cache(maxsize=1024)
def _fits(structure: Structure, shapes: tuple[Any, ...], site: Site, batch: int, dtype: Any) -> bool:
    """Whether a hook or reducer with arrays of ``shapes`` fits tensors of several lengths."""

    def acting(length: int) -> Callable[..., Any]:
        here = dataclasses.replace(site, layer=np.int32(0), mask=np.ones((batch, length), bool))
        return lambda leaves, value: jax.tree.unflatten(structure.tree, leaves)(value, here)

    try:
        for length in _LENGTHS:
            value = jax.ShapeDtypeStruct(site.shape(batch, length), dtype)
            jax.eval_shape(acting(length), list(shapes), value)
    except Exception:
        # Whatever it says: in the run of the exact length it fits, or says it to the user.
        return False
    return True
