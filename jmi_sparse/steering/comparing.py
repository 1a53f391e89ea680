"""Dictionaries compared at one site: which features point at a word, and what steering by them does."""

import dataclasses
from typing import Any

import numpy as np

from jmi.checks import real_array, whole_number
from jmi.errors import ArgumentError
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi_sparse.decoders.rows import decoders_of
from jmi_sparse.decoders.search import best_rows
from jmi_sparse.features import reading
from jmi_sparse.steering.planning import Feature, PlanningSite, planning_site


@dataclasses.dataclass(frozen=True, repr=False)
class Arm(Result):
    """One dictionary of a comparison.

    Attributes:
      ranked: features ``(layer, id)`` whose rows point most along the word's direction.
      cosines: of their rows with it, ``[k]``.
      activations: of the ranked features on the prompt, ``[k, pos]``.
      suppressed: the sweep over positions with all of them subtracted.
      steered: the same with the first of them added as well, which undoes its part.
      skip: what the skip of the layer writes along the direction at the last position; None without one.
    """

    ranked: tuple[Feature, ...]
    cosines: np.ndarray
    activations: np.ndarray
    suppressed: PlanningSite
    steered: PlanningSite
    skip: float | None

    def _held(self) -> dict[str, Any]:
        return {
            "ranked": self.ranked,
            "cosines": array(("feature",), self.cosines),
            "activations": array(("feature", "pos"), self.activations),
            "suppressed": self.suppressed.to_dict(),
            "steered": self.steered.to_dict(),
            "skip": self.skip,
        }

    def __repr__(self) -> str:
        return short(self, activations=self.activations)


def compare_arm(
    lm: LanguageModel,
    prompt: Any,
    dictionaries: Any,
    *,
    word: int,
    direction: Any,
    layer: int,
    k: int = 5,
    strength: float = 10.0,
    every_target: bool = False,
) -> Arm:
    """What one dictionary makes of a word at a layer: the features found, when they are active, what they do.

    Call it for each dictionary that is compared, with everything else the same, and compare positions and
    chances. Rows that point at a word need not be what makes the model say it: a subtracted feature that was
    not active pushes the stream where it never is.

    Source: the comparison of a CLT with a PLT at a planning site in candle-mi.

    Args:
      prompt: one.
      dictionaries: a set, a cross-layer transcoder or ``{site: dictionary}``, in memory.
      word: token id whose chance at the end is followed.
      direction: ``[d]``, such as the word's column of the unembedding.
      layer: whose output rows are searched.
      every_target: of a cross-layer transcoder, rank a feature by the row that points most along the
        direction, in whatever layer it is written.

    Raises:
      ArgumentError: as `search_decoders` and `planning_site`.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> word = lm.token_id(" Paris")
      >>> arm = jmi_sparse.compare_arm(
      ...     lm, "The capital of France is", {"blocks.2.hook_resid_post": sae}, word=word,
      ...     direction=lm.params["embed"]["W_E"][word], layer=2,
      ... )
      >>> arm.activations.shape
      (5, 6)
    """
    check_lm(lm)
    decoders, direction = decoders_of(dictionaries), np.asarray(real_array("direction", direction))
    if direction.ndim != 1:
        raise ArgumentError(f"direction={list(direction.shape)}: give one, [{decoders.d_out}]")
    k = whole_number("k", k, 1)
    targets = None if every_target else [layer]
    best = best_rows(decoders, direction, targets=targets, k=k)
    ranked, cosines = tuple((row.layer, row.id) for row in best), np.array([row.score for row in best])
    sweep: dict[str, Any] = {"word": word, "strengths": [strength], "progress": False}
    suppressed = planning_site(lm, prompt, decoders, suppressed=ranked, **sweep)
    steered = planning_site(lm, prompt, decoders, suppressed=ranked, injected=ranked[:1], **sweep)
    activations, skip = _read(lm, prompt, dictionaries, ranked, direction, layer)
    return Arm(ranked, cosines, activations, suppressed, steered, skip)


def _read(
    lm: LanguageModel,
    prompt: Any,
    dictionaries: Any,
    ranked: tuple[Feature, ...],
    direction: np.ndarray,
    layer: int,
) -> tuple[np.ndarray, float | None]:
    """Activations of features on a prompt ``[k, pos]``; what the layer's skip writes along a direction."""
    readers = reading(dictionaries)
    wanted = sorted({each for each, _ in ranked} | ({layer} & set(readers)))
    out = lm.run(prompt, capture=[readers[each][0] for each in wanted], logits_at=-1)
    streams = {each: out[readers[each][0]] for each in wanted}
    active = {each: np.asarray(readers[each][1].encode(streams[each]))[0] for each in wanted}
    activations = np.stack([active[each][:, feature] for each, feature in ranked])
    own: Any = readers.get(layer, (None, None))[1]
    if getattr(own, "W_skip", None) is None:
        return activations, None
    return activations, float(np.asarray(own.skipped(streams[layer]))[0, -1] @ direction)
