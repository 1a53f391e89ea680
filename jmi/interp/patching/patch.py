"""Activation patching: copy activations of one run into another, one place after the other.

Meng et al. 2022 (arXiv:2202.05262), Wang et al. 2022 (arXiv:2211.00593); practice and names after
Heimersheim & Nanda 2024 (arXiv:2404.15255).

Axis letters: b batch, s sequence, l layers, n values of a swept axis.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from jmi.align import Alignment
from jmi.checks import choice, text
from jmi.errors import ArgumentError
from jmi.hooks.interventions import Patch
from jmi.hooks.resolve import Hooks
from jmi.interp.patching.measure import (
    Measured,
    Metrics,
    Prompts,
    checked_metrics,
    checked_seeds,
    measured,
    prompts_of,
    swept,
)
from jmi.interp.patching.places import counts, placed, places_of
from jmi.interp.patching.replacements import ABLATIONS, OF_ROW, RANDOM, Kind, replacement
from jmi.lm import LanguageModel
from jmi.model.sites import Site, find, full_name, part_of


@dataclasses.dataclass(frozen=True)
class PatchResult:
    """Metrics of every patched run, in numpy. The last axis is always the row of the batch.

    Attributes:
      axes: name -> values, of the axes in front of the rows, in their order.
      patched: metric -> ``[*axes, b]``; NaN in rows of a padded batch that have no token at a position when
        all positions are visited (for means over rows, ``numpy.nanmean``).
      base: metric -> without the patch, ``[b]`` (or ``[seed, ..., b]``, one for each noise).
      source: metric -> of the source run, ``[b]``; None when there is none to move towards (ablations).
    """

    axes: Mapping[str, np.ndarray]
    patched: Measured
    base: Measured
    source: Measured | None

    @property
    def effect(self) -> Measured:
        """Patched minus base, ``[*axes, b]`` float."""
        return {name: _float(x) - _float(self.base[name]) for name, x in self.patched.items()}

    @property
    def recovery(self) -> Measured:
        """(patched - base) / (source - base), ``[*axes, b]``: 0 nothing happened, 1 as the source.

        NaN in rows where base and source agree; noisy where they nearly do, so for means and tests of
        several rows take `effect`, or divide means.
        """
        if self.source is None:
            raise ArgumentError(
                "an ablation moves towards no run: there is an effect, but nothing to recover"
            )
        found = {}
        for name, effect in self.effect.items():
            gap = _float(self.source[name]) - _float(self.base[name])
            found[name] = np.where(gap == 0, np.nan, effect / np.where(gap == 0, 1, gap))
        return found


def patch(
    lm: LanguageModel,
    base: str | Sequence[str] | Any,
    source: str | Sequence[str] | Any | None,
    site: str,
    metrics: Metrics,
    *,
    over: Sequence[str] | None = None,
    using: Kind = "source",
    layers: Any = None,
    positions: Any = None,
    heads: Any = None,
    units: Any = None,
    window: int = 1,
    centred: bool = False,
    seeds: Sequence[int] = (0,),
    hooks: Hooks | None = None,
    mask: Any = None,
    source_mask: Any = None,
    logits_at: Any = -1,
    **options: Any,
) -> PatchResult:
    """Run ``base`` once for each layer, position, ... with activations of ``source`` put there.

    The function knows only a base and a source. Noising (is it necessary?): base clean, source
    corrupted. Denoising (does it suffice?): base corrupted, source clean.

    Args:
      base, source: a text, several texts (padded on the left), or int32 tokens ``[b, s]``; the source
        may have a single row. None for ablations within the base's own rows, and for "zero".
      site: any point: ``hook_resid_pre``, ``attn.hook_z``, ``blocks.5.mlp.hook_post``, ``hook_embed``.
      metrics: name -> metric, all measured in one pass (`jmi.metrics.LogitDiff`, ``Prob``, ``KL``, ...).
      over: axes to sweep, of "layer", "position", "head" and "unit"; by default layer and position, as
        far as the site has them.
      using: what is put there (`replacements.Kind`): the source's activations, an ablation
        (zero, mean, overall mean, resample), or a placebo of the source's (random, shuffled).
      layers, positions, heads, units: which; an axis in ``over`` visits them one by one, another one
        takes them together; None for all. Positions may also be int ``[b, n]``, a list for each
        row, or a `jmi.align.Alignment`, which prompts of different lengths need. In padded batches they are
        those of real tokens: position p of the base gets that of the source, wherever the padding is.
      window: patch so many layers at once, ``[i, i + window)`` for the layer i of the result, or as many
        around it if ``centred``: ``[i - window // 2, i + (window + 1) // 2)`` (Meng et al.). Layers beyond
        the first and last are left out.
      seeds: of resample, random and shuffled; the result then has a first axis "seed".
      hooks: of the base run, and so of every patched run. The source has none.
      mask, source_mask: bool ``[b, s]``, with tokens; of the base and the source.
      logits_at: the position that metrics read, one or ``[b]``; counted from the end in a source of
        another length.
      options: ``memory``, ``mesh``, ``output`` and ``progress`` of `jmi.sweep`.

    Raises:
      ArgumentError: prompts, axes or metrics that do not fit.
      HookError, InterventionError: an unknown site, or an index out of range.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.patching.patch import patch
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> paris, rome = lm.token_id("Paris"), lm.token_id("Rome")
      >>> clean, corrupted = "The capital of France is", "The capital of Italy is"
      >>> found = patch(lm, corrupted, clean, "hook_resid_pre", {"diff": LogitDiff(paris, rome)})
      >>> found.recovery["diff"].shape == (lm.arch.n_layers, lm.encode(clean).shape[1], 1)
      True
    """
    point, only = _point(lm, text("site", site))
    checked_metrics(metrics)
    if only is not None and layers is not None:
        raise ArgumentError(f"{site} names its layer; drop layers=, or name {point.point}")
    prompts = prompts_of(lm, base, mask)
    others = prompts if source is None else prompts_of(lm, source, source_mask)
    choice("using", using, get_args(Kind))
    if using not in ABLATIONS if source is None else using == "zero":
        raise ArgumentError(f"using={using!r}: {'give a source' if source is None else 'drop the source'}")
    shape, rows = tuple(prompts.tokens.shape), others.tokens.shape[0]
    if using not in ABLATIONS and rows not in (1, shape[0]):
        raise ArgumentError(f"source has {rows} rows and base {shape[0]}: give one for each, or a single one")
    at = positions.base if isinstance(positions, Alignment) else positions
    chosen = {"layer": only if layers is None else layers, "position": at, "head": heads, "unit": units}
    places = places_of(point, prompts, over, chosen, window, centred)

    run = functools.partial(lm.run, capture=[point.point])
    before = run(prompts.tokens, hooks, mask=prompts.mask, logits_at=logits_at)
    after = before
    if source is not None:
        # Nobody reads the logits of prompts that only an ablation is made of.
        end = -1 if using in ABLATIONS else _likewise(logits_at, prompts, others)
        after = run(others.tokens, mask=others.mask, logits_at=end)
    towards = None
    if using not in ABLATIONS:
        logits = jnp.broadcast_to(after.logits, before.logits.shape)
        towards = measured(metrics, dataclasses.replace(after, logits=logits))

    def patched(seed: int) -> Measured:
        values = replacement(using, after[point.point], point, shape[0], source is None, others.mask, seed)
        of = others if using in OF_ROW else None
        hook = Patch(placed(values, point, positions, prompts, of), **places.selectors)
        run = {"base": hooks, **_own_folder(options, seed)}
        return places.seen(swept(lm, prompts, places.hooks(hook), metrics, logits_at, **run))

    seeds = checked_seeds(seeds) if using in RANDOM else [0]
    axes, found = dict(places.axes), [patched(seed) for seed in seeds]
    if using in RANDOM:
        axes = {"seed": np.asarray(seeds), **axes}
    return PatchResult(
        axes,
        {name: np.stack([x[name] for x in found]) if using in RANDOM else found[0][name] for name in metrics},
        measured(metrics, before),
        towards,
    )


def _point(lm: LanguageModel, site: str) -> tuple[Site, tuple[int, ...] | None]:
    """The site, and its layers if the name says which."""
    found = find(lm.arch, full_name(lm.arch, site))
    if len(found) != 1:
        raise ArgumentError(f"{site}: patch one point at a time; this names {len(found)}")
    point, layers = found[0]
    if part_of(lm.arch, point.point) == "unembed":
        raise ArgumentError(f"{site}: lies behind the layers; patch hook_resid_post of the last layer")
    return point, None if layers is None or len(layers) == lm.arch.n_layers else layers


def _likewise(logits_at: Any, base: Prompts, source: Prompts) -> Any:
    """Where metrics read the source: as the base, counted from the end where their lengths differ."""
    own, theirs = counts(base), counts(source)
    if (own == theirs).all():
        return logits_at
    at = np.asarray(logits_at)
    at = np.where(at < 0, at, at - own)
    return at[0] if (at == at[0]).all() else at


def _own_folder(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Options of the sweep of one seed: each keeps its chunks by itself."""
    if options.get("output") is None:
        return options
    return {**options, "output": Path(options["output"]) / f"seed {seed}"}


def _float(x: np.ndarray) -> np.ndarray:
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(float)
