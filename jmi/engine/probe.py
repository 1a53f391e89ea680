"""Probes: zeros added at points of a run; the gradient with respect to them is the one at the point."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.captures.capture import Plan, plan
from jmi.checks import several
from jmi.errors import ArgumentError, HookError
from jmi.hooks.layers import At, PerLayer
from jmi.hooks.resolve import Hooks, prepare
from jmi.model.sites import HasSites, Site, table_of


@jax.custom_jvp
def nudge(value: jax.Array, zeros: jax.Array) -> jax.Array:
    """``value + zeros`` for derivatives; the sum itself is not computed, so the zeros take no memory."""
    del zeros
    return value


@nudge.defjvp
def _nudge_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] + tangents[1]


@tree.dataclass
class Probe:
    """Adds ``zeros``, whose gradient is the one at the point."""

    zeros: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        return nudge(value, self.zeros)


def follow(arch: HasSites, hooks: Hooks | None, shape: Any, layout: Plan, last: Sequence[Any]) -> Hooks:
    """``hooks`` and then, at the point of each group of ``layout``, one more intervention.

    Args:
      last: one for each group; inside the blocks their arrays have one row for each layer of the group.
    """
    followed: dict[str, Any] = dict(prepare(arch, hooks, shape))
    for group, layers, (slots, _), hook in zip(layout.groups, layout.layers, layout.data, last, strict=True):
        if layers is not None:
            hook = At(np.asarray(slots) >= 0, PerLayer(hook, None if group.whole else slots))
        followed[group.point] = (*followed.get(group.point, ()), hook)
    return followed


def plan_points(arch: HasSites, sites: str | Sequence[str], shape: Any) -> Plan:
    """The points and layers that ``sites`` name; HookError for one that no hook can act on."""
    names = names_of(sites)
    if not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError("sites= takes names: a gradient is that of a whole value, after its hooks")
    layout = plan(arch, names, shape)
    derived = [group.point for group in layout.groups if table_of(arch)[group.point].derived]
    if derived:
        raise HookError(f"{', '.join(derived)}: derived for captures alone, the model does not read it")
    return layout


def names_of(sites: str | Sequence[str]) -> list[str]:
    """Names as given by a user, one or several."""
    return [sites] if isinstance(sites, str) else several("sites", sites, "names")
