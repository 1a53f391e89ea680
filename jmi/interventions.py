"""Interventions: what a hook does to the tensor at a site.

An intervention is any pytree callable ``(value, site) -> value`` of the same shape and dtype. Its
arrays are data, so a new vector, strength, position, head or layer never recompiles; its type and
structure are static. Those below broadcast a payload numpy-style against the site's last axes and
compute in the site's dtype. Edits of attention weights are in `jmi.attention_edits`.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jmi.errors import InterventionError
from jmi.numerics import wide
from jmi.selection import Selective
from jmi.sites import Site


class Intervention(Protocol):
    """Contract of everything in a hooks dict.

    ``value`` is the tensor at the site and ``site`` says which site and layer it is. The result
    flows onward in its place and must have the same shape and dtype. The function must be pure:
    it is traced once per structure and may run under jit, vmap, grad and shard_map.
    """

    def __call__(self, value: jax.Array, site: Site) -> jax.Array: ...


def fit(payload: Any, value: jax.Array, site: Site) -> jax.Array:
    """``payload`` broadcast and cast to ``value``; InterventionError when it does not fit."""
    payload = jnp.asarray(payload)
    if not (jnp.issubdtype(payload.dtype, jnp.floating) or jnp.issubdtype(payload.dtype, jnp.integer)):
        raise InterventionError(f"{site.point}: the payload has dtype {payload.dtype}; give real numbers")
    try:
        fits = jnp.broadcast_shapes(payload.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        raise InterventionError(
            f"{site.point}: a payload of shape {payload.shape} does not fit {describe(value, site)}; "
            f"the nearest valid shape is {_nearest(payload.shape, value.shape)}"
        )
    return jnp.broadcast_to(payload.astype(value.dtype), value.shape)


def describe(value: jax.Array, site: Site) -> str:
    """``[batch 1, pos 6, d_model 64]``."""
    return "[" + ", ".join(f"{a} {n}" for a, n in zip(site.axes, value.shape, strict=True)) + "]"


def _nearest(given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    return wanted[max(0, len(wanted) - max(1, len(given))) :]


@struct.dataclass
class Replace(Selective):
    """Put ``value`` there (broadcast against the site), where selected.

    Example:
      >>> import jax.numpy as jnp, jmi
      >>> mean = jnp.zeros(64)
      >>> hooks = {"blocks.3.hook_mlp_out": jmi.Replace(mean, positions=-1)}
    """

    value: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(fit(self.value, value, site), value, site)


@struct.dataclass
class Add(Selective):
    """Add ``scale * vector``, where selected: activation steering."""

    vector: Any
    scale: Any = 1.0

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        shift = fit(self.vector, value, site) * fit(self.scale, value, site)
        return self.select(value + shift, value, site)


@struct.dataclass
class Scale(Selective):
    """Multiply by ``factor``, where selected."""

    factor: Any

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(value * fit(self.factor, value, site), value, site)


@struct.dataclass
class Zero(Selective):
    """Set to exactly zero, where selected (even where the value is infinite)."""

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        return self.select(jnp.zeros_like(value), value, site)


@struct.dataclass
class Patch(Selective):
    """Copy activations of another run: ``source`` at the selected coordinates.

    Attributes:
      source: the tensor of the same site in the other run, shape as here or with one batch row;
        its length may differ when ``source_positions`` is given.
      source_positions: where in ``source`` to read, one index per entry of ``positions``, for
        prompts that line up at different places. Without it, the same positions are read.

    Raises:
      InterventionError: ``source`` has another shape, or the two position lists do not pair up.
    """

    source: Any
    source_positions: Any = None

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        source = jnp.asarray(self.source)
        if source.ndim != value.ndim:
            raise InterventionError(
                f"{site.point}: Patch needs the whole tensor of the other run, shape {value.shape}; "
                f"got {source.shape}. To write one vector use Replace"
            )
        if self.source_positions is not None:
            source = self._aligned(source, value, site)
        return self.select(fit(source, value, site), value, site)

    def _aligned(self, source: jax.Array, value: jax.Array, site: Site) -> jax.Array:
        axis = site.axis("pos", "query")
        read, write = jnp.atleast_1d(self.source_positions), jnp.atleast_1d(self.positions)
        if axis is None or self.positions is None or read.shape != write.shape or write.ndim != 1:
            raise InterventionError(
                f"{site.point}: source_positions= pairs with positions= one to one; "
                f"got shapes {read.shape} and {write.shape}"
            )
        rows = jnp.take(source, read, axis=axis, mode="wrap").astype(value.dtype)
        rows = jnp.broadcast_to(rows, (*value.shape[:axis], write.size, *value.shape[axis + 1 :]))
        return value.at[(slice(None),) * axis + (write,)].set(rows)


@struct.dataclass
class Project(Selective):
    """Remove, or keep only, the part of the last axis inside a subspace.

    Attributes:
      directions: ``[d]`` or ``[n, d]``, any lengths, linearly independent; made orthonormal here.
      keep: False removes the subspace (directional ablation), True keeps nothing else. Static.
    """

    directions: Any
    keep: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        # At least float32: orthonormalising in bfloat16 would leave a per-cent of the direction.
        directions = jnp.atleast_2d(jnp.asarray(self.directions)).astype(wide(value.dtype))
        if directions.ndim != 2 or directions.shape[1] != value.shape[-1]:
            raise InterventionError(
                f"{site.point}: directions of shape {jnp.shape(self.directions)} do not lie in the "
                f"last axis of {describe(value, site)}; give [{value.shape[-1]}] or [n, {value.shape[-1]}]"
            )
        basis, _ = jnp.linalg.qr(directions.T)
        inside = ((value.astype(basis.dtype) @ basis) @ basis.T).astype(value.dtype)
        return self.select(inside if self.keep else value - inside, value, site)


@struct.dataclass
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

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        # A conditional, not `where`: an expensive edit then costs only the layers it names.
        here = jax.lax.dynamic_index_in_dim(jnp.asarray(self.layers), site.layer, keepdims=False)
        return jax.lax.cond(here, lambda v: apply(self.hook, v, site), lambda v: v, value)


@struct.dataclass
class PerLayer:
    """An intervention whose arrays differ by layer: each has a leading ``layers`` axis; scalars do not.

    Example:
      >>> import jax.numpy as jnp, jmi
      >>> means = jnp.zeros((6, 128))
      >>> hooks = {"blocks.*.hook_mlp_out": jmi.PerLayer(jmi.Replace(means))}
    """

    hook: Any

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError outside the blocks, or for arrays without one entry per layer."""
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.hook) if jnp.ndim(leaf)}
        if sizes - {(site.n_layers,)}:
            raise InterventionError(
                f"{site.point}: every array in PerLayer needs a leading axis of {site.n_layers} layers"
                if site.n_layers
                else f"{site.point}: PerLayer acts inside the blocks only"
            )
        if hasattr(self.hook, "check") and not any(map(_is_traced, jax.tree.leaves(self.hook))):
            for layer in range(site.n_layers or 0):
                jax.tree.map(lambda x, i=layer: x[i] if jnp.ndim(x) else x, self.hook).check(site, shape)

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        def pick(x: Any) -> Any:
            return jax.lax.dynamic_index_in_dim(x, site.layer, keepdims=False) if jnp.ndim(x) else x

        return apply(jax.tree.map(pick, self.hook), value, site)


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def apply(hook: Intervention, value: jax.Array, site: Site) -> jax.Array:
    """``hook(value, site)``, with its result held to the shape and dtype of ``value``."""
    out = hook(value, site)
    if getattr(out, "shape", None) != value.shape or out.dtype != value.dtype:
        got = f"{out.dtype}{list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
        raise InterventionError(
            f"{site.point}: the intervention returned {got}; it must return "
            f"{value.dtype}{list(value.shape)} like the value it was given"
        )
    return out
