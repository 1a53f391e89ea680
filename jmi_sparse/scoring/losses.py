"""What a model loses: cross-entropy and KL divergence with dictionaries in it, and with sites ablated.

Axis letters: b batch, s places, v vocabulary.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.engine.programs import compiled
from jmi.lm import LanguageModel
from jmi.metrics import kl_divergence, log_prob
from jmi.model.sites import Site
from jmi_sparse.scoring.corpus import Batch
from jmi_sparse.scoring.places import Placed
from jmi_sparse.splicing.splice import splice

_TOGETHER = 8
"""Models that share the runs of the unchanged one; each holds a copy of its dictionary meanwhile."""


@tree.dataclass
class Ablated:
    """Intervention: a constant at chosen tokens.

    Attributes:
      value: of the shape of the site's last axes.
      chosen: bool ``[b, s]``.
    """

    value: jax.Array
    chosen: jax.Array

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        chosen = self.chosen.reshape(*self.chosen.shape, *[1] * (value.ndim - 2))
        constant = self.value.reshape(1, 1, *value.shape[2:]).astype(value.dtype)
        return jnp.where(chosen, constant, value)


@dataclasses.dataclass(frozen=True)
class Special:
    """What is done at special tokens, whose ids are ``ids``.

    Attributes:
      kept: the site stays as it is there when a dictionary stands in the model.
      ablated: ablations act there.
      counted: what is predicted there counts.
    """

    ids: np.ndarray
    kept: bool = False
    ablated: bool = True
    counted: bool = True

    def tokens(self, batch: Batch) -> np.ndarray:
        """Bool ``[b, s]``: tokens whose activations count."""
        return batch.without(self.ids) if self.kept else batch.real

    def predicting(self, batch: Batch) -> np.ndarray:
        """Bool ``[b, s]``: tokens whose predictions count."""
        return batch.real if self.counted else batch.without(self.ids)

    def followed(self, batch: Batch) -> np.ndarray:
        """Bool ``[b, s - 1]``: those of them that another token follows."""
        return self.predicting(batch)[:, :-1] & batch.real[:, 1:]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Sums over a corpus.

    Attributes:
      ce: cross-entropy over ``n`` tokens that are followed by another, in nats.
      kl: KL(clean || this) over ``places``, all tokens.
    """

    ce: float = 0.0
    kl: float = 0.0
    n: int = 0
    places: int = 0

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.ce + other.ce, self.kl + other.kl, self.n + other.n, self.places + other.places)


@dataclasses.dataclass(frozen=True)
class Variant:
    """The model with a dictionary in it, or with sites at constant values.

    Attributes:
      key: ``("spliced", name)``, ``("zero", *sites)`` or ``("mean", *sites)``.
      place: of the dictionary; None for constants.
      constants: of each site, in the shape of its last axes.
    """

    key: tuple[str, ...]
    place: Placed | None = None
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def hooks(self, lm: LanguageModel, batch: Batch, special: Special) -> dict[str, Ablated]:
        """What ablates the sites in a run of ``batch``."""
        chosen = jnp.asarray(batch.real if special.ablated else batch.without(special.ids))
        return {site: Ablated(jnp.asarray(x, lm.dtype), chosen) for site, x in self.constants.items()}


def variants_of(places: Sequence[Placed], means: Mapping[str, np.ndarray]) -> list[Variant]:
    """Each dictionary at its place, and the sites that they write without what flows there."""
    found = [Variant(("spliced", place.name), place) for place in places]
    for sites in dict.fromkeys(place.writes for place in places):
        own = {site: means[site] for site in sites}
        found.append(Variant(("zero", *sites), constants={s: np.zeros_like(x) for s, x in own.items()}))
        found.append(Variant(("mean", *sites), constants=own))
    return found


def groups_of(variants: Sequence[Variant]) -> list[Sequence[Variant]]:
    """Variants that are compared with the same runs of the unchanged model."""
    return [variants[start : start + _TOGETHER] for start in range(0, len(variants), _TOGETHER)]


def spliced(lm: LanguageModel, place: Placed, special: Special) -> LanguageModel:
    """The model with the dictionary at its place, and nothing for what it misses."""
    given: Any = place.dictionary if place.joint else {place.reads[0]: place.dictionary}
    return splice(lm, given, error=False, skip_special=special.ids.tolist() if special.kept else False)


def losses_of(
    lm: LanguageModel, batches: Iterable[Batch], group: Sequence[Variant], special: Special
) -> Iterator[dict[tuple[str, ...], Loss]]:
    """Losses of the model itself, under ``("clean",)``, and of each variant, batch after batch."""
    models = {v.key: spliced(lm, v.place, special) for v in group if v.place is not None}
    for batch in batches:
        clean = lm.run(batch.prompts, exact=True).logits
        found: dict[tuple[str, ...], Loss] = {("clean",): _loss(clean, clean, batch, special)}
        for variant in group:
            model, hooks = models.get(variant.key, lm), variant.hooks(lm, batch, special)
            logits = model.run(batch.prompts, hooks, exact=True).logits
            found[variant.key] = _loss(clean, logits, batch, special)
        yield found


def _loss(clean: jax.Array, logits: jax.Array, batch: Batch, special: Special) -> Loss:
    ce, kl = map(np.asarray, _compared(clean, logits, jnp.asarray(batch.tokens)))
    counted = special.predicting(batch)
    followed = special.followed(batch)
    return Loss(
        float(ce[followed].sum(dtype=np.float64)),
        float(kl[counted].sum(dtype=np.float64)),
        int(followed.sum()),
        int(counted.sum()),
    )


@compiled()
def _compared(clean: jax.Array, logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of what follows ``[b, s - 1]``, and KL(clean || other) ``[b, s]``."""
    return -log_prob(logits[:, :-1], tokens[:, 1:]), kl_divergence(clean, logits)
