"""Axis order on disk against axis order in memory, both as data.

A layout such as ``(n_heads d_head) d_model`` lists the axes of a stored tensor; a bracket is one
stored axis holding several. Linear layers are stored output axis first and kept input axis first.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jmi_models.params import Param


def _axes(layout: str) -> list[tuple[str, ...]]:
    return [tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", layout)]


def _sizes(param: Param) -> dict[str, int]:
    return dict(zip(param.axes, param.shape, strict=True))


def _order(param: Param, layout: str) -> list[int]:
    """Positions in the ungrouped stored axes of the parameter's own axes, layers left out."""
    stored = [axis for group in _axes(layout) for axis in group]
    return [stored.index(axis) for axis in param.axes if axis != "n_layers"]


def disk_shape(param: Param, layout: str) -> tuple[int, ...]:
    """Shape of one stored tensor of ``param``."""
    sizes = _sizes(param)
    return tuple(math.prod(sizes[axis] for axis in group) for group in _axes(layout))


def from_disk(value: jax.Array, param: Param, layout: str) -> jax.Array:
    """A stored tensor in the axis order of one layer of ``param``."""
    sizes = _sizes(param)
    value = value.reshape([sizes[axis] for group in _axes(layout) for axis in group])
    return jnp.transpose(value, _order(param, layout))


def to_disk(value: np.ndarray, param: Param, layout: str) -> np.ndarray:
    """Inverse of `from_disk`."""
    order = _order(param, layout)
    return np.ascontiguousarray(np.transpose(value, np.argsort(order)).reshape(disk_shape(param, layout)))
