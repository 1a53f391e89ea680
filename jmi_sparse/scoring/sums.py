"""Sums over the tokens of a corpus: made on the device for a batch, added up in float64 on the host.

Axis letters: L sites that are read, T sites that are written, b batch, s places, d width, f features.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.engine.programs import compiled
from jmi.numerics import wide
from jmi_sparse.scoring.places import encoded, reconstructed


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean of vectors ``[d]`` and the sum of their squared distances from it, of ``n`` of them.

    Two parts are added as Chan, Golub and LeVeque (1979) do it, which loses nothing where the mean is large.
    """

    n: int
    mean: np.ndarray
    squares: float

    def __add__(self, other: "Moments") -> "Moments":
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + float(apart @ apart) * self.n * other.n / max(n, 1)
        return Moments(n, self.mean + apart * (other.n / max(n, 1)), squares)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is known of the output at one site, over the tokens so far.

    Attributes:
      target, error: of what it stands for, and of what it misses.
      sums: sums over tokens, by name.
      by_batch: sum over batches of their tokens times missed over total squares.
    """

    target: Moments
    error: Moments
    sums: dict[str, float]
    by_batch: float

    def __add__(self, other: "Outputs") -> "Outputs":
        sums = {key: value + other.sums[key] for key, value in self.sums.items()}
        return Outputs(
            self.target + other.target, self.error + other.error, sums, self.by_batch + other.by_batch
        )


@dataclasses.dataclass(frozen=True)
class Features:
    """What is known of the features of one site, over the tokens so far.

    Attributes:
      n: tokens.
      counts: ``[f]``, tokens on which each is active.
      values: ``[f]``, sum of its activations.
      prompts: ``[f]``, rows in which it is active somewhere.
      l1: sum of magnitudes over tokens and features.
    """

    n: int
    counts: np.ndarray
    values: np.ndarray
    prompts: np.ndarray
    l1: float

    def __add__(self, other: "Features") -> "Features":
        return Features(
            self.n + other.n,
            self.counts + other.counts,
            self.values + other.values,
            self.prompts + other.prompts,
            self.l1 + other.l1,
        )


def measure(
    dictionary: Any, x: tuple[jax.Array, ...], y: tuple[jax.Array, ...], counted: np.ndarray
) -> tuple[list[Outputs], list[Features]]:
    """`Outputs` of each site that is written and `Features` of each that is read, of one batch.

    Args:
      x, y: what is read, and what the outputs stand for, ``[b, s, ...]`` each.
      counted: bool ``[b, s]``, at least one of them True.
    """
    n = int(counted.sum())
    outputs, features = jax.device_get(_measured(dictionary, x, y, jnp.asarray(counted)))
    return [_outputs(row, n) for row in _rows(outputs)], [Features(n, **row) for row in _rows(features)]


def _rows(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Arrays with a leading axis of sites as dicts of one site, in float64."""
    wider = {key: np.asarray(value, np.float64) for key, value in arrays.items()}
    return [{key: value[i] for key, value in wider.items()} for i in range(len(next(iter(wider.values()))))]


def _outputs(row: dict[str, Any], n: int) -> Outputs:
    target = Moments(n, row.pop("target_mean"), float(row.pop("target_squares")))
    error = Moments(n, row.pop("error_mean"), float(row.pop("error_squares")))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.float64(row["error"]) / np.float64(target.squares)
    return Outputs(target, error, {key: float(value) for key, value in row.items()}, float(n * share))


@compiled()
def _measured(dictionary: Any, x: Any, y: Any, counted: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    features, outputs = encoded(dictionary, x), reconstructed(dictionary, x)
    dtype = np.promote_types(wide(y[0].dtype), wide(outputs.dtype))
    wanted = jnp.stack([_flat(each) for each in y]).astype(dtype)
    found = jax.vmap(_flat)(outputs).astype(dtype)
    return (
        jax.vmap(lambda y, z: _of_output(y, z, counted))(wanted, found),
        jax.vmap(lambda f: _of_features(f.astype(wide(f.dtype)), counted))(features),
    )


def _flat(value: jax.Array) -> jax.Array:
    """``[b, s, d]``, heads and their width as one axis."""
    return value.reshape(*value.shape[:2], -1)


def _of_output(y: jax.Array, z: jax.Array, counted: jax.Array) -> dict[str, jax.Array]:
    """Sums of outputs ``z`` that stand for ``y``, both ``[b, s, d]``, over the counted tokens."""
    error = y - z
    mean, total = _centred(y, counted)
    error_mean, error_total = _centred(error, counted)
    missed, size, own, both = (jnp.sum(a * b, -1) for a, b in ((error, error), (y, y), (z, z), (y, z)))
    norm, own_norm = jnp.sqrt(size), jnp.sqrt(own)
    product = norm * own_norm
    cosine = jnp.where(product > 0, both / jnp.where(product > 0, product, 1), 0)
    by_token = {
        "error": missed,
        "own": own,
        "both": both,
        "cosine": cosine,
        "ratio": own_norm / jnp.where(norm < 1e-4, 1, norm),
        "legacy": missed / total,
    }
    by_token |= {"target_squares": total, "error_squares": error_total}
    sums = {key: jnp.where(counted, value, 0).sum() for key, value in by_token.items()}
    return sums | {"target_mean": mean, "error_mean": error_mean}


def _centred(value: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean ``[d]`` over the counted tokens, and squared distances from it ``[b, s]``."""
    kept = jnp.where(counted[..., None], value, 0)
    mean = kept.sum((0, 1)) / counted.sum().astype(value.dtype)
    return mean, jnp.square(value - mean[None, None]).sum(-1)


def _of_features(f: jax.Array, counted: jax.Array) -> dict[str, jax.Array]:
    """Sums of features ``[b, s, f]``."""
    kept = jnp.where(counted[..., None], f, 0)
    active = kept != 0
    return {
        "counts": active.sum((0, 1)),
        "values": kept.sum((0, 1)),
        "prompts": active.any(1).sum(0),
        "l1": jnp.abs(kept).sum(),
    }
