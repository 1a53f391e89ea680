"""What is put in the place of an activation: that of another run, an ablation, or a placebo.

Axis letters: l layers (absent outside the blocks), n rows of the other prompts, b rows, s sequence.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmi.errors import ArgumentError
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


def replacement(
    kind: Kind, values: jax.Array, site: Site, rows: int, own: bool, mask: Any, seed: int
) -> jax.Array:
    """Tensor ``[l, b or 1, t, ...]`` that replaces activations, t counting real tokens of each row.

    Args:
      values: of the other prompts at ``site``, ``[l, n, s, ...]``, in a model without layers ``[n, s, ...]``.
      rows: b.
      own: whether the other prompts are the base's own; no row is then resampled from itself.
      mask: bool ``[n, s]``, real tokens of the other prompts, or None; t is then the number of the longest.

    Raises:
      ArgumentError: a kind that does not fit the prompts or the site.
    """
    batch = int(site.n_layers is not None)
    pos = site.axis("pos")
    if pos is None and kind in _ANYWHERE:
        raise ArgumentError(f"{site.point}: {kind} needs a site with one vector per position")
    if mask is not None and kind in RANDOM:
        raise ArgumentError(f"{kind}: padding would be drawn, too; use prompts of one length")
    if mask is not None:
        values, mask = _packed(values, mask, site, batch)
    if kind == "zero":
        return jnp.zeros_like(jax.lax.slice_in_dim(values, 0, 1, axis=batch))
    if kind in ("mean", "overall mean"):
        return _mean(values, batch, pos, kind == "overall mean", mask)
    if kind == "random":
        noise = jax.random.normal(jax.random.key(seed), values.shape, wide(values.dtype))
        length = jnp.linalg.norm(values.astype(noise.dtype), axis=-1, keepdims=True)
        noise = noise * (length / jnp.linalg.norm(noise, axis=-1, keepdims=True))
        return noise.astype(values.dtype)
    if kind == "source":
        return values
    n, s = values.shape[batch], values.shape[batch + 1]
    rng = np.random.default_rng(seed)
    if kind == "shuffled":
        row, place = rng.integers(0, n, (rows, s)), rng.integers(0, s, (rows, s))
        return values[(slice(None),) * batch + (row, place)]
    if n < 2:
        raise ArgumentError("resample needs two rows or more to draw from")
    chosen = (np.arange(rows) + rng.integers(1, n, rows)) % n if own else rng.integers(0, n, rows)
    return values[(slice(None),) * batch + (chosen,)]


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
