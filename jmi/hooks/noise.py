"""Noise from a seed: Gaussian corruption of activations, and random directions as controls."""

from typing import Any

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.checks import real_array, shown, whole_array, whole_number
from jmi.errors import ArgumentError
from jmi.hooks.interventions import fit, payload
from jmi.hooks.masked import beside_mask
from jmi.hooks.selection import Selective
from jmi.model import padding
from jmi.model.sites import SCORES, Site
from jmi.numerics import wide


@tree.dataclass
class Noise(Selective):
    """Add independent Gaussian noise of standard deviation ``scale``, where selected.

    The draw is made for the whole tensor, so that of a position does not depend on which others are
    selected, nor on which side of a padded row the padding is. Rows, positions and layers are drawn
    independently of each other.

    Attributes:
      scale: standard deviation, a number or broadcast against the site.
      seed: integer; data, so seeds can be swept.

    Example:
      >>> import jmi_models
      >>> from jmi.hooks.noise import Noise
      >>> lm = jmi_models.load("atlas")
      >>> noisy = lm.run("The capital of France is", {"hook_embed": Noise(0.1, seed=3, positions=[3, 4])})
    """

    scale: Any = payload()
    seed: Any = 0

    def check(self, site: Site, shape: tuple[int, ...]) -> None:
        """Raise InterventionError for selectors that do not fit, ArgumentError for a seed that is none."""
        super().check(site, shape)
        seed = whole_array(f"{site.point}: seed", self.seed)
        if not isinstance(seed, jax.core.Tracer):
            whole_number(f"{site.point}: seed", seed, 0, 2**32 - 1)

    def is_local(self, site: Site) -> bool:
        """Each position by itself."""
        return True

    def is_causal(self, site: Site) -> bool:
        """Not where attention is given to later keys; a masked score stays masked."""
        return site.point == SCORES or "key" not in site.axes

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        key = jax.random.key(jnp.asarray(self.seed))
        if site.layer is not None:
            key = jax.random.fold_in(key, site.layer)
        dtype = wide(value.dtype)
        noise = jax.random.normal(key, value.shape, dtype)
        for axis in site.token_axes() if site.mask is not None else ():
            noise = padding.take(noise, padding.numbers(site.mask), axis, fill=0)
        noise = noise * fit(self.scale, value, site).astype(dtype)
        noisy = beside_mask(lambda v: (v.astype(dtype) + noise).astype(v.dtype), value, site)
        return self.select(noisy, value, site)


def random_directions(seeds: Any, vector: Any) -> jax.Array:
    """Controls for a direction: random ones of its length, ``[n, ...]`` for ``n`` integer seeds.

    Args:
      vector: ``[d]`` or ``[..., d]``, a direction for each leading index (layers, features); each random one
        has the length of the one in its place.

    Each is drawn uniformly from the sphere, in at least float32. As an axis of a sweep:

    Example:
      >>> import jax.numpy as jnp, jmi
      >>> steered = jnp.ones(64)
      >>> grid = jmi.Grid(control=jmi.random_directions(range(100), steered))
      >>> hooks = {"blocks.3.hook_resid_post": jmi.Add(grid["control"], positions=-1)}
    """
    vector, seeds = jnp.asarray(real_array("vector", vector, 1)), whole_array("seeds", seeds)
    if not vector.size:
        raise ArgumentError("vector= is empty: give a direction")
    if seeds.ndim != 1 or not seeds.size:
        raise ArgumentError(f"seeds={shown(seeds)}: give a list of whole numbers")
    length = jnp.linalg.norm(vector.astype(wide(vector.dtype)), axis=-1, keepdims=True)

    def one(seed: jax.Array) -> jax.Array:
        drawn = jax.random.normal(jax.random.key(seed), vector.shape, length.dtype)
        return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True) * length

    return jax.vmap(one)(jnp.asarray(seeds).astype(jnp.uint32)).astype(vector.dtype)
