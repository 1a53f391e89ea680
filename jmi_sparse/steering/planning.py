"""Where in a prompt a model plans a word: features suppressed and another injected, position by position."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

import jmi
from jmi import tree
from jmi.captures.output import Output
from jmi.checks import real_array, shown, whole_number
from jmi.errors import ArgumentError
from jmi.interp.results import Result, array, short
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import final_logits, prob
from jmi_sparse.decoders.rows import decoders_of
from jmi_sparse.steering.inject import inject

Feature = tuple[int, int]
"""Layer and id."""


@tree.dataclass
class Chance:
    """Metric: probability and logit of a token at the last position, by name."""

    takes_padding: ClassVar[bool] = True
    token: Any

    def __call__(self, out: Output) -> dict[str, jax.Array]:
        logits = final_logits(out)
        return {"prob": prob(logits, self.token), "logit": logits[..., self.token]}


@dataclasses.dataclass(frozen=True, repr=False)
class PlanningSite(Result):
    """What a word's chance becomes, by where features are written and how strongly.

    Attributes:
      tokens: int32 ``[s]``.
      word: token id that is followed.
      suppressed, injected: pairs ``(layer, id)``.
      strengths: ``[t]``.
      probs, logits: of the word at the last position, ``[position, strength]``.
      baseline: its probability and logit where nothing is written.
      control_features: of each seed, what was written instead: ``[n, m, 2]``.
      control_probs: ``[n, position, strength]``.
    """

    tokens: np.ndarray
    word: int
    suppressed: tuple[Feature, ...]
    injected: tuple[Feature, ...]
    strengths: np.ndarray
    probs: np.ndarray
    logits: np.ndarray
    baseline: tuple[float, float]
    control_features: np.ndarray
    control_probs: np.ndarray

    @property
    def best(self) -> tuple[int, int]:
        """Position and index of the strength at which the word is likeliest."""
        position, strength = np.unravel_index(int(self.probs.argmax()), self.probs.shape)
        return int(position), int(strength)

    def _held(self) -> dict[str, Any]:
        position, strength = self.best
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return found | {
            "strengths": array(("strength",), self.strengths),
            "probs": array(("position", "strength"), self.probs),
            "logits": array(("position", "strength"), self.logits),
            "control_features": array(("control", "feature", "pair"), self.control_features),
            "control_probs": array(("control", "position", "strength"), self.control_probs),
            "best": {
                "position": position,
                "strength": self.strengths[strength],
                "prob": self.probs[position, strength],
                "ratio": self.probs[position, strength] / max(self.baseline[0], np.finfo(float).tiny),
            },
        }

    def __repr__(self) -> str:
        return short(self, probs=self.probs, control_probs=self.control_probs)


def planning_site(
    lm: LanguageModel,
    prompt: Any,
    dictionaries: Any,
    *,
    word: int,
    injected: Sequence[Feature] = (),
    suppressed: Sequence[Feature] = (),
    strengths: Sequence[float] = (10.0,),
    controls: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> PlanningSite:
    """The chance of a word at the end, with features written at each position of the prompt by itself.

    At one position after the other the rows of ``suppressed`` features are subtracted and those of
    ``injected`` ones added, each at constant strength, in every layer that they write into (`inject`). Where
    the word becomes likely only from one position on, that is where writing is heard; it need not be where
    the model itself plans. As rows may point at the word itself, compare with ``controls``: the same numbers
    of random features of the same layers. All of it is one sweep.

    Source: the planning-site experiment of candle-mi, after figure 13 of Lindsey et al. (2025).

    Args:
      prompt: one.
      word: token id whose chance is followed.
      controls: how many random sets are written as well, by ``seed``.

    Raises:
      ArgumentError: no feature, several prompts, or as `inject`.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (512, 128))
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(512))
      >>> found = jmi_sparse.planning_site(
      ...     lm, "The capital of France is", {"blocks.2.hook_resid_post": sae}, word=lm.token_id(" Rome"),
      ...     injected=[(2, 7)], controls=2, progress=False,
      ... )
      >>> found.probs.shape, found.control_probs.shape
      ((6, 1), (2, 6, 1))
    """
    check_lm(lm)
    decoders, prompts = decoders_of(dictionaries), lm.prompts(prompt)
    values = np.atleast_1d(np.asarray(real_array("strengths", strengths), np.float64))
    if prompts.shape[0] != 1:
        raise ArgumentError(f"prompt={shown(prompt)}: give one prompt")
    pairs = np.asarray([*suppressed, *injected])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ArgumentError("give the features, pairs (layer, id), in injected= or suppressed=")
    draws = np.random.default_rng(whole_number("seed", seed, 0))
    others = np.stack([pairs] * (1 + whole_number("controls", controls, 0)))
    others[1:, :, 1] = draws.integers(decoders.n_features, size=others[1:, :, 1].shape)
    grid = jmi.Grid(features=others, position=range(prompts.shape[1]), strength=values)
    weights = [-1.0] * len(suppressed) + [1.0] * len(injected)
    hooks = inject(lm, decoders, grid["features"], grid["position"], grid["strength"], weights=weights)
    metric = Chance(word)
    found = jmi.sweep(lm, prompts, hooks, metric, logits_at=-1, progress=progress)
    plain = metric(lm.run(prompts, logits_at=-1))
    probs, logits = (np.asarray(found[name])[..., 0] for name in ("prob", "logit"))
    return PlanningSite(
        np.asarray(prompts.tokens)[0],
        word,
        tuple((int(a), int(b)) for a, b in suppressed),
        tuple((int(a), int(b)) for a, b in injected),
        values,
        probs[0],
        logits[0],
        (float(plain["prob"][0]), float(plain["logit"][0])),
        others[1:],
        probs[1:],
    )
