"""Where the arrays of a dictionary lie: on one device, or its features over the devices of a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmi.errors import ArgumentError

AXIS = "model"
"""The axis of a mesh over which features are split, as the heads of a model are."""

_LAST = ("W_enc", "b_enc", "threshold", "b_gate", "b_mag", "r_mag", "log_density")
"""Arrays whose last axis is features; of `W_dec` it is the one before."""


def placed(dictionary: Any, mesh: Mesh | None) -> Any:
    """The dictionary with all arrays on devices: the default one, or each feature on one of a ``mesh``.

    Raises:
      ArgumentError: a mesh without the axis ``model``, or features that it does not divide.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, dictionary)
    if AXIS not in mesh.shape:
        raise ArgumentError(f"mesh: features are split over an axis {AXIS!r}; it has {list(mesh.shape)}")
    size = mesh.shape[AXIS]
    if dictionary.n_features % size:
        raise ArgumentError(f"mesh: {dictionary.n_features} features cannot be split over {size} devices")

    def put(path: Any, array: Any) -> Any:
        name, axes = path[-1].name, list[str | None]([None] * jnp.ndim(array))
        if name == "W_dec":
            axes[-2] = AXIS
        elif name in _LAST and jnp.ndim(array):
            axes[-1] = AXIS
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(put, dictionary)
