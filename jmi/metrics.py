"""Measures of logits, and metrics of a run made of them. Natural logarithms: divergences are in nats.

Logits have the vocabulary as last axis; every other axis is kept, so results stay per example. An id that is
no token is an error (`ArgumentError`); one that is only known when the program runs gives NaN.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.output import Output
from jmi.checks import real_array, shown, whole_array, whole_number
from jmi.errors import ArgumentError
from jmi.model import padding
from jmi.model.architecture import Architecture
from jmi.model.inputs import check_ids
from jmi.numerics import wide

Metric = Callable[[Output], jax.Array]
"""Pure function of a run: one real number per row, ``[b]``."""


def kl_divergence(baseline: jax.Array, other: jax.Array) -> jax.Array:
    """KL(baseline || other) in nats, ``[...]`` from logits ``[..., vocab]``, in at least float32."""
    p, q = _log_softmax(baseline), _log_softmax(other)
    if p.shape != q.shape:
        raise ArgumentError(f"logits of shapes {list(p.shape)} and {list(q.shape)}: give those of one shape")
    # Both distributions sum to one, so adding (other - baseline) to each term changes nothing but that
    # no term is negative, whatever the rounding. Without mass in the baseline, that is all there is;
    # the difference is taken of finite numbers only, or its unused branch would make gradients NaN.
    gone = p == -jnp.inf
    d = jnp.where(gone, 0, p) - jnp.where(gone, 0, q)
    return jnp.where(gone, jnp.exp(q), jnp.exp(p) * (d + jnp.expm1(-d))).sum(-1)


def logit_diff(logits: jax.Array, token: jax.Array | int, other: jax.Array | int) -> jax.Array:
    """Logit of ``token`` minus logit of ``other``, ``[...]``."""
    logits = _as_logits(logits)
    return _take(logits, token) - _take(logits, other)


def log_prob(logits: jax.Array, token: jax.Array | int) -> jax.Array:
    """Log-probability of ``token`` in nats, ``[...]``."""
    return _take(_log_softmax(logits), token)


def prob(logits: jax.Array, token: jax.Array | int) -> jax.Array:
    """Probability of ``token``, ``[...]``."""
    return jnp.exp(log_prob(logits, token))


def rank(logits: jax.Array, token: jax.Array | int) -> jax.Array:
    """Number of tokens with a larger logit than ``token``, int32 ``[...]``; 0 is the top, -1 is NaN's."""
    logits = _as_logits(logits)
    own = _take(logits, token)[..., None]
    return jnp.where(jnp.isnan(own[..., 0]), -1, (logits > own).sum(-1))


class Changes(NamedTuple):
    """The tokens whose probability changed most, largest change first; all ``[..., k]``."""

    tokens: Any
    baseline: Any
    other: Any


def top_changes(baseline: jax.Array, other: jax.Array, k: int) -> Changes:
    """The ``k`` tokens whose probability differs most between two logits ``[..., vocab]``."""
    p, q = jnp.exp(_log_softmax(baseline)), jnp.exp(_log_softmax(other))
    k = whole_number("k", k, most=p.shape[-1])
    _, tokens = jax.lax.top_k(jnp.abs(p - q), k)
    return Changes(tokens, jnp.take_along_axis(p, tokens, -1), jnp.take_along_axis(q, tokens, -1))


@tree.dataclass
class LogitDiff:
    """Metric: `logit_diff` of ``token`` and ``other``, each one id or one for each row ``[b]``.

    A metric maps a run to one number per row. Those here read `final_logits`. Their arrays are data: other
    tokens do not compile anything anew. A function of your own, from `Output` to ``[b]``, is a metric, too;
    it is compiled once per object.

    Example:
      >>> import jmi_models
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> bool(diff(lm.run("The capital of France is"))[0] > 0)
      True
    """

    takes_padding: ClassVar[bool] = True
    token: Any
    other: Any

    def __call__(self, out: Output) -> jax.Array:
        return logit_diff(final_logits(out), self.token, self.other)


@tree.dataclass
class Prob:
    """Metric: `prob` of ``token``, one id or ``[b]``."""

    takes_padding: ClassVar[bool] = True
    token: Any

    def __call__(self, out: Output) -> jax.Array:
        return prob(final_logits(out), self.token)


@tree.dataclass
class LogProb:
    """Metric: `log_prob` of ``token``, one id or ``[b]``."""

    takes_padding: ClassVar[bool] = True
    token: Any

    def __call__(self, out: Output) -> jax.Array:
        return log_prob(final_logits(out), self.token)


@tree.dataclass
class Rank:
    """Metric: `rank` of ``token``, one id or ``[b]``."""

    takes_padding: ClassVar[bool] = True
    token: Any

    def __call__(self, out: Output) -> jax.Array:
        return rank(final_logits(out), self.token)


@tree.dataclass
class KL:
    """Metric: `kl_divergence` from the ``baseline`` logits ``[b, vocab]`` of another run."""

    takes_padding: ClassVar[bool] = True
    baseline: Any

    def __call__(self, out: Output) -> jax.Array:
        return kl_divergence(jnp.asarray(self.baseline), final_logits(out))


def final_logits(out: Output) -> jax.Array:
    """Logits ``[b, vocab]`` of a run: of the token it has logits at, else of each row's last real one."""
    if out.logits.ndim == 2:
        return out.logits
    if out.mask is None:
        return out.logits[:, -1]
    return padding.take(out.logits, padding.place_of(-1, out.mask)[:, None], 1)[:, 0]


def _as_logits(logits: Any) -> jax.Array:
    given = jnp.asarray(real_array("logits", logits, 1))
    if not given.shape[-1] or not jnp.issubdtype(given.dtype, jnp.floating):
        raise ArgumentError(f"logits={shown(given)}: give floats with the vocabulary as last axis")
    return given


def _log_softmax(logits: jax.Array) -> jax.Array:
    logits = _as_logits(logits)
    return jax.nn.log_softmax(logits.astype(wide(logits.dtype)), axis=-1)


def check_metric(arch: Architecture, metric: Any) -> None:
    """Raise ArgumentError where metrics of this file, anywhere in ``metric``, ask for ids that are none."""
    d_vocab = getattr(arch, "d_vocab", None)
    for part in jax.tree.leaves(metric, is_leaf=lambda part: isinstance(part, _OF_TOKENS)):
        if isinstance(part, _OF_TOKENS):
            for ids in (part.token, getattr(part, "other", 0)):
                check_ids(f"token ids of {type(part).__name__}", ids, d_vocab)


_OF_TOKENS = (LogitDiff, Prob, LogProb, Rank)


def _take(values: jax.Array, token: jax.Array | int) -> jax.Array:
    """The value of ``token``. One that is not there is an error, or where it is traced NaN, gradients too."""
    size, index = values.shape[-1], jnp.asarray(whole_array("token", token))
    check_ids("token ids", token, size)
    rows = values.shape[:-1]
    try:
        fits = jnp.broadcast_shapes(index.shape, rows) == rows
    except ValueError:
        fits = False
    if not fits:
        raise ArgumentError(f"token={shown(token)}: give one id, or {list(rows)} of them")
    index = jnp.broadcast_to(index, rows)
    known = (index >= 0) & (index < size)
    taken = jnp.take_along_axis(values, jnp.where(known, index, 0)[..., None], axis=-1)[..., 0]
    return taken * jnp.where(known, 1, jnp.nan).astype(values.dtype)
