"""From the hooks a user writes to the hooks the engine runs.

`prepare` resolves names, checks what can be checked without running, and turns every choice into
data: ``{"blocks.5.hook_resid_post": Add(v)}`` becomes ``{"blocks.*.hook_resid_post": (At(mask,
Add(v)),)}``, whose tree structure does not depend on the layer. The result is itself a hooks dict.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jmi.checks import as_array, check_architecture, no_number_in, several, shown, whole_number
from jmi.errors import ArgumentError, HookError, InterventionError
from jmi.hooks.grid import Swept
from jmi.hooks.layers import At, PerLayer, having_rows
from jmi.hooks.masked import check_weights
from jmi.model.sites import HasSites, Site, find

Hooks = Mapping[str, Any]


def prepare(
    arch: HasSites, hooks: Hooks | None, shape: tuple[int, int], mask: Any = None
) -> dict[str, tuple[Any, ...]]:
    """Canonical form of ``hooks`` for ``arch``, checked against inputs of ``shape`` (batch, pos).

    Pass the result to your own ``jit`` of `forward`: another layer, position, head, vector, mask
    or strength keeps its structure, so nothing is traced again. Under several names that meet at
    one point, wildcards run first, then names in alphabetical order; a sequence runs in order. With the
    ``mask`` of the run, positions are checked against the real tokens of each row.

    Raises:
      HookError: an unknown name, layer or something that is not an intervention.
      InterventionError: an index out of range or a selector without meaning at the site.
    """
    check_architecture(arch)
    shape = _pair(shape)
    there = placed(arch, hooks, mask)
    return {point: tuple(_prepared(arch, one, shape) for one in ones) for point, ones in there.items()}


class Placed(NamedTuple):
    """An intervention where its name puts it; nothing in it is looked into yet.

    Attributes:
      site: of which it acts on the value; with the mask of the run, if there is one.
      layers: those that the name means; None outside the blocks.
    """

    name: str
    site: Site
    layers: tuple[int, ...] | None
    hook: Any


def placed(arch: HasSites, hooks: Hooks | None, mask: Any = None) -> dict[str, list[Placed]]:
    """The interventions at each point, in the order in which they run; HookError for an unknown name."""
    found: dict[str, list[Placed]] = {}
    for name, given in sorted(named(hooks).items()):
        for site, layers in find(arch, name):
            site = site if mask is None else dataclasses.replace(site, mask=mask)
            ones = [Placed(name, site, layers, hook) for hook in as_sequence(given)]
            found.setdefault(site.point, []).extend(ones)
    return found


def as_sequence(given: Any) -> Sequence[Any]:
    """The interventions under one name: the sequence that was given, or the one."""
    return given if isinstance(given, (list, tuple)) else (given,)


def _pair(shape: Any) -> tuple[int, int]:
    sizes = several("shape", shape, "two numbers, (batch, pos)")
    if len(sizes) != 2:
        raise ArgumentError(f"shape={shown(shape)}: give two numbers, (batch, pos)")
    return whole_number("shape", sizes[0]), whole_number("shape", sizes[1])


def named(hooks: Hooks | None) -> Hooks:
    """``hooks``, found to be a mapping of names; HookError for what people write instead."""
    if hooks is None:
        return {}
    if not isinstance(hooks, Mapping) or not all(isinstance(name, str) for name in hooks):
        raise HookError(
            f"hooks={shown(hooks)}: give a dict of names, such as {{'blocks.3.hook_mlp_out': jmi.Zero()}}"
        )
    return hooks


def _prepared(arch: HasSites, one: Placed, shape: tuple[int, int]) -> Any:
    """An intervention, checked, and inside the blocks in an `At` whose layers are a mask."""
    name, site, layers, hook = one
    if site.derived:
        raise HookError(
            f"{name}: derived for captures alone, the model does not read it; hook what it comes from"
        )
    if any(isinstance(x, Swept) for x in jax.tree.leaves(hook)):
        raise HookError(
            f"{name}: {hook!r} has a value of a jmi.Grid, which means something to jmi.sweep only"
        )
    _check_acts(name, hook)
    if not isinstance(hook, At):
        hook = as_data(hook)
        if isinstance(getattr(hook, "hook", None), At):
            raise HookError(f"{name}: put PerLayer() inside At(), not around it")
        _check(hook, site, shape)
        return (
            hook
            if layers is None
            else At(_acting(name, _layer_mask(layers, arch.n_layers), hook, site), hook)
        )
    if layers is None or layers != site.layers:
        raise HookError(f"{name}: At() chooses the layers itself; give it a name with blocks.*")
    if isinstance(hook.hook, (list, tuple)) or any(
        isinstance(h, At) for h in (hook.hook, getattr(hook.hook, "hook", None))
    ):
        raise HookError(f"{name}: At() takes one intervention; give several At() in a sequence")
    inner = as_data(hook.hook)
    _check(inner, site, shape)
    mask = _as_mask(name, hook.layers, arch.n_layers)
    _check_has(name, mask, site)
    return At(_acting(name, mask, inner, site), inner)


def _check_has(name: str, mask: Any, site: Site) -> None:
    """HookError where a known ``mask`` chooses layers that do not have the point."""
    lacking = () if isinstance(mask, jax.core.Tracer) else set(np.flatnonzero(mask)) - set(site.layers or ())
    if lacking and not mask.all():
        raise HookError(f"{name}: layers {sorted(map(int, lacking))} have no such point")


def _acting(name: str, mask: Any, hook: Any, site: Site) -> Any:
    """``mask`` without layers for which `PerLayer` has no row; HookError where such a layer was named."""
    has = having_rows(hook, len(mask))
    if has is None:
        return mask
    if any(isinstance(x, jax.core.Tracer) for x in (mask, has)):
        return mask & has
    lacking = np.flatnonzero(mask & ~has).tolist()
    if lacking and not mask[list(site.layers or ())].all():
        raise HookError(f"{name}: PerLayer has no row for layers {lacking}")
    return mask & has if lacking else mask


def _check_acts(name: str, hook: Any) -> None:
    """HookError for what is no intervention, also inside `At` and `PerLayer`."""
    while isinstance(hook, (At, PerLayer)) and not isinstance(hook.hook, (list, tuple)):
        hook = hook.hook
    if isinstance(hook, type):
        raise HookError(f"{name}: {hook.__name__} is a class; give an instance of it, {hook.__name__}(...)")
    if not callable(hook):
        raise HookError(f"{name}: {shown(hook)} is not an intervention (a callable (value, site) -> value)")
    kind: Any = type(hook)
    if not (_made_takes_two(kind) if dataclasses.is_dataclass(hook) else _takes_two(hook)):
        raise HookError(f"{name}: {shown(hook)} must take two arguments, (value, site)")


def _takes_two(function: Any, *own: None) -> bool:
    try:
        inspect.signature(function).bind(*own, None, None)
    except TypeError:
        return False
    except ValueError:  # A builtin, which does not say what it takes.
        pass
    return True


@functools.lru_cache(maxsize=256)
def _made_takes_two(kind: Any) -> bool:
    """Whether what a class makes takes a value and a site; once per class, for it takes 50 us."""
    return _takes_two(kind.__call__, None)


def _check(hook: Any, site: Site, shape: tuple[int, int]) -> None:
    wrong = no_number_in(hook)
    if wrong is not None:
        raise InterventionError(f"{site.point}: {type(hook).__name__} holds {shown(wrong[0])}; give numbers")
    _check_payloads(hook, site)
    if hasattr(hook, "check"):
        hook.check(site, site.shape(*shape))
    check_weights(hook, site)


def _check_payloads(hook: Any, site: Site) -> None:
    """InterventionError for a function or a dict where the numbers of an intervention belong."""
    hook = hook.hook if isinstance(hook, PerLayer) else hook
    for field in dataclasses.fields(hook) if dataclasses.is_dataclass(hook) else ():
        value = getattr(hook, field.name)
        if field.metadata.get("payload") and not isinstance(value, (np.ndarray, jax.Array, list, tuple)):
            raise InterventionError(f"{site.point}: {field.name}={shown(value)}: give numbers")


def _layer_mask(layers: tuple[int, ...], n_layers: int) -> np.ndarray:
    mask = np.zeros(n_layers, bool)
    mask[list(layers)] = True
    return mask


def _as_mask(name: str, layers: Any, n_layers: int) -> Any:
    if isinstance(layers, jax.core.Tracer):
        if layers.dtype == bool and layers.shape == (n_layers,):
            return layers
        if not jax.numpy.issubdtype(layers.dtype, np.integer):
            raise HookError(f"{name}: layers must be indices or a mask of {n_layers} booleans")
        index = jax.numpy.atleast_1d(layers)
        index = jax.numpy.where(index < 0, index + n_layers, index)
        return (index[:, None] == jax.numpy.arange(n_layers, dtype=index.dtype)[None]).any(0)
    given = np.asarray(as_array("layers", layers))
    if given.dtype == bool and given.shape == (n_layers,):
        return given
    if not np.issubdtype(given.dtype, np.integer):
        raise HookError(f"{name}: layers must be indices or a mask of {n_layers} booleans")
    if given.size and (given.min() < -n_layers or given.max() >= n_layers):
        raise HookError(f"{name}: layers {given.tolist()}; this model has layers 0 to {n_layers - 1}")
    return _layer_mask(tuple(np.atleast_1d(given) % n_layers), n_layers)


def as_data(hook: Any) -> Any:
    """``hook`` with Python numbers and lists of them as arrays; a bare function made static."""
    if dataclasses.is_dataclass(hook) and not isinstance(hook, type):
        data = {
            f.name: _as_floats(getattr(hook, f.name))
            if f.metadata.get("payload")
            else as_data(getattr(hook, f.name))
            for f in dataclasses.fields(hook)
            if f.metadata.get("pytree_node", True) and getattr(hook, f.name) is not None
        }
        return dataclasses.replace(hook, **data)
    if isinstance(hook, (bool, int, float, np.generic, range)) or _is_numbers(hook):
        return as_array("hooks", hook)
    if hasattr(hook, "__array__") and not isinstance(hook, (np.ndarray, jax.Array, Swept, type)):
        return as_array("hooks", hook)
    if callable(hook) and jax.tree_util.all_leaves([hook]):
        return jax.tree_util.Partial(hook)
    return hook


def _as_floats(value: Any) -> Any:
    """As `as_data`, integers as floats: ``Scale(1)`` and ``Scale(1.5)`` are then one program."""
    value = as_data(value)
    if isinstance(value, Swept):
        return Swept(_as_floats(value.values), value.grid)
    integer = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer)
    return value.astype(float) if integer else value


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and (
        not value or all(isinstance(v, (int, float, np.generic)) or _is_numbers(v) for v in value)
    )
