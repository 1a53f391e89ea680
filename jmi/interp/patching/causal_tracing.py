"""Causal tracing: where a fact passes, found by restoring clean states in a run with a noised subject.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv:2202.05262).

Axis letters: b batch, s sequence, n positions visited.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmi import tree
from jmi.captures.capture import Capture
from jmi.checks import real_number, whole_array
from jmi.hooks.noise import Noise
from jmi.interp.patching.measure import Metrics, checked_metrics, checked_seeds, prompts_of
from jmi.interp.patching.patch import PatchResult, patch
from jmi.lm import LanguageModel
from jmi.metrics import Prob
from jmi.model.sites import Site, table_of
from jmi.numerics import wide

MULTIPLE = 3.0
"""Noise in standard deviations of the embeddings, unless said otherwise."""

_CHUNK = 4096
"""Tokens embedded at once."""


def causal_trace(
    lm: LanguageModel,
    prompt: str | Sequence[str] | Any,
    subject: Any,
    metrics: Metrics | None = None,
    *,
    site: str = "hook_resid_post",
    window: int = 1,
    scale: float | None = None,
    seeds: Sequence[int] = range(10),
    layers: Any = None,
    positions: Any = None,
    mask: Any = None,
    logits_at: Any = -1,
    **options: Any,
) -> PatchResult:
    """Noise the embeddings of the subject, then restore clean states, one layer and position after another.

    Args:
      prompt: a text, several texts (padded on the left), or int32 tokens ``[b, s]``.
      subject: positions of the subject: a list, or ``[b, n]``, one for each row (`jmi.align.find_span`).
      metrics: name -> metric; by default "prob", the probability of the clean run's prediction.
      site: what is restored: ``hook_resid_post``, ``hook_attn_out``, ``hook_mlp_out``, or any other.
      window: layers restored at once, centred on that of the result and cut off at the first and last;
        the paper takes 1 for states and 10 for modules.
      scale: standard deviation of the noise; by default 3 times that of the embeddings (`embedding_std`).
      seeds: of the noise.
      layers, positions: which are visited, None for all.
      mask, logits_at, options: as `jmi.interp.patching.patch`.

    Returns:
      `PatchResult` with the axes seed, layer and position: ``patched`` is restored, ``base`` noised
      (``[seed, 1, 1, b]``), ``source`` clean. The paper's indirect effect is ``effect``, averaged.

    Raises:
      ArgumentError: no seed, or what `patch` raises.

    Example:
      >>> import jmi_models
      >>> from jmi.align import find_span
      >>> from jmi.interp.patching.causal_tracing import causal_trace
      >>> lm = jmi_models.load("atlas")
      >>> text = "The capital of France is"
      >>> trace = causal_trace(lm, text, range(*find_span(lm, text, "France")), seeds=range(2))
      >>> trace.patched["prob"].shape == (2, lm.arch.n_layers, lm.encode(text).shape[1], 1)
      True
    """
    prompts = prompts_of(lm, prompt, mask)
    seeds = checked_seeds(seeds)
    subject = np.asarray(whole_array("subject", subject))
    if metrics is None:
        clean = lm.run(prompts.tokens, mask=prompts.mask, logits_at=logits_at).logits
        metrics = {"prob": Prob(clean.argmax(-1))}
    checked_metrics(metrics)
    std = MULTIPLE * embedding_std(lm) if scale is None else real_number("scale", scale, above=0)
    run = functools.partial(
        patch, lm, prompts.tokens, prompts.tokens, site, metrics, layers=layers, positions=positions,
        window=window, centred=True, mask=prompts.mask, source_mask=prompts.mask, logits_at=logits_at,
        **options,
    )  # fmt: skip
    found = [run(hooks={"hook_embed": Noise(std, seed=seed, positions=subject)}) for seed in seeds]
    axes = {"seed": np.asarray(seeds), **found[0].axes}
    patched = {name: np.stack([one.patched[name] for one in found]) for name in metrics}
    base = {name: np.stack([one.base[name] for one in found])[:, None, None] for name in metrics}
    return PatchResult(axes, patched, base, found[0].source)


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
