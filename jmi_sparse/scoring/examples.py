"""`examples`: the stretches of text on which features are active, in one pass over a corpus."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jmi.checks import flag, shown, whole_array, whole_number
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_lm
from jmi_sparse.scoring.corpus import Batch, batches, corpus_rows, special_ids
from jmi_sparse.scoring.found import Examples, SiteExamples
from jmi_sparse.scoring.gathering import Gathered, both_active, chosen, gather
from jmi_sparse.scoring.logits import extreme_tokens
from jmi_sparse.scoring.places import Placed, captured, placed

ALL = 4096
"""Features that may be asked for without naming them."""

PAIRED = 2048
"""Features, of all sites, whose pairs are counted."""

_TOKENS = 10


def examples(
    lm: LanguageModel,
    prompts: Any,
    dictionaries: Any,
    *,
    features: Any = None,
    n: int = 20,
    quantiles: int = 10,
    per_quantile: int = 5,
    context: int = 32,
    batch_size: int = 8,
    skip_special: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Examples:
    """Examples of chosen features by how active they are, with histograms and counts of pairs.

    Prompts are cut into windows of ``context`` tokens from their first token on; the peak of a window is its
    largest activation by magnitude. Of each feature the ``n`` windows with the largest peaks are kept, and a
    uniform sample of those in which it is active at all, cut into ``quantiles`` by their peaks (delphi). The
    sample depends on the seed, the feature and the prompts, not on batches. Memory does not grow with the
    corpus: features times ``n + quantiles * per_quantile`` windows stay on the device.

    ``top_logits`` are those of the decoder row times the unembedding alone, without the gain of the final
    norm; of a cross-layer transcoder, of the sum of a feature's rows. In a model with strong gains, or for a
    row that later layers read, they say little.

    Args:
      prompts, dictionaries, batch_size, progress: as of `jmi_sparse.score`.
      features: ids, of the one site or of all; or site -> ids; None for all, up to 4,096.
      n, per_quantile: how many windows.
      quantiles: into how many parts of equal size the sample is cut.
      skip_special: activations at special tokens count as 0.

    Raises:
      ArgumentError, HookError: as `jmi_sparse.score`; ids that a dictionary does not have; too many features.

    Example:
      >>> import jax, jax.numpy as jnp, jmi_models, jmi_sparse
      >>> lm = jmi_models.load("atlas")
      >>> rows = jax.random.normal(jax.random.key(0), (256, lm.arch.d_model)) / 8
      >>> sae = jmi_sparse.Dictionary(rows.T, rows, jnp.zeros(128), jmi_sparse.TopK(8), jnp.zeros(256))
      >>> texts = ["The capital of France is Paris", "The capital of Spain is Madrid"]
      >>> found = jmi_sparse.examples(lm, texts, {"blocks.2.hook_resid_post": sae}, features=[3, 5], n=2)
      >>> len(found), found.both.shape
      (2, (2, 2))
    """
    check_lm(lm)
    sizes = {"n": n, "quantiles": quantiles, "per_quantile": per_quantile, "context": context}
    n, quantiles, per_quantile, context = (whole_number(name, value) for name, value in sizes.items())
    size, key = whole_number("batch_size", batch_size), jax.random.key(whole_number("seed", seed, 0))
    special = special_ids(lm) if flag("skip_special", skip_special) else np.zeros(0, np.int32)
    places = placed(lm, dictionaries)
    ids = _asked(places, features)
    rows = corpus_rows(lm, prompts)
    work = list(batches(lm, rows, size))
    count = sum(int(batch.without(special).sum()) for batch in work)
    if not count:
        raise ArgumentError("prompts: there is no token that counts; with skip_special=True, give others")
    stream = _Stream(ids, (n, quantiles * per_quantile, context), _windows(rows, context), special, key)
    shown_bar = flag("progress", progress)
    with tqdm(total=len(work), unit="batch", disable=None if shown_bar else True) as bar:
        for batch in work:
            stream.add(lm, places, batch)
            bar.update()
    sites = {
        name: _arrays(lm, place, source, ids[name], stream.held[name])
        for place in places
        for source, name in enumerate(place.named(place.reads))
        if name in ids
    }
    both = None if stream.both is None else np.asarray(stream.both, np.int64)
    return Examples(sites, rows, _strings(lm, rows, sites), count, quantiles, both)


class _Stream:
    """What is known so far, by the names of sites.

    Attributes:
      held: of each site; both: int32 ``[k, k]``, of all, in order; None where they are too many.
    """

    def __init__(
        self, ids: Mapping[str, np.ndarray], room: tuple[int, int, int], each: int, special: Any, key: Any
    ):
        self.ids, self.context, self.each, self.special, self.key = ids, room[-1], each, special, key
        self.held = {name: Gathered.nothing(len(own), *room) for name, own in ids.items()}
        total = sum(map(len, ids.values()))
        self.both = jnp.zeros((total, total), jnp.int32) if total <= PAIRED else None

    def add(self, lm: LanguageModel, places: Sequence[Placed], batch: Batch) -> None:
        """Take in a batch."""
        counted = jnp.asarray(batch.without(self.special))
        acts: dict[str, jax.Array] = {}
        values = captured(lm, batch, list(dict.fromkeys(site for place in places for site in place.reads)))
        for place in places:
            wanted = {i: self.ids[n] for i, n in enumerate(place.named(place.reads)) if n in self.ids}
            if wanted:
                found = chosen(place.bare, tuple(values[site] for site in place.reads), wanted, counted)
                acts |= {place.named(place.reads)[i]: each for i, each in found.items()}
        cut = np.arange(-(-batch.real.shape[1] // self.context), dtype=np.int32)
        windows = (batch.rows[:, None] * np.int32(self.each) + cut[None]).reshape(-1)
        for name, each in acts.items():
            self.held[name] = gather(self.held[name], each, self.ids[name], windows, self.key)
        if self.both is not None:
            self.both = self.both + both_active(tuple(acts[name] for name in self.ids))


def _windows(rows: Sequence[np.ndarray], context: int) -> int:
    """Windows of the longest row. All of them have a number, and tokens are counted, in 31 bits."""
    each = -(-max(map(len, rows)) // context)
    if len(rows) * each * context >= 2**31:
        raise ArgumentError("prompts: more than 2^31 tokens; take a part of them")
    return each


def _asked(places: Sequence[Placed], features: Any) -> dict[str, np.ndarray]:
    """Ids of features by the names of sites, in the order of the dictionaries."""
    sizes = {name: place.dictionary.n_features for place in places for name in place.named(place.reads)}
    if features is None:
        if sum(sizes.values()) > ALL:
            raise ArgumentError(
                f"features=None: there are {sum(sizes.values()):,}, more than {ALL:,}; give ids, [3, 14, 15]"
            )
        return {name: np.arange(size, dtype=np.int32) for name, size in sizes.items()}
    given = features if isinstance(features, Mapping) else dict.fromkeys(sizes, features)
    unknown = [name for name in given if name not in sizes]
    if unknown or not given:
        known = ", ".join(list(sizes)[:6])
        raise ArgumentError(f"features: {shown(unknown[0] if unknown else given)}: the sites are {known}")
    return {name: _ids(name, given[name], size) for name, size in sizes.items() if name in given}


def _ids(name: str, given: Any, size: int) -> np.ndarray:
    ids = np.atleast_1d(np.asarray(whole_array("features", given)))
    if ids.ndim > 1:
        raise ArgumentError(f"features={shown(given)}: give ids, [3, 14], of the one site, or {{site: ids}}")
    if not ids.size or ids.min() < 0 or ids.max() >= size or len(set(ids.tolist())) < len(ids):
        raise ArgumentError(f"features={shown(given)}: {name} has 0 to {size - 1}; give each id once")
    return ids.astype(np.int32)


def _arrays(lm: LanguageModel, place: Placed, source: int, ids: np.ndarray, held: Gathered) -> SiteExamples:
    found: Any = jax.tree.map(np.asarray, held)
    if np.isnan(found.high).any():
        raise ArgumentError(f"{place.reads[source]}: activations are NaN; look at what the model gives there")
    top, bottom = extreme_tokens(lm, place, source, ids, _TOKENS) or (None, None)
    return SiteExamples(
        ids=ids,
        top_windows=found.top.window,
        top_acts=found.top.acts,
        sample_windows=found.sample.window,
        sample_acts=found.sample.acts,
        counts=found.counts,
        low=found.low,
        high=found.high,
        histogram=found.histogram,
        exponent=found.exponent,
        top_logits=top,
        bottom_logits=bottom,
    )


def _strings(
    lm: LanguageModel, rows: Sequence[np.ndarray], sites: Mapping[str, SiteExamples]
) -> dict[int, str]:
    """Texts of all tokens that results show."""
    of_logits = [x for held in sites.values() for x in (held.top_logits, held.bottom_logits) if x is not None]
    every = np.unique(np.concatenate([np.ravel(x) for x in (*rows, *of_logits)]))
    return {int(token): lm.token_string(int(token)) for token in every}
