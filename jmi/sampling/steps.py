"""Steps of sampling, each from logits to logits, in the order and with the results of transformers.

All are pure and of fixed shape, so that they run inside the loop of generation. Where only some of equally
likely tokens stay, by top-p and top-h, these are the lowest ids; in transformers it is as many of them, but
which ones depends on how a device sorts. Axis letters: b batch, v vocabulary, s places of the text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jmi.numerics import wide
from jmi.sampling.options import NONE, Phrases, Sampling

MOST_OF_TOP_H = 100
"""Top-h considers so many of the likeliest tokens, as transformers does."""


@dataclasses.dataclass(frozen=True)
class Text:
    """What has been said so far.

    Attributes:
      tokens: int32 ``[b, s]``.
      known: bool ``[b, s]``, True at real tokens.
      step: how many of each row's last ones are new, not of the prompt.
      ends: end tokens int32 ``[n]``, or None.
    """

    tokens: jax.Array
    known: jax.Array
    step: Any
    ends: Any

    @functools.cached_property
    def ranged(self) -> jax.Array:
        """Tokens ``[b, s]`` moved to the right end of their row, `NONE` before them."""
        order = jnp.argsort(self.known, axis=-1, stable=True)
        return jnp.take_along_axis(jnp.where(self.known, self.tokens, NONE), order, -1)

    def counts(self, size: int, new: bool) -> jax.Array:
        """How often each of ``size`` tokens was said, or generated, int32 ``[b, v]``."""
        back = jnp.cumsum(self.known[:, ::-1], -1, dtype=jnp.int32)[:, ::-1]
        said = self.known & (back <= self.step) if new else self.known
        rows = jnp.arange(len(self.tokens), dtype=jnp.int32)[:, None]
        at = jnp.where(said & (self.tokens >= 0), self.tokens, size)
        zeros = jnp.zeros((len(self.tokens), size), jnp.int32)
        return zeros.at[jnp.broadcast_to(rows, at.shape), at].add(1, mode="drop")


def warped(
    sampling: Sampling, logits: jax.Array, tokens: jax.Array, known: jax.Array, step: Any
) -> jax.Array:
    """Logits ``[b, v]`` of which a token is chosen, float32 or wider; -inf where it may not be.

    Args:
      logits: ``[b, v]``, of the model.
      tokens: int32 ``[b, s]``, the text so far, padding and room for more included.
      known: bool ``[b, s]``, True at real tokens. Padding is no part of the text: it neither is penalised nor
        ends a sequence, and does not count for ``min_length`` (in transformers it counts for the last two).
      step: how many tokens were generated before, the last ones of each row.

    Example:
      >>> import jax.numpy as jnp
      >>> from jmi.sampling.options import sampling_of
      >>> from jmi.sampling.steps import warped
      >>> nothing = jnp.zeros((1, 0), jnp.int32), jnp.zeros((1, 0), bool)
      >>> two = sampling_of({"top_k": 2}, n_vocab=3, draws=True)
      >>> warped(two, jnp.asarray([[1.0, 3.0, 2.0]]), *nothing, 0).tolist()
      [[-inf, 3.0, 2.0]]
    """
    logits = logits.astype(wide(logits.dtype))
    text = Text(tokens, known, step, sampling.eos_token_id)
    for name, change in (*ALWAYS, *(OF_A_DRAW if sampling.do_sample else ())):
        value = getattr(sampling, name)
        if value is not None:
            logits = change(value, logits, text)
    return jax.nn.log_softmax(logits) if sampling.renormalize_logits else logits


def _without(logits: jax.Array, removed: jax.Array) -> jax.Array:
    return jnp.where(removed, -jnp.inf, logits)


def _number(value: Any, like: jax.Array) -> jax.Array:
    return jnp.asarray(value, like.dtype)


def _among(ids: Any, size: int) -> jax.Array:
    """Bool ``[1, v]``: which tokens are among ``ids``."""
    ids = jnp.asarray(ids)
    return jnp.zeros((1, size), bool).at[0, jnp.where(ids < 0, size, ids)].set(True, mode="drop")


def _biased(phrases: Phrases, logits: jax.Array, text: Text) -> jax.Array:
    before, last = jnp.asarray(phrases.before), jnp.asarray(phrases.last)
    width, size = before.shape[1], logits.shape[1]
    tail = jnp.pad(text.ranged, ((0, 0), (width, 0)), constant_values=NONE)[:, -width:]
    follows = ((tail[:, None] == before[None]) | (before == NONE)[None]).all(-1)
    bias = jnp.where(follows, _number(phrases.bias, logits)[None], 0)
    at = jnp.where(last < 0, size, last)
    return logits + jnp.zeros_like(logits).at[:, at].add(bias, mode="drop")


def _repeated(penalty: Any, logits: jax.Array, text: Text) -> jax.Array:
    penalty = _number(penalty, logits)
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(text.counts(logits.shape[1], new=False) > 0, changed, logits)


def _present(penalty: Any, logits: jax.Array, text: Text) -> jax.Array:
    said = text.counts(logits.shape[1], new=True) > 0
    return jnp.where(said, logits - _number(penalty, logits), logits)


def _frequent(penalty: Any, logits: jax.Array, text: Text) -> jax.Array:
    counts = text.counts(logits.shape[1], new=True)
    return jnp.where(counts > 0, logits - _number(penalty, logits) * counts.astype(logits.dtype), logits)


def _no_ngram_twice(size: int, logits: jax.Array, text: Text) -> jax.Array:
    said = text.ranged
    batch, length = said.shape
    if size > length:
        return logits
    windows = length - size + 1
    # A window begins before the real tokens if its first one is none.
    same = said[:, :windows] != NONE
    for i in range(size - 1):
        same &= said[:, i : i + windows] == said[:, windows + i : windows + i + 1]
    banned = jnp.where(same, said[:, size - 1 :], -1)
    at = jnp.where(banned < 0, logits.shape[1], banned)
    rows = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None], at.shape)
    return _without(logits, jnp.zeros(logits.shape, bool).at[rows, at].set(True, mode="drop"))


def _not_before(least: Any, logits: jax.Array, text: Text) -> jax.Array:
    return _without(logits, _among(text.ends, logits.shape[1]) & (text.known.sum(-1)[:, None] < least))


def _not_before_new(least: Any, logits: jax.Array, text: Text) -> jax.Array:
    return _without(logits, _among(text.ends, logits.shape[1]) & (jnp.asarray(text.step) < least))


def _suppressed(ids: Any, logits: jax.Array, text: Text) -> jax.Array:
    return _without(logits, _among(ids, logits.shape[1]))


def _suppressed_first(ids: Any, logits: jax.Array, text: Text) -> jax.Array:
    return _without(logits, _among(ids, logits.shape[1]) & (jnp.asarray(text.step) == 0))


def _cooled(temperature: Any, logits: jax.Array, text: Text) -> jax.Array:
    return logits / _number(temperature, logits)


def _top_h(share: Any, logits: jax.Array, text: Text) -> jax.Array:
    """Tokens are taken while their part of the entropy is at most ``share`` of the whole."""
    best, ids = jax.lax.top_k(logits, min(MOST_OF_TOP_H, logits.shape[1]))
    terms = _surprise(jax.nn.log_softmax(best))
    kept = jnp.cumsum(terms, -1) <= terms.sum(-1, keepdims=True) * _number(share, logits)
    removed = jnp.ones(logits.shape, bool)
    return _without(logits, _put(removed, ids, ~kept.at[:, 0].set(True)))


def _top_k(count: Any, logits: jax.Array, text: Text) -> jax.Array:
    """All that are equal to the last one stay."""
    size, count = logits.shape[1], jnp.asarray(count, jnp.int32)
    least = jax.lax.dynamic_slice_in_dim(jnp.sort(logits), size - jnp.clip(count, 1, size), 1, 1)
    return _without(logits, (logits < least) & (count > 0))


def _top_p(mass: Any, logits: jax.Array, text: Text) -> jax.Array:
    """From the least likely on, tokens are left out while their sum is at most 1 - ``mass``."""
    mass = _number(mass, logits)
    # Of equal ones the lowest ids stay, as in `argmax` and `top_k`.
    order = jnp.argsort(-logits, axis=-1, stable=True)[:, ::-1]
    sums = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1)), -1)
    removed = ((sums <= 1 - mass) & (mass < 1)).at[:, -1].set(False)
    return _without(logits, _put(jnp.zeros(logits.shape, bool), order, removed))


def _min_p(share: Any, logits: jax.Array, text: Text) -> jax.Array:
    probs = jax.nn.softmax(logits)
    return _without(logits, probs < _number(share, logits) * probs.max(-1, keepdims=True))


def _typical(mass: Any, logits: jax.Array, text: Text) -> jax.Array:
    """Those stay whose surprise is nearest to the entropy, until they make up ``mass``."""
    mass, logs = _number(mass, logits), jax.nn.log_softmax(logits)
    far = jnp.abs(-logs - _surprise(logs).sum(-1, keepdims=True))
    order = jnp.argsort(far, axis=-1, stable=True)
    sums = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, -1)), -1)
    last = jnp.minimum((sums < mass).sum(-1, keepdims=True, dtype=jnp.int32), logits.shape[1] - 1)
    sorted_far = jnp.take_along_axis(far, order, -1)
    removed = (sorted_far > jnp.take_along_axis(sorted_far, last, -1)) & (mass < 1)
    return _without(logits, _put(jnp.zeros(logits.shape, bool), order, removed.at[:, 0].set(False)))


def _epsilon(least: Any, logits: jax.Array, text: Text) -> jax.Array:
    return _unlikely(_number(least, logits), logits)


def _eta(least: Any, logits: jax.Array, text: Text) -> jax.Array:
    least = _number(least, logits)
    entropy = _surprise(jax.nn.log_softmax(logits)).sum(-1, keepdims=True)
    return _unlikely(jnp.minimum(least, jnp.sqrt(least) * jnp.exp(-entropy)), logits)


def _unlikely(least: jax.Array, logits: jax.Array) -> jax.Array:
    """Without tokens less likely than ``least``, but never without the likeliest."""
    removed = jax.nn.softmax(logits) < least
    return _without(logits, removed & (logits < logits.max(-1, keepdims=True)))


def _surprise(logs: jax.Array) -> jax.Array:
    """Terms of the entropy, of log-probabilities."""
    return jnp.where(logs == -jnp.inf, 0, -jnp.exp(logs) * logs)


def _put(x: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.put_along_axis(x, ids, values, axis=-1, inplace=False)


Step = Callable[[Any, jax.Array, Text], jax.Array]

ALWAYS: tuple[tuple[str, Step], ...] = (
    ("sequence_bias", _biased),
    ("repetition_penalty", _repeated),
    ("presence_penalty", _present),
    ("frequency_penalty", _frequent),
    ("no_repeat_ngram_size", _no_ngram_twice),
    ("bad_words_ids", _biased),
    ("min_length", _not_before),
    ("min_new_tokens", _not_before_new),
    ("suppress_tokens", _suppressed),
    ("begin_suppress_tokens", _suppressed_first),
)
"""Steps before any choice, in the order of transformers; OpenAI's penalties stand beside the other one."""

OF_A_DRAW: tuple[tuple[str, Step], ...] = (
    ("temperature", _cooled),
    ("top_h", _top_h),
    ("top_k", _top_k),
    ("top_p", _top_p),
    ("min_p", _min_p),
    ("typical_p", _typical),
    ("epsilon_cutoff", _epsilon),
    ("eta_cutoff", _eta),
)
"""Steps before a random choice, in the order of transformers."""
