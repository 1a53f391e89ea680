"""Where parameters live on a device mesh: logical axes to mesh axes, as one table."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jmi.errors import ArgumentError
from jmi_models.params import Param

MESH_AXES = {
    "n_heads": "model",
    "n_kv_heads": "model",
    "n_experts": "model",
    "d_mlp": "model",
    "d_vocab": "model",
    "d_model": "fsdp",
}
"""Logical parameter axis -> mesh axis: tensor parallelism over ``model``, sharding over ``fsdp``."""


def sharding_of(param: Param, mesh: Mesh | None) -> NamedSharding | None:
    """Placement of ``param``; None without a mesh.

    Raises:
      ArgumentError: the mesh has neither of the two axes.

    An axis is split when the mesh has its mesh axis and divides its size, else it is replicated:
    two key/value heads on four devices stay whole.
    """
    if mesh is None:
        return None
    known = sorted(set(MESH_AXES.values()))
    if not set(known) & set(mesh.shape):
        raise ArgumentError(f"mesh= has the axes {tuple(mesh.shape)}; name one of them {' or '.join(known)}")
    names = [MESH_AXES.get(axis) for axis in param.axes]
    split = [
        name if name in mesh.shape and size % mesh.shape[name] == 0 else None
        for name, size in zip(names, param.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*split))
