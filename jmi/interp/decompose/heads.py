"""Head detectors: how much attention each head pays where a head of a known kind would pay it.

A kind is a set of edges from queries to keys that follows from the tokens. Its score is the share of
attention on those edges, averaged over the queries that have one: 0 to 1. Patterns are reduced inside
the layer and never kept.

Axis letters: b batch, q/t positions (q queries, t keys), h heads, o offsets, n kinds of edges, l layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.checks import whole_number
from jmi.engine.programs import compiled
from jmi.errors import ArgumentError
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import PATTERN, Site
from jmi.numerics import wide


@tree.dataclass
class HeadScores(Result):
    """Share of attention on the edges of each kind; NaN where the tokens have no such edge.

    Attributes:
      back: ``[l, h, o]``, on the token ``o`` places back. Offset 0 is the query itself.
      after_copy: ``[l, h, o]``, on the token ``o`` places after an earlier copy of the query's token.
        Offset 0 is the copy. A head that copies what comes next attends at 1, or further where heads
        below have moved tokens forward.
      first_token: ``[l, h]``, on the first token, by all others.
      layers: those that l counts. Static.
    """

    back: jax.Array
    after_copy: jax.Array
    first_token: jax.Array
    layers: tuple[int, ...] = tree.static()

    def __repr__(self) -> str:
        return short(self, back=self.back, after_copy=self.after_copy, first_token=self.first_token)

    def _held(self) -> dict[str, Any]:
        kinds = ("current_token", "previous_token", "duplicate_token", "induction", "first_token")
        return {
            "labels": {"layer": self.layers},
            "back": array(["layer", "head", "offset"], self.back),
            "after_copy": array(["layer", "head", "offset"], self.after_copy),
            **{kind: array(["layer", "head"], getattr(self, kind)) for kind in kinds},
        }

    @property
    def current_token(self) -> jax.Array:
        """``[l, h]``."""
        return self.back[..., 0]

    @property
    def previous_token(self) -> jax.Array:
        """``[l, h]``."""
        return self.back[..., 1]

    @property
    def duplicate_token(self) -> jax.Array:
        """``[l, h]``, on earlier copies of the token."""
        return self.after_copy[..., 0]

    @property
    def induction(self) -> jax.Array:
        """``[l, h]``, on what followed earlier copies of the token (Olsson et al. 2022, arXiv:2209.11895)."""
        return self.after_copy[..., 1]


@tree.dataclass
class SumOver:
    """Reducer of attention patterns: sums over the ``edges`` ``[n, b, q, t]`` of each kind; ``[h, n]``."""

    edges: jax.Array

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        value = value.astype(wide(value.dtype))
        return jnp.einsum("bhqt,nbqt->bhn", value, self.edges.astype(value.dtype)).sum(0)


def repeated_tokens(
    seed: int, n_sequences: int, length: int, d_vocab: int, bos: int | None = None
) -> np.ndarray:
    """Random sequences said twice: int32 ``[n_sequences, 2 length]``, one longer with ``bos`` in front.

    What comes next in the second half can be known only by finding the same token in the first.

    Args:
      seed: of numpy's generator.
      d_vocab: ids are drawn below it, none twice in a sequence, and never ``bos``.

    Raises:
      ArgumentError: there are fewer ids than ``length``.
    """
    seed, n_sequences, d_vocab = (
        whole_number("seed", seed, 0),
        whole_number("n_sequences", n_sequences),
        whole_number("d_vocab", d_vocab, most=10**9),
    )
    bos = None if bos is None else whole_number("bos", bos, 0, d_vocab - 1)
    length = whole_number("length", length)
    ids = np.delete(np.arange(d_vocab), [] if bos is None else [bos])
    if not 0 < length <= len(ids):
        raise ArgumentError(f"length={length}: use 1 to {len(ids)}, the number of ids to draw from")
    rng = np.random.default_rng(seed)
    once = np.stack([rng.choice(ids, length, replace=False) for _ in range(n_sequences)])
    first = np.full((n_sequences, 0 if bos is None else 1), bos or 0)
    return np.concatenate([first, once, once], axis=1).astype(np.int32)


def head_scores(lm: LanguageModel, prompts: Any, *, reach: int = 4) -> HeadScores:
    """`HeadScores` of every head on ``prompts`` without padding, as `LanguageModel.prompts` takes them.

    Args:
      reach: number of offsets, at least 2.

    Raises:
      ArgumentError: ``reach`` below 2, or padding.
      HookError: a model without attention patterns.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.decompose.heads import head_scores, repeated_tokens
      >>> lm = jmi_models.load("atlas")
      >>> scores = head_scores(lm, repeated_tokens(0, 8, 20, lm.arch.d_vocab, bos=0))
      >>> float(scores.previous_token.max()) > 0.9
      True
    """
    prompts, reach = checked(check_lm(lm).arch, lm.prompts(prompts)), whole_number("reach", reach, 2)
    if prompts.mask is not None and not np.asarray(prompts.mask).all():
        raise ArgumentError("head_scores takes prompts without padding, of one length")
    edges, queries = _edges(jnp.asarray(prompts.tokens), reach)
    capture = [Capture(PATTERN, reduce=SumOver(edges))]
    out = lm.run(Prompts(prompts.tokens, None, prompts.positions), capture=capture, logits_at=-1)
    sums = out[PATTERN]
    # Not left to 0 / 0: XLA makes a boolean over 0 a plain 0.
    scores = jnp.where(queries > 0, sums / jnp.maximum(queries, 1).astype(sums.dtype), jnp.nan)
    return HeadScores(scores[..., :reach], scores[..., reach:-1], scores[..., -1], out.layers(PATTERN))


@compiled(static=1)
def _edges(tokens: jax.Array, reach: int) -> tuple[jax.Array, jax.Array]:
    """Edges ``[n, b, q, t]`` back, after a copy and to the first; queries that have any ``[1, 1, n]``."""
    length = tokens.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)
    query, key = place[:, None], place[None, :]
    copy = (tokens[:, :, None] == tokens[:, None, :]) & (key < query)[None]
    back = [((key == query - o) & (query > 0))[None] for o in range(reach)]
    after = [
        jnp.pad(copy, ((0, 0), (0, 0), (o, 0)))[..., :length] & (key <= query)[None] for o in range(reach)
    ]
    first = ((key == 0) & (query > 0))[None]
    edges = jnp.stack([jnp.broadcast_to(kind, copy.shape) for kind in (*back, *after, first)])
    return edges, edges.any(-1).sum((1, 2), dtype=jnp.int32)[None, None]
