"""Linear probes: logistic regressions, fitted to their optimum, with an L2 or an L1 penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jmi.checks import real_number
from jmi.engine.forward import precise
from jmi_sparse.bench.examples import balanced, checked, classes, labelled, split

_NEWTON_STEPS, _GRADIENT_STEPS = 100, 10_000


class Probe(NamedTuple):
    """Linear classifiers: class 1 where the logit is above 0.

    Attributes:
      weights: ``[..., d]``.
      bias: ``[...]``. Both are NaN where a fit did not converge.
    """

    weights: jax.Array
    bias: jax.Array

    def logits(self, x: jax.Array) -> jax.Array:
        """Of examples ``x`` ``[n, d]``: ``[..., n]``."""
        return jnp.einsum("...d,nd->...n", self.weights, x) + self.bias[..., None]


@precise()
def fit_probe(x: Any, labels: Any, train: Any, *, l2: float = 1.0) -> Probe:
    """Logistic regressions, one for each task, at their optimum: class 1 against class 0.

    It is the minimum of ``l2/2 |w|^2 + sum_i c_i log(1 + exp(-y_i z_i))``, where ``z = x w + b``, ``y`` is 1
    or -1, and ``c_i = n / (2 n_class)`` weighs the two classes alike; the bias is free. That is what
    scikit-learn's ``LogisticRegression(C=1/l2, class_weight="balanced")`` minimises, and without the weights
    where there are equally many examples of both classes. Found by Newton's method: nothing is drawn, and
    the result depends on the arguments alone. The penalty is on the scale of ``x``: features ten times as
    large are penalised a hundred times less.

    Args:
      x: ``[n, d]``.
      labels: bool ``[tasks, n]``.
      train: bool ``[n]``: the examples it is fitted to. There must be examples of both classes here and among
        the others.

    Returns:
      ``weights`` ``[tasks, d]`` and ``bias`` ``[tasks]``.

    Raises:
      ArgumentError: shapes that do not fit, numbers that are not finite, examples of one class only.

    Example:
      >>> import numpy as np
      >>> x, train = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([True, False, False, True])
      >>> probe = fit_probe(x, x.T > 2.5, train)
      >>> (probe.logits(x) > 0).tolist()
      [[False, False, True, True]]
    """
    train, x = checked(train, x=x)
    labels = labelled(labels, train)
    weights = balanced(split(classes(labels), train)[0], x.dtype)
    return fitted(x, labels, weights, real_number("l2", l2, above=0))


@jax.jit
def fitted(x: jax.Array, labels: jax.Array, weights: jax.Array, l2: Any) -> Probe:
    """`newton` for each task, ``labels`` and ``weights`` ``[tasks, n]``, one after the other."""
    # All at once would hold one copy of x for each.
    return lax.map(lambda task: newton(x, task[0], task[1], l2), (labels, weights))


def newton(x: jax.Array, y: jax.Array, weights: jax.Array, l2: Any) -> Probe:
    """The probe of one task, as `fit_probe` says: ``x`` ``[n, d]``, bool ``y`` and ``weights`` ``[n]``."""
    eps = jnp.finfo(x.dtype).eps
    target = y.astype(x.dtype)
    design, centre, scale = _standardised(x, weights)
    penalty = jnp.append(jnp.asarray(l2, x.dtype) / scale**2, 0)
    # What the sums that make up the gradient would be if nothing cancelled.
    size = weights @ jnp.abs(design)

    def loss(u: jax.Array) -> jax.Array:
        z = design @ u
        return (weights * (jax.nn.softplus(z) - target * z)).sum() + (penalty * u * u).sum() / 2

    def step(state: Any) -> Any:
        u, slope, steps = state
        p = jax.nn.sigmoid(design @ u)
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design
        # Rounding may take a small eigenvalue below 0; with this the move still goes downhill.
        damping = penalty + eps * jnp.trace(curvature)
        move = -cho_solve(cho_factor(curvature + jnp.diag(damping)), slope)
        before, fall = loss(u), slope @ move

        def too_long(t: jax.Array) -> jax.Array:
            allowed = before + 1e-4 * t * fall + 4 * eps * jnp.abs(before)
            return (loss(u + t * move) > allowed) & (t > 1e-6)

        u = u + lax.while_loop(too_long, lambda t: t / 2, jnp.ones((), x.dtype)) * move
        return u, jax.grad(loss)(u), steps + 1

    def goes_on(state: Any) -> jax.Array:
        return (jnp.abs(state[1]) > 100 * eps * size).any() & (state[2] < _NEWTON_STEPS)

    start = jnp.zeros(design.shape[1], x.dtype)
    u, slope, _ = lax.while_loop(goes_on, step, (start, jax.grad(loss)(start), jnp.int32(0)))
    u = jnp.where((jnp.abs(slope) <= eps**0.5 * size).all(), u, jnp.nan)
    w = u[:-1] / scale
    return Probe(w, u[-1] - w @ centre)


@jax.jit
def lasso(x: jax.Array, labels: jax.Array, train: jax.Array, l1: Any) -> jax.Array:
    """Weights ``[tasks, d]`` at the minimum of ``mean_i a_i log(1 + exp(-y_i z_i)) + l1 sum |w|``, bias free.

    ``a_i`` is 1, of positive examples the number of negative over that of positive ones: the loss by which
    SAEBench ranks latents. Found by proximal gradients with momentum that starts anew when it points uphill
    (Beck & Teboulle 2009; O'Donoghue & Candès 2015), until the gradient is off by less than a thousandth of
    the penalty; NaN where that is not reached.
    """
    design, _, scale = _standardised(x, train.astype(x.dtype))
    penalty = jnp.asarray(l1, x.dtype) / scale

    def one(y: jax.Array) -> jax.Array:
        positive, negative = ((side & train).sum().astype(x.dtype) for side in (y, ~y))
        costs = jnp.where(y, negative / positive, 1) * train.astype(x.dtype) / (positive + negative)
        return _proximal(design, y.astype(x.dtype), costs, penalty, l1)[:-1] / scale

    return jax.vmap(one)(labels)


def _proximal(design: jax.Array, target: jax.Array, costs: jax.Array, penalty: jax.Array, l1: Any) -> Any:
    dtype, eps = design.dtype, jnp.finfo(design.dtype).eps
    limit = jnp.append(penalty, 0)
    slack = 1e-3 * jnp.append(penalty, jnp.asarray(l1, dtype)) + 20 * eps * (costs @ jnp.abs(design))

    def step(state: Any) -> Any:
        u, ahead, momentum, steep, _, steps = state
        slope = (costs * (jax.nn.sigmoid(design @ ahead) - target)) @ design

        def moved(steep: jax.Array) -> jax.Array:
            new = ahead - slope / steep
            return jnp.sign(new) * jnp.maximum(jnp.abs(new) - limit / steep, 0)

        def too_long(steep: jax.Array) -> jax.Array:
            # The curvature of the loss is a quarter of the costs at most.
            move = moved(steep) - ahead
            return (costs * (design @ move) ** 2).sum() / 4 > steep * (move * move).sum()

        steep = lax.while_loop(too_long, lambda steep: 2 * steep, steep)
        new = moved(steep)
        momentum = jnp.where(((ahead - new) * (new - u)).sum() > 0, 1, momentum)
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        off = (steep * jnp.abs(new - ahead) > slack).any()
        return new, new + (momentum - 1) / after * (new - u), after, steep, off, steps + 1

    zero, one = jnp.zeros(design.shape[1], dtype), jnp.ones((), dtype)
    state = (zero, zero, one, one / 4, jnp.bool(True), jnp.int32(0))
    state = lax.while_loop(lambda s: s[4] & (s[5] < _GRADIENT_STEPS), step, state)
    return jnp.where(state[4], jnp.nan, state[0])


def accuracy(logits: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
    """Share ``[...]`` of ``logits`` ``[..., n]`` that are as ``y`` says, examples weighted; NaN of NaN."""
    wrong = jnp.where(jnp.isnan(logits), jnp.nan, ((logits > 0) != y).astype(logits.dtype))
    # From 1 down, so that no rounding is left where all are right.
    return 1 - (weights * wrong).sum(-1) / weights.sum(-1)


def _standardised(x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``x`` with mean 0 and deviation 1 in every column, and a column of ones; the means; the deviations."""
    share = weights / weights.sum()
    centre = share @ x
    away = x - centre[None]
    # Of large numbers the squares would be infinite.
    largest = jnp.abs(away).max(0)
    largest = jnp.where(largest > 0, largest, 1)
    scale = largest * jnp.sqrt(share @ (away / largest[None]) ** 2)
    scale = jnp.where(scale > 0, scale, 1)
    return jnp.concatenate([away / scale[None], jnp.ones_like(x[:, :1])], axis=1), centre, scale
