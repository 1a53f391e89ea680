"""Ways in which one sweep differs from another: each gives a function of 0 or 1, or an array for either."""

import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from tests.core.sweeps.experiments import (
    EMBED,
    OUT,
    VOCAB,
    D,
    array,
    cells,
    model,
    weights,
)


def bits(i, one, other):
    """``one`` or ``other``, which differ in little."""
    return (one, other)[i]


def reading(of):
    """A metric that puts ``of(i)`` behind the logits."""

    def variant(i):
        function = of(i)
        return {"metric": lambda out: function(out.logits)}

    return variant


def matrix_behind(wrap):
    """A metric with a matrix that ``wrap`` hides."""
    return reading(lambda i: wrap(array(i, VOCAB, 3)))


def constant(one, other):
    """A metric with an array that is ``one`` or ``other``."""
    inner = lambda array: jax.jit(lambda y: (y.max() * jnp.asarray(array).astype(y.dtype)).sum())
    return reading(lambda i: lambda x: x + inner(bits(i, one, other))(x))


def nudged():
    """Two large arrays that differ in the last bit of one number in their middle."""
    other = array(0, 300, 400)
    one = other.copy()
    other[150, 200] = np.nextafter(other[150, 200], 9, dtype=np.float32)
    return one, other


def custom_jvp(w):
    @jax.custom_jvp
    def function(x):
        return x @ w

    function.defjvp(lambda x, dx: (x[0] @ w, dx[0] @ w))
    return jax.jit(function)


def custom_vjp(w):
    @jax.custom_vjp
    def function(x):
        return x @ w

    function.defvjp(lambda x: (x @ w, None), lambda _, g: (g @ w.T,))
    return jax.jit(function)


def derivative(w):
    """What only the derivative of a function knows."""

    @jax.custom_jvp
    def function(x):
        return x.sum()

    function.defjvp(lambda x, dx: (x[0].sum(), (dx[0] @ w).sum()))
    return jax.grad(function)


def within(hook):
    """``hook`` of arrays behind a jitted function, in the base run at the embedding."""
    return lambda i: {"base": {EMBED: hook(i)}}


def jitted_hook(i):
    add = jax.jit(lambda value: value + jax.jit(lambda: jnp.asarray(array(i, 1, 1, D)))())
    return lambda value, site: add(value)


def default_argument(i):
    def hook(value, site, factor=0.5 + i):
        return value * factor

    return hook


@jmi.tree.dataclass
class Static:
    """An intervention with a static number."""

    factor: float = jmi.tree.static()

    def __call__(self, value, site):
        return value * self.factor


def capturing(name, reduce):
    def variant(i):
        function = reduce(i)
        return {
            "capture": [jmi.Capture(name, reduce=function, label="seen")],
            "metric": lambda out: out.captures["seen"],
        }

    return variant


def layered(i):
    """Vectors of each layer, of which the last layer's differ."""
    return np.stack([array(0, 3, D), array(i, 3, D)])


def jitted_reducer(i):
    project = jax.jit(lambda value: value @ array(i, D))
    return lambda value, site: project(value)


def embedded(hook):
    """The hooks of two cells, at the embedding."""
    return {"hooks": {EMBED: hook}}


def based(hook, values, point=EMBED):
    """A base with ``hook`` of ``values(i)``, one for each of two cells."""

    def variant(i):
        factors, *of_base = cells([0.5, 2.0], values(i))
        return {"hooks": {OUT: jmi.At([1], jmi.Scale(factors))}, "base": {point: hook(of_base)}}

    return variant


def changed(change):
    """Weights of which one tensor is changed in the second sweep."""

    def variant(i):
        params = weights()
        w = np.array(params["embed"]["W_E"])
        if i:
            change(w)
        return {"lm": model({**params, "embed": {"W_E": jnp.asarray(w)}})}

    return variant


def one_bit(w):
    w.view(np.uint32)[3, 5] ^= 1


def two_signs(w):
    w[2, 3] *= -1
    w[7, 1] *= -1


def two_rows(w):
    w[[2, 3]] = w[[3, 2]]


def two_neighbours(w):
    flat = w.reshape(-1)
    flat[[4, 5]] = flat[[5, 4]]


def zero(w):
    w[0, 0] = 0.0


def negative_zero(w):
    w[0, 0] = -0.0


def setting(context):
    return lambda i: {"context": context(i)}


def environment(name, *values):
    return setting(lambda i: mock.patch.dict(os.environ, {name: values[i]}))
