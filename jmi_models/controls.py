"""Controls: models with the weights of a trained one and nothing of what it learned."""

import functools
import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp

from jmi.checks import whole_number
from jmi.model.architecture import Params
from jmi_models.params import HasParams, Param
from jmi_models.processing import check_applies, each_param

_Arch = TypeVar("_Arch", bound=HasParams)


def shuffled(arch: _Arch, params: Params, seed: int) -> tuple[_Arch, Params]:
    """A control: the entries of every tensor permuted at random within that tensor.

    Each layer, and each expert of a mixture, is permuted by itself; norm gains and biases too. So a
    tensor keeps the distribution of its entries and loses its structure: what this model shows as the
    trained one does is owed to the sizes of weights, not to what they learned. A tied unembedding
    stays the transposed embedding. The architecture is returned as it is.

    Args:
      seed: alone decides the permutations, on any number of devices, in any dtype and for stacked as
        for listed layers.

    Raises:
      ArgumentError: ``params`` are not those of ``arch``.
    """
    check_applies("shuffled", arch, params, {})
    root = jax.random.key(whole_number("seed", seed, 0))

    def change(path: str, param: Param, layer: int | None, x: jax.Array) -> jax.Array:
        key = jax.random.fold_in(root, zlib.crc32(path.encode()))
        key = key if layer is None else jax.random.fold_in(key, layer)
        # A router's bias is a vector over the experts: its last axis is no row of tensors.
        rows = [axis for axis in param.axes[:-1] if axis in ("n_layers", "n_experts")]
        mixed = _permuted(key, x, len(rows) - (layer is not None))
        # Gathered on every device to be sorted; put back where it lay.
        return jax.device_put(mixed, getattr(x, "sharding", None))

    return arch, each_param(change, arch, params)


@functools.partial(jax.jit, static_argnums=2)
def _permuted(key: jax.Array, x: jax.Array, rows: int) -> jax.Array:
    """Entries of ``x`` permuted, those at each index of its first ``rows`` axes among themselves."""
    if not rows:
        return jax.random.permutation(key, x.reshape(-1)).reshape(x.shape)

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _permuted(jax.random.fold_in(key, row[0]), row[1], rows - 1)

    return jax.lax.map(one, (jnp.arange(len(x), dtype=jnp.uint32), x))
