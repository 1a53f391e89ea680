"""In which layers an intervention acts, and with which arrays in each of them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.errors import InterventionError
from jmi.hooks.interventions import apply
from jmi.hooks.reach import says
from jmi.model.sites import Site


@tree.dataclass
class At:
    """Run ``hook`` only in some layers; ``layers`` is data, so moving it never recompiles.

    Attributes:
      layers: one layer, a list of layers, or a boolean mask ``[n_layers]``; negative counts from
        the end. Use with a ``blocks.*`` name.
      hook: the intervention.

    Example:
      >>> import jmi
      >>> hooks = {"blocks.*.hook_mlp_out": jmi.At([2, 3], jmi.Zero())}
    """

    layers: Any
    hook: Any

    def is_local(self, site: Site) -> bool:
        """As the intervention."""
        return says(self.hook, "is_local", site)

    def is_causal(self, site: Site) -> bool:
        """As the intervention."""
        return says(self.hook, "is_causal", site)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.where_chosen(lambda v: apply(self.hook, v, site), value, site)

    def where_chosen(self, act: Callable[[jax.Array], jax.Array], value: jax.Array, site: Site) -> jax.Array:
        """``act(value)`` in the chosen layers, else ``value``."""
        # A conditional, not `where`: an expensive edit then costs only the layers it names.
        here = jax.lax.dynamic_index_in_dim(jnp.asarray(self.layers), site.layer, keepdims=False)
        return jax.lax.cond(here, act, lambda v: v, value)


@tree.dataclass
class PerLayer:
    """What differs by layer: an intervention, or a reducer, whose arrays have a leading axis of layers.

    The layer loop hands each layer its own rows; scalars are the same in each.

    Attributes:
      hook: a row for each layer that has the point.
      slots: int32 ``[n_layers]``, where rows stand in another order or some layers have none: the row of each
        layer. It then runs in no other layer (`At`).

    Example:
      >>> import jax.numpy as jnp, jmi
      >>> means = jnp.zeros((6, 128))
      >>> hooks = {"blocks.*.hook_mlp_out": jmi.PerLayer(jmi.Replace(means))}
    """

    hook: Any
    slots: Any = None

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError outside the blocks, or for arrays without one entry per layer."""
        if site.n_layers is None:
            raise InterventionError(f"{site.point}: PerLayer acts inside the blocks only")
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.hook) if jnp.ndim(leaf)}
        if self.slots is None and sizes - {(site.n_layers,)}:
            raise InterventionError(
                f"{site.point}: every array in PerLayer needs a leading axis of {site.n_layers} layers"
            )
        if self.slots is not None and not isinstance(self.slots, jax.core.Tracer):
            known, rows = np.asarray(self.slots), min((size for (size,) in sizes), default=np.inf)
            integers = np.issubdtype(known.dtype, np.integer)
            if not integers or not known.size or known.min() < -1 or known.max() >= rows:
                raise InterventionError(
                    f"{site.point}: slots={known.tolist()} of PerLayer name rows, of which there are {rows}; "
                    "-1 stands for none"
                )
        if hasattr(self.hook, "check") and not self._traced():
            for hook in self._rows(site):
                hook.check(site, shape)

    def is_local(self, site: Site) -> bool:
        """As the intervention; where it acts does not depend on what it holds."""
        return says(self.hook, "is_local", site)

    def is_causal(self, site: Site) -> bool:
        """As the interventions of all layers."""
        return all(says(hook, "is_causal", site) for hook in self._rows(site))

    def __call__(self, value: Any, site: Site) -> Any:
        raise TypeError(
            "PerLayer is no intervention by itself: the layer loop takes a layer's rows out of it"
        )

    def _traced(self) -> bool:
        return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self.hook, self.slots)))

    def _rows(self, site: Site) -> list[Any]:
        """The intervention of each layer; where its arrays are traced, what is known of all of them."""
        if self._traced():
            return [self.hook]
        # In numpy: slicing device arrays layer by layer would cost more than a small model.
        host = jax.tree.map(np.asarray, self.hook)
        every = range(site.n_layers or 0) if self.slots is None else np.unique(self.slots)
        return [jax.tree.map(lambda x, i=i: x[i] if x.ndim else x, host) for i in every if i >= 0]


def is_per_layer(hook: Any) -> bool:
    """Whether ``hook`` has rows for layers."""
    return isinstance(hook, PerLayer)


def having_rows(hook: Any, n_layers: int) -> Any:
    """The layers for which ``hook`` has arrays, bool ``[n_layers]``; None where nothing differs by layer."""
    if not is_per_layer(hook) or hook.slots is None:
        return None
    slots = hook.slots if isinstance(hook.slots, jax.core.Tracer) else np.asarray(hook.slots)
    if slots.shape != (n_layers,):
        raise InterventionError(
            f"PerLayer: slots= has shape {slots.shape}; give the row of each of {n_layers} layers, or -1"
        )
    return slots >= 0


def arrays_by_layer(trees: Any) -> list[jax.Array]:
    """Arrays ``[layers, ...]`` in ``trees`` with a row for each layer that has the point, in one order.

    They are inputs of the scan, so that their gradients are its outputs: picked inside the body, each
    layer's gradient would be added to a buffer of all layers.
    """
    found = [hook for hook in jax.tree.leaves(trees, is_leaf=is_per_layer) if is_per_layer(hook)]
    return [x for hook in found if hook.slots is None for x in jax.tree.leaves(hook.hook) if jnp.ndim(x)]


def of_layer(trees: Any, rows: Iterator[Any] | None, slots: Any, layer: Any) -> Any:
    """``trees`` in one layer, given its ``rows`` of the arrays above, or else the row of each layer."""

    def unwrapped(hook: Any) -> Any:
        if not is_per_layer(hook):
            return hook
        if hook.slots is None and rows is not None:
            return jax.tree.map(lambda x: next(rows) if jnp.ndim(x) else x, hook.hook)
        return picked(hook.hook, slots if hook.slots is None else hook.slots, layer)

    return jax.tree.map(unwrapped, trees, is_leaf=is_per_layer)


def picked(arrays: Any, slots: Any, layer: Any) -> Any:
    """The row of a layer in place of each array; scalars as they are."""
    row = jnp.maximum(jax.lax.dynamic_index_in_dim(jnp.asarray(slots), layer, keepdims=False), 0)
    pick = lambda x: jax.lax.dynamic_index_in_dim(jnp.asarray(x), row, keepdims=False)  # noqa: E731
    return jax.tree.map(lambda x: pick(x) if jnp.ndim(x) else x, arrays)
