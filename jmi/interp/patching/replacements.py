"""What is put in the place of an activation: that of another run, an ablation, or a placebo.

Axis letters: l layers (absent outside the blocks), n rows of the other prompts, b rows, s sequence.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.errors import ArgumentError
from jmi.hooks.interventions import Patch, fit
from jmi.hooks.noise import Noise
from jmi.hooks.selection import Selective
from jmi.interp.patching.places import placed
from jmi.model import padding
from jmi.model.sites import Site
from jmi.numerics import wide

Kind = Literal["source", "zero", "mean", "overall mean", "resample", "random", "shuffled"]
"""source: the activation of the other prompt, in the same row.
zero: zeros.
mean: the mean over the other prompts at the same position, of those that have it.
overall mean: the mean over the other prompts and all their positions.
resample: the activation of another row, chosen by the seed, at the same position.
random: a Gaussian vector as long as that of the other prompt (placebo).
shuffled: the activation of a row and position of the other prompts chosen by the seed (placebo)."""

RANDOM = ("resample", "random", "shuffled")
"""Kinds that depend on a seed."""

ABLATIONS = ("zero", "mean", "overall mean", "resample")
"""Kinds that do not lead towards the other prompts."""

OF_ROW = ("source", "random")
"""Kinds that are made of the other prompt of each row, and so need its tokens to line up."""

_ANYWHERE = ("overall mean", "random", "shuffled")


def replacement(kind: Kind, values: jax.Array, site: Site, mask: Any) -> jax.Array:
    """Tensor ``[l, n or 1, t, ...]`` that replaces activations, t counting real tokens of each row.

    Args:
      kind: one that no seed decides; for the others see `Drawn`.
      values: of the other prompts at ``site``, ``[l, n, s, ...]``, in a model without layers ``[n, s, ...]``.
      mask: bool ``[n, s]``, real tokens of the other prompts, or None; t is then the number of the longest.

    Raises:
      ArgumentError: a kind that does not fit the prompts or the site.
    """
    batch, pos = int(site.layers is not None), site.axis("pos")
    if pos is None and kind in _ANYWHERE:
        raise ArgumentError(f"{site.point}: {kind} needs a site with one vector per position")
    if mask is not None:
        values, mask = _packed(values, mask, site, batch)
    if kind == "zero":
        return jnp.zeros_like(jax.lax.slice_in_dim(values, 0, 1, axis=batch))
    if kind in ("mean", "overall mean"):
        return _mean(values, batch, pos, kind == "overall mean", mask)
    return values


@tree.dataclass
class Drawn(Selective):
    """Put there, where selected, what a seed draws from the activations of other prompts.

    Attributes:
      values: of those prompts, ``[n, t, ...]``, of one layer.
      seed: integer; data, so seeds can be swept.
      at: int ``[b or 1, s]``, which of the t tokens each place gets; None where they are the places.
      kind: one of `RANDOM`. Static.
      own: whether the prompts are those of the run; no row is then resampled from itself. Static.
    """

    values: Any
    seed: Any
    at: Any = None
    kind: Kind = tree.static(default="resample", kw_only=True)
    own: bool = tree.static(default=False, kw_only=True)

    # A sweep knows these answers to be the same in every cell.
    is_local = Patch.is_local
    is_causal = Noise.is_causal

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        drawn = placed(self.draw(site, value.shape[0]), site, self.at, 0)
        return self.select(fit(drawn, value, site), value, site)

    def draw(self, site: Site, rows: int) -> jax.Array:
        """``[rows or n, t, ...]``. Rows and places are the same in every layer, random vectors are not."""
        values, key = jnp.asarray(self.values), jax.random.key(jnp.asarray(self.seed))
        n, t = values.shape[:2]
        if self.kind == "random":
            key = key if site.layer is None else jax.random.fold_in(key, site.layer)
            noise = jax.random.normal(key, values.shape, wide(values.dtype))
            length = jnp.linalg.norm(values.astype(noise.dtype), axis=-1, keepdims=True)
            noise = noise * (length / jnp.linalg.norm(noise, axis=-1, keepdims=True))
            return noise.astype(values.dtype)
        if self.kind == "shuffled":
            keys = jax.random.split(key)
            return values[
                jax.random.randint(keys[0], (rows, t), 0, n, jnp.int32),
                jax.random.randint(keys[1], (rows, t), 0, t, jnp.int32),
            ]
        row = jax.random.randint(key, (rows,), int(self.own), n, jnp.int32)
        return values[(jnp.arange(rows, dtype=jnp.int32) + row) % n if self.own else row]


def drawn(kind: Kind, values: jax.Array, site: Site, seed: Any, at: Any, *, own: bool, mask: Any) -> Drawn:
    """`Drawn` of ``values`` ``[l, n, t, ...]`` (``[n, t, ...]`` without layers), its arrays by layer.

    Raises:
      ArgumentError: a kind that does not fit the prompts or the site.
    """
    if site.axis("pos") is None and kind in _ANYWHERE:
        raise ArgumentError(f"{site.point}: {kind} needs a site with one vector per position")
    if mask is not None:
        raise ArgumentError(f"{kind}: padding would be drawn, too; use prompts of one length")
    if kind == "resample" and values.shape[int(site.layers is not None)] < 2:
        raise ArgumentError("resample needs two rows or more to draw from")
    if at is not None and site.n_layers is not None:
        at = np.broadcast_to(at, (site.n_layers, *at.shape))
    return Drawn(values, seed, at, kind=kind, own=own)


def _packed(values: jax.Array, mask: Any, site: Site, batch: int) -> tuple[jax.Array, np.ndarray]:
    """``values`` with the real tokens of each row first, and only so many places as the longest has."""
    count = np.asarray(mask).sum(-1)
    longest = np.arange(count.max())
    at = np.argsort(~np.asarray(mask), axis=-1, kind="stable")[:, : len(longest)]
    for axis in site.token_axes():
        values = padding.take(values, at, axis + batch, batch)
    return values, longest < count[:, None]


def _mean(values: jax.Array, batch: int, pos: int | None, overall: bool, mask: Any) -> jax.Array:
    """Mean over rows, and positions if ``overall``, of real tokens, in at least float32."""
    axes = (batch, batch + pos) if overall and pos is not None else (batch,)
    wider = values.astype(wide(values.dtype))
    if mask is None:
        mean = wider.mean(axes, keepdims=True)
    else:
        if pos is None:
            raise ArgumentError("mean over padded prompts needs a site with one vector per position")
        real = jnp.asarray(mask).reshape((1,) * batch + mask.shape + (1,) * (values.ndim - batch - 2))
        count = jnp.broadcast_to(real, values.shape).sum(axes, keepdims=True)
        mean = jnp.where(real, wider, 0).sum(axes, keepdims=True) / count.astype(wider.dtype)
    return mean.astype(values.dtype)
