"""Labelled examples: checked, split in two, and weighted so that their classes count alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import as_array, real_array, shown
from jmi.errors import ArgumentError
from jmi.numerics import wide


def mean_over_tokens(values: Any, mask: Any) -> jax.Array:
    """One vector for each text, ``[n, width]``: the mean of ``values`` over its tokens that count.

    Features must be averaged, not taken of averaged activations: an encoder is no linear function.

    Args:
      values: activations or features, ``[n, tokens, width]``.
      mask: bool ``[n, tokens]``, False at padding and special tokens.

    Returns:
      In float32, or float64 if ``values`` are.

    Raises:
      ArgumentError: shapes that do not fit, or a text of which no token counts.

    Example:
      >>> mean_over_tokens([[[1.0], [3.0], [50.0]]], [[True, True, False]]).tolist()
      [[2.0]]
    """
    (values,), mask = _floats(real_array("values", values)), as_array("mask", mask)
    if values.ndim != 3 or mask.dtype != bool or mask.shape != values.shape[:2]:
        raise ArgumentError(
            f"values={list(values.shape)}, mask={shown(mask)}: give [n, tokens, width] and bool [n, tokens]"
        )
    if not isinstance(mask, jax.core.Tracer) and not np.asarray(mask).any(-1).all():
        raise ArgumentError("mask: of a text no token counts; leave it out")
    mask = jnp.asarray(mask)[:, :, None]
    return jnp.where(mask, values, 0).sum(1) / mask.sum(1).astype(values.dtype)


def checked(train: Any, **rows: Any) -> tuple[jax.Array, ...]:
    """``train`` as bool ``[n]``, and arrays ``[n, width]`` over the examples, as floats of one dtype.

    A ``decoder`` among them is ``[features, d]`` of the ``features`` and ``activations`` beside it.

    Raises:
      ArgumentError: shapes that do not fit, or numbers that are not finite.
    """
    train = truths("train", train, 1)
    arrays = {name: real_array(name, value) for name, value in rows.items()}
    n = train.shape[0]
    shapes = {name: (n, array.shape[-1] if array.ndim else 1) for name, array in arrays.items()}
    if "decoder" in arrays:
        shapes["decoder"] = (shapes["features"][1], shapes["activations"][1])
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            wanted = "features and activations have" if name == "decoder" else f"train has {n} examples"
            raise ArgumentError(f"{name}={list(array.shape)}: it must be {list(shapes[name])}, for {wanted}")
        if not isinstance(array, jax.core.Tracer) and not bool(jnp.isfinite(jnp.asarray(array)).all()):
            raise ArgumentError(f"{name}: NaN or infinite numbers are among them; leave those examples out")
    return train, *_floats(*arrays.values())


def truths(name: str, value: Any, axes: int, n: int | None = None) -> jax.Array:
    """An array of bool with so many axes, the last of them over ``n`` examples."""
    array = as_array(name, value)
    if array.dtype != bool or array.ndim != axes or n not in (None, array.shape[-1]):
        shape = ["tasks"] * (axes - 1) + ["n" if n is None else n]
        how = "" if axes == 1 else "; of classes as numbers make classes == np.arange(c)[:, None]"
        raise ArgumentError(f"{name}={shown(array)}: give bool [{', '.join(map(str, shape))}]{how}")
    return jnp.asarray(array)


def labelled(labels: Any, train: jax.Array) -> jax.Array:
    """``labels`` as bool ``[tasks, n]``; both classes of each task are on either side of the split."""
    labels = truths("labels", labels, 2, len(train))
    check_groups(classes(labels), train, "labels (class 1, class 0) x tasks")
    return labels


def check_groups(groups: Any, train: jax.Array, what: str) -> None:
    """Raise ArgumentError unless each of ``groups`` ``[..., n]`` has examples on either side of the split."""
    sides = split(groups, train)
    if any(isinstance(side, jax.core.Tracer) for side in sides):
        return
    for name, side in zip(("train", "test"), sides, strict=True):
        empty = np.argwhere(~np.asarray(side).any(-1))
        if len(empty):
            raise ArgumentError(
                f"{what}: among the {name} examples some have none, first {empty[0].tolist()}"
            )


def split(groups: jax.Array, train: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The train examples and the test examples of ``groups`` ``[..., n]``."""
    train = jnp.broadcast_to(train, groups.shape)
    return groups & train, groups & ~train


def classes(labels: jax.Array) -> jax.Array:
    """Positive and negative examples of each task, ``[2, ..., n]``."""
    return jnp.stack([labels, ~labels])


def balanced(groups: jax.Array, dtype: Any) -> jax.Array:
    """Weights of examples ``[..., n]`` under which all ``groups`` ``[groups, ..., n]`` count alike.

    They add up to the number of examples, as scikit-learn's ``class_weight="balanced"``; 0 in no group.
    """
    counts = groups.sum(-1, keepdims=True).astype(dtype)
    share = counts.sum(0, keepdims=True) / (len(groups) * counts)
    return (groups.astype(dtype) * share).sum(0)


def mean_difference(x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of ``x`` ``[n, width]`` where ``y`` holds, minus that of the others; examples weighted."""
    one, other = (weights * side.astype(x.dtype) for side in (y, ~y))
    return (one / one.sum() - other / other.sum()) @ x


def _floats(*arrays: Any) -> list[jax.Array]:
    """All in the widest of their dtypes, float32 at least."""
    given = [jnp.asarray(array) for array in arrays]
    dtypes = [wide(a.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else jnp.float32 for a in given]
    widest = max(dtypes, key=lambda dtype: jnp.dtype(dtype).itemsize)
    return [array.astype(widest) for array in given]
