"""Statistics over examples: intervals and tests for the mean of each cell of an experiment.

Values have the examples as last axis, ``[..., n]``; every cell before it is treated by itself. Results
are numpy float64. A NaN among the values makes the results of its cell NaN; infinite values are refused,
for they have no mean to compare.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from jmi.checks import real_number, whole_number
from jmi.errors import ArgumentError

_BLOCK = 2**24
"""Entries of the arrays that are made at once."""


class Interval(NamedTuple):
    """Bounds of a confidence interval, ``[...]`` each."""

    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean effect of every cell, all ``[...]``.

    Attributes:
      mean: over the examples.
      low, high: confidence interval of the mean (`bootstrap`).
      p: that the effect has no sign (`sign_flip`), not corrected for the number of cells.
      q: Benjamini-Hochberg adjusted ``p`` over all cells: calling the cells with q <= x effects, a
        share of at most x of them is expected to be none.
      placebo: mean of the placebo, or None.
      placebo_p: that effect and placebo do not differ (sign flips of the paired differences), or None.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray
    placebo: np.ndarray | None = None
    placebo_p: np.ndarray | None = None


def bootstrap(values: Any, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Confidence interval of the mean: bias-corrected and accelerated bootstrap (Efron 1987, "BCa").

    All cells are resampled alike. A cell whose examples are all equal has the interval of that number.

    Args:
      values: ``[..., n]``, two examples or more.
      level: of confidence.

    Raises:
      ArgumentError: a single example, values that are no finite numbers (or NaN), a level outside (0, 1).

    Example:
      >>> low, high = bootstrap([1.0, 2.0, 4.0, 3.0, 2.5])
      >>> bool(low < 2.5 < high)
      True
    """
    flat, shape = _cells(values)
    if flat.shape[1] < 2:
        raise ArgumentError("a bootstrap needs two examples or more")
    level = real_number("level", level, 0, 1)
    resamples, seed = whole_number("resamples", resamples), whole_number("seed", seed, 0)
    n = flat.shape[1]
    chosen = np.random.default_rng(seed).integers(0, n, (resamples, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in chosen], axis=1) / n
    step = max(1, _BLOCK // resamples)
    values, exponent = _scaled(flat)
    bounds = [_bca(values[i : i + step], weights, level) for i in range(0, len(flat), step)]
    low, high = np.ldexp(np.concatenate(bounds, axis=1) if bounds else np.zeros((2, 0)), exponent)
    return Interval(low.reshape(shape), high.reshape(shape))


def _bca(values: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """Bounds ``[2, cells]`` of the mean of ``values`` ``[cells, n]``, resampled by ``weights`` ``[n, r]``."""
    from scipy import special

    n, mean = values.shape[1], values.mean(-1, keepdims=True)
    means = np.sort(values @ weights, axis=-1)
    # Of a tie, half lies below.
    slack = 1e-12 * np.abs(values).max(-1, keepdims=True)
    below, ties = (means < mean - slack).mean(-1), (np.abs(means - mean) <= slack).mean(-1)
    bias = special.ndtri(below + ties / 2)
    # The mean without one example lies the other side of the mean, by 1 / (n - 1) of its distance.
    away = (values - mean) / (n - 1)
    square = np.square(away).sum(-1)
    flat = square <= slack[:, 0] ** 2
    skew = (away**3).sum(-1) / (6 * np.where(flat, 1, square) ** 1.5)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + special.ndtri(tail)
        share = special.ndtr(bias + z / (1 - skew * z))
        bounds.append(np.where(flat, mean[:, 0], _quantile(means, share)))
    return np.where(np.isnan(mean[:, 0]), np.nan, np.stack(bounds))


def _quantile(ordered: np.ndarray, share: np.ndarray) -> np.ndarray:
    """One quantile of each row of ``ordered``, interpolated linearly."""
    place = np.nan_to_num(share) * (ordered.shape[1] - 1)
    left = np.floor(place).astype(int)
    right = np.minimum(left + 1, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    return ordered[rows, left] + (place - left) * (ordered[rows, right] - ordered[rows, left])


def sign_flip(values: Any, *, permutations: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided p-value that values scatter evenly around zero: how rare the mean is under random signs.

    Exact over all ``2**n`` signs where they are no more than ``permutations``; otherwise that many are
    drawn, and the observed one counts among them, so p is never zero (Phipson & Smyth 2010).

    Args:
      values: ``[..., n]``.

    Returns:
      ``[...]``. With ``n`` examples no p is below ``2 / 2**n``.

    Raises:
      ArgumentError: values that are no finite numbers (or NaN), no example.

    Example:
      >>> float(sign_flip([1.0, 2.0, 3.0]))
      0.25
    """
    given, shape = _cells(values)
    flat, _ = _scaled(given)
    permutations, seed = whole_number("permutations", permutations), whole_number("seed", seed, 0)
    n = flat.shape[1]
    exact = n < 63 and 2**n <= permutations
    if exact:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (permutations, n))
    step = max(1, _BLOCK // len(signs))
    p = np.zeros(len(flat))
    for i in range(0, len(flat), step):
        block = flat[i : i + step]
        # Sums of the same numbers in another order may differ in their last digits.
        bar = np.abs(block.sum(-1)) - 1e-12 * np.abs(block).sum(-1)
        rare = (np.abs(block @ signs.T) >= bar[:, None]).sum(-1)
        p[i : i + step] = rare / len(signs) if exact else (1 + rare) / (1 + len(signs))
    return np.where(np.isnan(flat).any(-1), np.nan, p).reshape(shape)


def summary(
    values: Any, placebo: Any = None, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Mean, interval and p-value of every cell, and how it compares with a placebo.

    Args:
      values: effects ``[..., n]``, such as ``result.effect`` of `jmi.interp.patching.patch`.
      placebo: effects ``[seeds, ..., n]`` of the same cells and examples under a placebo; the mean
        over its seeds is taken for each example.
      level, resamples, seed: as `bootstrap`.

    Raises:
      ArgumentError: as `bootstrap`, or a placebo of other cells or examples, or of no seed.

    Example:
      >>> found = summary([[1.0, 1.2, 0.9, 1.1, 1.3, 0.8], [0.1, -0.2, 0.1, 0.0, -0.1, 0.2]])
      >>> (found.p < 0.05).tolist()
      [True, False]
    """
    given = _numbers("values", values)
    other = None if placebo is None else _numbers("placebo", placebo)
    if other is not None and (other.shape[1:] != given.shape or not len(other)):
        raise ArgumentError(f"placebo= has shape {other.shape}; it must be [seeds, *{given.shape}]")
    low, high = bootstrap(given, level=level, resamples=resamples, seed=seed)
    p = sign_flip(given, seed=seed)
    found = Summary(given.mean(-1), low, high, p, _adjusted(p))
    if other is None:
        return found
    other = other.mean(0)
    return dataclasses.replace(found, placebo=other.mean(-1), placebo_p=sign_flip(given - other, seed=seed))


def _adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg over all cells that have a p-value."""
    from scipy import stats  # takes longer to import than JAX

    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def _cells(values: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Values as ``[cells, n]``, and the shape of the cells."""
    given = _numbers("values", values)
    if given.ndim == 0 or not given.shape[-1]:
        raise ArgumentError("values= needs a last axis with the examples")
    return given.reshape(-1, given.shape[-1]), given.shape[:-1]


def _numbers(name: str, given: Any) -> np.ndarray:
    """``given`` as float64."""
    try:
        values = np.asarray(given)
        found = values.astype(float) if values.dtype.kind not in "SUMmc" else None
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise ArgumentError(f"{name}= must be an array of real numbers, the examples along its last axis")
    if np.isinf(found).any():
        raise ArgumentError(
            f"{name}= holds {np.isinf(found).sum()} infinite numbers: leave those examples out"
        )
    return found


def _scaled(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row over a power of two, so that neither its squares nor its sums leave the floats; the powers."""
    _, exponent = np.frexp(np.fmax.reduce(np.abs(values), axis=-1))
    return np.ldexp(values, -exponent[:, None]), exponent
