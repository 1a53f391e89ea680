"""Commit and correct: a model is steered to one word, and later layers are steered back to another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmi
from jmi import tree
from jmi.captures.output import Output
from jmi.checks import real_array, shown, whole_array
from jmi.errors import ArgumentError
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import final_logits, prob
from jmi.model.sites import PATTERN, table_of
from jmi_sparse.decoders.rows import decoders_of
from jmi_sparse.steering.inject import inject
from jmi_sparse.steering.planning import Feature


@tree.dataclass
class Answers:
    """Metric: what is followed at the last position, by name.

    Attributes:
      words: token ids ``[n]`` whose probabilities are wanted.
      site: position that the last one looks at, in every head; None where there are no heads. It is a
        place, so prompts may not be padded.
    """

    words: Any
    site: Any = None

    def __call__(self, out: Output) -> dict[str, jax.Array]:
        logits = final_logits(out)
        found = {
            "probs": jnp.stack([prob(logits, word) for word in self.words], -1),
            "top": logits.argmax(-1),
        }
        if self.site is not None:
            # [layers, b, heads, keys] of the last query.
            patterns = jnp.moveaxis(out.stack("attn.hook_pattern"), 1, 0)
            found["looks"] = jnp.take(patterns, self.site, axis=-1)
        return found


@dataclasses.dataclass(frozen=True, repr=False)
class Correction(Result):
    """What becomes of two words, by how strongly the second is written in later layers.

    Attributes:
      words: ids of the word committed to and of the one that corrects it.
      strengths: of the correction, ``[t]``.
      plain: probabilities ``[2]`` where nothing is written.
      probs: of both words, ``[strength, word]``; the commitment alone is strength 0.
      top: id of the likeliest token, ``[strength]``.
      looks: by how much more or less each head's last query looks at the position than where nothing is
        written, ``[strength, layer, head]``; None of a model without heads.
    """

    words: tuple[int, int]
    strengths: np.ndarray
    plain: np.ndarray
    probs: np.ndarray
    top: np.ndarray
    looks: np.ndarray | None

    @property
    def shift(self) -> np.ndarray | None:
        """Sum over heads of how much their looks changed, ``[strength]``."""
        return None if self.looks is None else np.abs(self.looks).sum((1, 2))

    def _held(self) -> dict[str, Any]:
        return {
            "words": self.words,
            "strengths": array(("strength",), self.strengths),
            "plain": array(("word",), self.plain),
            "probs": array(("strength", "word"), self.probs),
            "top": array(("strength",), self.top),
            "looks": None if self.looks is None else array(("strength", "layer", "head"), self.looks),
            "shift": None if self.shift is None else array(("strength",), self.shift),
        }

    def __repr__(self) -> str:
        return short(self, probs=self.probs)


def commit_and_correct(
    lm: LanguageModel,
    prompt: Any,
    dictionaries: Any,
    position: int,
    *,
    words: tuple[int, int],
    committed: Sequence[Feature],
    correcting: Sequence[Feature],
    suppressed: Sequence[Feature] = (),
    commit_strength: float = 10.0,
    strengths: Sequence[float] = tuple(np.linspace(0, 20, 13)),
    from_layer: int,
) -> Correction:
    """Steer to a word at a position, and steer to another one from a later layer on, harder and harder.

    A model that could still change its plan there would end with the second word; one that has committed does
    not. Both are steered by force, so a large enough strength always wins: look at the strength it takes.

    Source: the correction test of candle-mi.

    Args:
      prompt: one.
      position: where all of it is written.
      words: token ids, of the word committed to and of the other one.
      suppressed: subtracted with the commitment.
      from_layer: the correction is written into this layer and later ones only.

    Raises:
      ArgumentError: several prompts, a position that is not there, or as `inject`.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> found = jmi_sparse.commit_and_correct(
      ...     lm, "The capital of France is", {"blocks.2.hook_resid_post": sae}, -1,
      ...     words=(lm.token_id(" Rome"), lm.token_id(" Paris")), committed=[(2, 7)], correcting=[(2, 9)],
      ...     from_layer=2,
      ... )
      >>> found.probs.shape
      (13, 2)
    """
    check_lm(lm)
    decoders, prompts = decoders_of(dictionaries), lm.prompts(prompt)
    if prompts.shape[0] != 1:
        raise ArgumentError(f"prompt={shown(prompt)}: give one prompt")
    if prompts.mask is not None and not np.asarray(prompts.mask).all():
        raise ArgumentError("prompt: give one without padding; a position is a place in it")
    length, position = prompts.shape[1], int(whole_array("position", position))
    if not -length <= position < length:
        raise ArgumentError(f"position={position}: the prompt has {length} tokens")
    values = np.atleast_1d(np.asarray(real_array("strengths", strengths), np.float64))
    weights = [-1.0] * len(suppressed) + [1.0] * len(committed)
    grid = jmi.Grid(strength=values)
    commit = inject(lm, decoders, [*suppressed, *committed], position, commit_strength, weights=weights)
    correct = inject(lm, decoders, list(correcting), position, grid["strength"], from_layer=from_layer)
    heads = PATTERN in table_of(lm.arch)
    looks = [jmi.Capture(PATTERN, reduce=jmi.Select(position=-1))] if heads else []
    metric = Answers(np.asarray(words, np.int32), np.int32(position % length) if heads else None)
    hooks = {point: [commit[point], correct[point]] for point in commit}
    found = jmi.sweep(lm, prompts, hooks, metric, capture=looks, logits_at=-1, progress=False)
    plain = metric(lm.run(prompts, capture=looks, logits_at=-1))
    changed = None
    if heads:
        changed = np.asarray(found["looks"])[:, 0] - np.asarray(plain["looks"])[:1]
    return Correction(
        words,
        values,
        np.asarray(plain["probs"])[0],
        np.asarray(found["probs"])[:, 0],
        np.asarray(found["top"])[:, 0],
        changed,
    )
