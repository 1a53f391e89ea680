"""Causal tracing: where a fact passes, found by restoring clean states in a run with a noised subject.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262).

Axis letters: b batch, s sequence, n positions visited.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.checks import real_number, text, whole_array, whole_number
from jmi.hooks.grid import Grid
from jmi.hooks.interventions import Patch
from jmi.hooks.noise import Noise
from jmi.interp.patching.measure import (
    Metrics,
    checked_metric,
    checked_options,
    checked_seeds,
    measured,
    prompts_of,
    swept,
    with_room,
)
from jmi.interp.patching.patch import point_of
from jmi.interp.patching.patch_result import PatchResult
from jmi.interp.patching.places import checked_at, lined_up, placed, places_of
from jmi.interp.patching.replacements import replacement
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import Prob
from jmi.model.sites import Site, table_of
from jmi.numerics import wide

MULTIPLE = 3.0
"""Noise in standard deviations of the embeddings, unless said otherwise."""

_CHUNK = 4096
"""Tokens embedded at once."""


def causal_trace(
    lm: LanguageModel,
    prompts: Any,
    subject: Any,
    *,
    metric: Metrics | None = None,
    site: str = "hook_resid_post",
    window: int = 1,
    scale: float | None = None,
    seeds: Sequence[int] = range(10),
    at: Mapping[str, Any] | None = None,
    logits_at: Any = -1,
    **options: Any,
) -> PatchResult:
    """Noise the embeddings of the subject, then restore clean states, one layer and position after another.

    Args:
      prompts: as `LanguageModel.prompts` takes them.
      subject: positions of the subject: a list, or ``[b, n]``, one for each row (`jmi.align.find_span`).
      metric: one, or several by name; by default the probability of the clean run's prediction.
      site: what is restored: ``hook_resid_post``, ``hook_attn_out``, ``hook_mlp_out``, or any other.
      window: layers restored at once, centred on that of the result and cut off at the first and last;
        the paper takes 1 for states and 10 for modules.
      scale: standard deviation of the noise; by default 3 times that of the embeddings (`embedding_std`).
      seeds: of the noise, an axis of one sweep.
      at: axis -> which layers and positions are visited, as `jmi.interp.patching.patch`; all by default.
      logits_at: the position that metrics read, one or ``[b]``.
      options: ``memory``, ``mesh``, ``output``, ``progress`` and ``exact`` of `jmi.sweep`.

    Returns:
      `PatchResult` with the axes seed, layer and position, into the corrupted run: ``patched`` is restored,
      ``base`` noised (``[seed, 1, 1, b]``), ``source`` clean. The paper's indirect effect is ``effect``,
      averaged.

    Raises:
      ArgumentError: no seed, or what `patch` raises.

    Example:
      >>> import jmi_models
      >>> from jmi.align import find_span
      >>> from jmi.interp.patching.causal_tracing import causal_trace
      >>> lm = jmi_models.load("atlas")
      >>> text = "The capital of France is"
      >>> trace = causal_trace(lm, text, range(*find_span(lm, text, "France")), seeds=range(2))
      >>> trace.patched.shape == (2, lm.arch.n_layers, lm.encode(text).shape[1], 1)
      True
    """
    prompts = prompts_of(check_lm(lm), prompts)
    point, chosen = point_of(lm, text("site", site), checked_at(at))
    tried, subject = checked_seeds(seeds), np.asarray(whole_array("subject", subject))
    window, options = whole_number("window", window), checked_options(options)
    around = (window // 2, (window + 1) // 2 - 1)
    places = places_of(lm.arch, point, prompts, None, chosen, window=around, seeds=tried)
    exact = options["exact"] or prompts.shape[0] > 1 or not _draws_alike()
    prompts = with_room(lm, prompts, None, cells=len(places.grid), logits_at=logits_at, exact=exact)

    clean = lm.run(prompts, capture=[point.point], logits_at=logits_at)
    metric = checked_metric(Prob(clean.logits.argmax(-1)) if metric is None else metric)
    source = measured(metric, clean)
    std = MULTIPLE * embedding_std(lm) if scale is None else real_number("scale", scale, above=0)

    def noised(grid: Grid) -> dict[str, Any]:
        return {"hook_embed": Noise(std, seed=grid["seed"], positions=subject)}

    lead = int(point.layers is not None)
    values = replacement("source", clean[point.point], point, prompts.mask)
    spots = lined_up(point, prompts, prompts, prompts.shape[1])
    hook = Patch(placed(values, point, spots, lead), **places.selectors)
    restored = swept(lm, prompts, places.hooks(hook), metric, logits_at, base=noised(places.grid), **options)
    # Of the noise alone nothing is kept in a folder: the sweep above is what lasts.
    alone = {name: value for name, value in options.items() if name != "output"}
    base = swept(lm, prompts, noised(Grid(seed=tried)), metric, logits_at, **alone)
    between = tuple(range(1, len(places.axes)))
    return PatchResult(
        places.axes,
        places.seen(restored),
        jax.tree.map(lambda x: np.expand_dims(x, between), base),
        source,
        "corrupted",
    )


def _draws_alike() -> bool:
    """Whether a longer draw of one row begins as a shorter one does: with JAX's default generator."""
    config: Any = jax.config
    return bool(config.jax_threefry_partitionable) and config.jax_default_prng_impl == "threefry2x32"


def embedding_std(lm: LanguageModel) -> float:
    """Standard deviation of all entries of ``hook_embed`` over the vocabulary, after any scale of it."""
    tokens = np.arange(table_of(lm.arch)["hook_logits"].sizes[-1] or 0, dtype=np.int32)
    moments = []
    for part in np.split(tokens, range(_CHUNK, len(tokens), _CHUNK)):
        out = lm.run(part[:, None], capture=[Capture("hook_embed", reduce=_Moments())], stop_at_layer=0)
        moments.append(np.asarray(out["hook_embed"], float) * len(part))
    mean, square = np.sum(moments, axis=0) / len(tokens)
    return float(np.sqrt(square - mean**2))


@tree.dataclass
class _Moments:
    """Reducer: mean and mean square of all entries, ``[2]``."""

    def __call__(self, value: jax.Array, site: Site) -> jax.Array:
        del site
        value = value.astype(wide(value.dtype))
        return jnp.stack([value.mean(), jnp.square(value).mean()])
