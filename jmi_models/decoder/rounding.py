"""Results rounded once: what is computed in one go is in at least float32 until its last step.

A chain of operations in bfloat16 rounds after each of them, and rounds its constants too. Nothing here
changes a float32 or float64 model.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmi.numerics import wide


def widened(x: jax.Array) -> jax.Array:
    """``x`` in at least float32."""
    return x.astype(wide(x.dtype))


def once(function: Callable[..., jax.Array], *values: jax.Array) -> jax.Array:
    """``function(*values)`` computed in at least float32, in the dtype of the first of ``values``."""
    return function(*map(widened, values)).astype(values[0].dtype)


def times(x: jax.Array, factor: float) -> jax.Array:
    """``x * factor``; the factor is not rounded to the dtype of ``x``."""
    return x if factor == 1 else once(lambda x: x * jnp.asarray(factor, x.dtype), x)


def project(equation: str, x: jax.Array, p: Any, weight: str, bias: str) -> jax.Array:
    """The einsum of ``x`` and ``p[weight]``, plus ``p[bias]`` over its last axes where there is one."""
    if bias not in p:
        return jnp.einsum(equation, x, p[weight])
    return biased(product(equation, x, p[weight]), p, bias, x.dtype)


def biased(x: jax.Array, p: Any, name: str, dtype: Any) -> jax.Array:
    """``x`` plus ``p[name]`` over its last axes, where there is one, in ``dtype``."""
    if name in p:
        x = x + p[name].astype(x.dtype)[(None,) * (x.ndim - p[name].ndim)]
    return x.astype(dtype)


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum of ``a`` and ``b`` as it is added up, in at least float32."""
    return jnp.einsum(equation, a, b) if wide(a.dtype) == a.dtype else _product(equation, a, b)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=wide(a.dtype))


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(equation: str, primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    # Derivatives are products of narrow operands, too: JAX's own rule would multiply a float32 cotangent
    # with bfloat16 weights, for which accelerators have no fast product.
    (a, b), (da, db) = primals, tangents
    moved = [
        jnp.einsum(equation, *pair).astype(wide(a.dtype))
        for pair in ((da, b), (a, db))
        if not any(isinstance(x, jax.custom_derivatives.SymbolicZero) for x in pair)
    ]
    return _product(equation, a, b), functools.reduce(jnp.add, moved)
