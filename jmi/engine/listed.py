"""Layers as a list, in the memory of the stack that they come from, and when new tokens read them there.

A CPU copies each layer out of a stack before it uses it, which is nothing to a long prompt and half the time
of a single token. A list is not copied, but its layers are compiled one by one.
"""

from typing import Any

import jax
import numpy as np

from jmi.checks import check_params
from jmi.model.architecture import Params

PAYS = 1e9
"""Bytes that the tokens of one call would copy out of the stack in each layer, from which on it is listed.

Compiling one more layer took 0.05 to 0.17 s of a CPU, in which it copies 1.2 to 3e9 bytes (measured with a
layer of 14 MB and one of 28 MB, 1 to 8 rows). Lengths share programs (`jmi.engine.lengths`): a call may leave
a part of that to those that follow.
"""

_ALIGNED = 64
"""JAX reads the memory of numpy in place from multiples of so many bytes on."""


def for_tokens(params: Params, tokens: int, n_layers: int) -> list[Any] | None:
    """The layers of ``params`` as a list without copies, for a program in which so many tokens read them.

    None where that does not pay for its compilation (`PAYS`), or cannot be: on other devices, on several, for
    traced parameters, for layers whose bytes are no multiple of 64, and for layers that are a list already.
    """
    blocks = params["blocks"]
    leaves = jax.tree.leaves(blocks)
    if isinstance(blocks, (list, tuple)) or not all(map(_is_on_one_cpu, leaves)):
        return None
    size = sum(x.nbytes for x in leaves)
    copied = sum(x.nbytes for x in leaves if x.nbytes // len(x) % _ALIGNED)
    pays = tokens * size >= PAYS * n_layers and copied <= size / 100
    return listed(params)["blocks"] if pays else None


def listed(params: Any) -> Any:
    """``params`` with the layers as a list, each with arrays of its own, instead of stacked ones.

    Layers that are listed already stay as they are. On one CPU device the layers lie in the stack that they
    come from, which costs no memory and compiles nothing; elsewhere they are a copy.

    The results of a run are the same. A program then grows with the layers, and so does the time to compile
    it, but a CPU reads each weight where it is: out of a stack it is copied first, which costs as much as
    using it for a few tokens. `LanguageModel.generate` lists the layers by itself where that pays.

    Example:
      >>> import dataclasses, jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> lm = dataclasses.replace(lm, params=jmi_models.listed(lm.params))
      >>> len(lm.params["blocks"]) == lm.arch.n_layers
      True
    """
    check_params(params)
    blocks = params["blocks"]
    if isinstance(blocks, (list, tuple)):
        return params
    # Of several kinds of layers there is a stack for each run of like ones.
    kinds = all(":" in name for name in blocks)
    stacks = sorted(blocks.items(), key=lambda item: int(item[0].split(":")[0])) if kinds else [("", blocks)]
    return {**params, "blocks": [layer for _, stack in stacks for layer in _layers(stack)]}


def _layers(stack: Any) -> list[Any]:
    """The layers of a stack."""
    leaves, tree = jax.tree.flatten(stack)
    return [jax.tree.unflatten(tree, layer) for layer in zip(*map(_rows, leaves), strict=True)]


def _rows(stack: Any) -> list[Any]:
    """The entries along the first axis."""
    if not _is_on_one_cpu(stack):
        return [stack[i] for i in range(len(stack))]
    (device,) = stack.devices()
    return [jax.device_put(row, device if stack.committed else None) for row in np.asarray(stack)]


def _is_on_one_cpu(value: Any) -> bool:
    """Whether JAX and numpy can share the memory of ``value``; JAX would narrow float64 where it is off."""
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and [device.platform for device in value.devices()] == ["cpu"]
        and jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype
    )
