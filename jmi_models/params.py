"""The abstract parameter tree of an architecture: one description drives everything.

Shapes, logical axes and initial values of every parameter stand in one place; initialisation,
placement on a mesh, loading, saving and their checks all read them there.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jmi.checks import check_architecture, float_dtype, shown, whole_number
from jmi.errors import ArgumentError
from jmi.model.architecture import runs_of, stack_name


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter.

    Attributes:
      shape: sizes, in the order of ``axes``.
      axes: logical axis names; stacked layer parameters begin with ``n_layers``.
      init: standard deviation of a normal initialisation, or ``"ones"`` or ``"zeros"``.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: float | str = 0.02


class HasParams(Protocol):
    """The part of an architecture that loading and initialisation need."""

    def param_tree(self) -> dict[str, Any]: ...


def check_describes(arch: Any) -> None:
    """Raise ArgumentError for what is no architecture that describes its parameters."""
    check_architecture(arch)
    if not hasattr(arch, "param_tree"):
        raise ArgumentError(f"arch={shown(arch)}: it has no param_tree(), which describes parameters")


def flat(tree: Any) -> dict[str, Any]:
    """``{"blocks.attn.W_Q": leaf}``: leaves of a nested dict under dotted paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def nested(flat_tree: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat_tree.items():
        *folders, name = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def init(arch: HasParams, seed: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Random parameters, a function of the seed alone (not of the number of devices).

    Returns:
      The parameter pytree, layers stacked, in ``dtype``.
    """
    check_describes(arch)
    seed, dtype = whole_number("seed", seed, 0), float_dtype(dtype)
    params = flat(arch.param_tree())
    keys = jax.random.split(jax.random.key(seed), len(params))
    drawn = zip(params.items(), keys, strict=True)
    return nested({path: _init(key, param, dtype) for (path, param), key in drawn})


def stacked(arch: Any, params: Any) -> Any:
    """``params`` with listed layers in stacks of like ones, on the host; those in stacks stay as they are."""
    blocks, runs = params["blocks"], runs_of(arch)
    if not isinstance(blocks, (list, tuple)):
        return params
    if len(blocks) != arch.n_layers:
        raise ArgumentError(f"params['blocks'] lists {len(blocks)} layers, the model has {arch.n_layers}")
    stacks = {
        stack_name(run): jax.tree.map(lambda *rows: np.stack(rows), *blocks[run.start : run.stop])
        for run in runs
    }
    return {**params, "blocks": stacks if len(runs) > 1 else stacks[stack_name(runs[0])]}


def _init(key: jax.Array, param: Param, dtype: Any) -> jax.Array:
    if isinstance(param.init, str):
        return jax.device_put(np.full(param.shape, {"ones": 1, "zeros": 0}[param.init], dtype))
    return _normal(key, param.shape, dtype, np.float32(param.init))


# One program for each shape: together they would take XLA several times as long to compile.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, deviation: jax.Array) -> jax.Array:
    return (jax.random.normal(key, shape, jnp.float32) * deviation).astype(dtype)


def n_params(arch: HasParams) -> int:
    """Number of parameters."""
    check_describes(arch)
    return sum(math.prod(p.shape) for p in flat(arch.param_tree()).values())
