"""Projection: a subspace taken out of activations, or all that is kept of them."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.checks import flag, real_array
from jmi.errors import InterventionError
from jmi.hooks.masked import beside_mask
from jmi.hooks.selection import Selective
from jmi.model.sites import SCORES, Site
from jmi.numerics import wide


@tree.dataclass
class Project(Selective):
    """Remove, or keep only, the part of the last axis inside a subspace.

    Attributes:
      directions: ``[d]`` or ``[n, d]``, any lengths but zero; a dependent one adds nothing.
      keep: False removes the subspace (directional ablation), True keeps nothing else. Static.
    """

    takes_padding: ClassVar[bool] = True
    directions: Any
    keep: bool = tree.static(default=False)

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors or directions that do not fit, and for zero ones."""
        super().check(site, shape)
        flag(f"{site.point}: keep", self.keep)
        given = real_array(f"{site.point}: directions", self.directions).shape
        if len(given) not in (1, 2) or given[-1] != shape[-1]:
            raise InterventionError(
                f"{site.point}: directions of shape {given} do not lie in its last axis, "
                f"{site.axes[-1]}; give [{shape[-1]}] or [n, {shape[-1]}]"
            )
        if not isinstance(self.directions, jax.core.Tracer):
            lengths = np.linalg.norm(np.asarray(self.directions, np.float64), axis=-1)
            if not (np.isfinite(lengths) & (lengths > 0)).all():
                raise InterventionError(f"{site.point}: a direction of Project is zero or not finite")

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Keys are mixed at patterns; of scores only those a query sees."""
        return site.point == SCORES or "key" not in site.axes

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        # At least float32: a projection computed in bfloat16 would leave a per-cent of the direction.
        dtype = wide(value.dtype)
        directions = jnp.atleast_2d(jnp.asarray(self.directions)).astype(dtype)
        square = jnp.square(directions).sum(-1, keepdims=True)
        unit = directions * jax.lax.rsqrt(jnp.where(square > 0, square, 1))
        # The pseudo-inverse spans what the rows span, whatever their number and angles.
        dual = jnp.linalg.pinv(unit, rtol=100 * jnp.finfo(dtype).eps)

        def projected(value: jax.Array) -> jax.Array:
            inside = ((value.astype(dtype) @ dual) @ unit).astype(value.dtype)
            return inside if self.keep else value - inside

        return self.select(beside_mask(projected, value, site), value, site)
