"""Activation patching: copy activations of one run into another, one place after the other.

Meng et al. 2022 (arXiv:2202.05262), Wang et al. 2022 (arXiv:2211.00593); practice and names after
Heimersheim & Nanda 2024 (arXiv:2404.15255).

Axis letters: b batch, s sequence, l layers, n values of a swept axis.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from jmi.align import Alignment
from jmi.captures.output import Output
from jmi.checks import choice, text
from jmi.errors import ArgumentError
from jmi.hooks.interventions import Patch
from jmi.hooks.resolve import Hooks
from jmi.interp.into import Into, turned
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
from jmi.interp.patching.patch_result import PatchResult
from jmi.interp.patching.places import Places, checked_at, counts, lined_up, placed, places_of
from jmi.interp.patching.replacements import ABLATIONS, OF_ROW, RANDOM, Kind, drawn, replacement
from jmi.lm import LanguageModel, check_lm
from jmi.model.inputs import Prompts
from jmi.model.sites import Site, find, full_name, part_of


def patch(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    site: str,
    *,
    metric: Metrics,
    into: Into | None = None,
    over: Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    using: Kind = "source",
    window: int | tuple[int, int] = 1,
    seeds: Sequence[int] = (0,),
    hooks: Hooks | None = None,
    **options: Any,
) -> PatchResult:
    """Run one prompt once for each layer, position, ... with activations of the other put there.

    Args:
      clean, corrupted: prompts, as `LanguageModel.prompts` takes them; what is patched in may have a single
        row. With ``corrupted=None`` the clean run is ablated by means of its own rows, or by zeros.
      site: any point: ``hook_resid_pre``, ``attn.hook_z``, ``blocks.5.mlp.hook_post``, ``hook_embed``.
      metric: one (`jmi.metrics.LogitDiff`, ``Prob``, ``KL``, ...) or a dict of several, measured in one pass.
      into: the run that is changed, by default the corrupted one, into which activations of the clean one
        go. Where there is one prompt it is "clean".
      over: axes to sweep, of "layer", "position", "head" and "unit"; by default layer and position, as
        far as the site has them.
      at: axis -> which of its values: an axis in ``over`` visits them one by one, another one takes them
        together; all where nothing is said. Positions may be int ``[b, n]``, a list for each row, or a
        `jmi.align.Alignment`, which prompts of different lengths need. In padded batches they are those
        of real tokens: position p gets that of the other prompt, wherever the padding is.
      using: what is put there (`replacements.Kind`): the other run's activations, an ablation (zero, mean,
        overall mean, resample), or a placebo of the other run's (random, shuffled).
      window: patch so many layers at once, ``[i, i + window)`` for the layer i of the result; or a pair
        (before, after), so many around it. Layers beyond the first and last are left out.
      seeds: of resample, random and shuffled; the result then has a first axis "seed".
      hooks: of the run that is changed, and so of every patched run. The other has none.
      options: ``logits_at``, the position that metrics read, one or ``[b]``, by default the last token
        (counted from the end in prompts of different lengths); ``memory``, ``mesh``, ``output``,
        ``progress`` and ``exact`` of `jmi.sweep`.

    Raises:
      ArgumentError: prompts, axes or metrics that do not fit.
      HookError, InterventionError: an unknown site, or an index out of range.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.patching.patch import patch
      >>> from jmi.metrics import LogitDiff
      >>> lm = jmi_models.load("atlas")
      >>> diff = LogitDiff(lm.token_id("Paris"), lm.token_id("Rome"))
      >>> texts = "The capital of France is", "The capital of Italy is"
      >>> found = patch(lm, *texts, "hook_resid_pre", metric=diff)
      >>> found.recovery.shape == (lm.arch.n_layers, lm.encode(texts[0]).shape[1], 1)
      True
    """
    check_lm(lm)
    point, chosen = point_of(lm, text("site", site), checked_at(at))
    metric, options = checked_metric(metric), checked_options(options)
    into, base, source = _sides(lm, clean, corrupted, into, choice("using", using, get_args(Kind)))
    pairs = None
    if isinstance(chosen.get("position"), Alignment):
        pairs = turned(chosen["position"], into)
        chosen["position"] = pairs[0]
    tried = checked_seeds(seeds) if using in RANDOM else None
    places = places_of(lm.arch, point, base, over, chosen, window=window, seeds=tried)

    logits_at = options.pop("logits_at", -1)
    cells, exact = len(places.grid), options["exact"] or not _pads(using, point)
    base = with_room(lm, base, hooks, cells=cells, logits_at=logits_at, exact=exact)
    if source is not None:
        source = with_room(lm, source, None, cells=cells, logits_at=-1, exact=exact)
    before = lm.run(base, hooks, [point.point], logits_at=logits_at)
    unchanged = measured(metric, before)
    after, towards, others = before, None, base
    if source is not None:
        # Nobody reads the logits of prompts that only an ablation is made of.
        end = -1 if using in ABLATIONS else _likewise(logits_at, base, source)
        after, others = lm.run(source, capture=[point.point], logits_at=end), source
    if using not in ABLATIONS:
        logits = jnp.broadcast_to(after.logits, before.logits.shape)
        towards = measured(metric, dataclasses.replace(after, logits=logits))
    hook = _replacing(using, after, places, (base, others), pairs, own=source is None)
    return PatchResult(
        places.axes,
        places.seen(swept(lm, base, places.hooks(hook), metric, logits_at, base=hooks, **options)),
        unchanged,
        towards,
        into,
    )


def point_of(lm: LanguageModel, site: str, at: Mapping[str, Any]) -> tuple[Site, dict[str, Any]]:
    """The one point that ``site`` names, and ``at`` with its layers where the name says which.

    Raises:
      ArgumentError: several points, one after the layers, or layers that are said twice.
      HookError: no such point.
    """
    found = find(lm.arch, full_name(lm.arch, site))
    if len(found) != 1:
        raise ArgumentError(f"{site}: patch one point at a time; this names {len(found)}")
    point, layers = found[0]
    if part_of(lm.arch, point.point) == "unembed":
        raise ArgumentError(f"{site}: comes after the layers; patch hook_resid_post of the last layer")
    if layers == point.layers:
        return point, dict(at)
    if at.get("layer") is not None:
        raise ArgumentError(f"{site} names its layer; drop it from at=, or name {point.point}")
    return point, {**at, "layer": layers}


def _sides(
    lm: LanguageModel, clean: Any, corrupted: Any, into: Any, using: str
) -> tuple[Into, Prompts, Prompts | None]:
    """Which run is changed, its prompts, and those whose activations are put there (None: its own)."""
    own = prompts_of(lm, clean)
    if corrupted is None:
        if using not in ABLATIONS:
            raise ArgumentError(
                f"using={using!r} puts activations of one prompt into another: give corrupted"
            )
        if into is not None and choice("into", into, ("clean", "corrupted")) == "corrupted":
            raise ArgumentError("into='corrupted' needs a corrupted prompt; with corrupted=None leave it out")
        return "clean", own, None
    if using == "zero":
        raise ArgumentError("using='zero' needs no other prompt: give corrupted=None")
    which: Into = choice("into", "corrupted" if into is None else into, ("clean", "corrupted"))
    base, source = turned((own, prompts_of(lm, corrupted)), which)
    if using not in ABLATIONS and source.shape[0] not in (1, base.shape[0]):
        raise ArgumentError(
            f"the changed prompts have {base.shape[0]} rows and the others {source.shape[0]}: give one for "
            "each, or a single one"
        )
    return which, base, source


def _pads(using: Kind, site: Site) -> bool:
    """Whether padding is nothing to what is put there."""
    return using in ("source", "zero") or (using not in RANDOM and site.axis("pos") is not None)


def _replacing(
    using: Kind, out: Output, places: Places, prompts: tuple[Prompts, Prompts], pairs: Any, own: bool
) -> Any:
    """The intervention of every cell, made of what the run ``out`` of the second of ``prompts`` has."""
    site, (base, others) = places.site, prompts
    lead, values = int(site.layers is not None), out[site.point]
    if using not in RANDOM:
        values = replacement(using, values, site, others.mask)
    size = values.shape[lead + next(iter(site.token_axes()), 0)]
    at = lined_up(site, base, others if using in OF_ROW else None, size, pairs)
    if using not in RANDOM:
        return Patch(placed(values, site, at, lead), **places.selectors)
    hook = drawn(using, values, site, places.grid["seed"], at, own=own, mask=others.mask)
    return dataclasses.replace(hook, **places.selectors)


def _likewise(logits_at: Any, base: Prompts, source: Prompts) -> Any:
    """Where metrics read the source: as the base, counted from the end where their lengths differ."""
    own, theirs = counts(base), counts(source)
    if (own == theirs).all():
        return logits_at
    at = np.asarray(logits_at)
    at = np.where(at < 0, at, at - own)
    return at[0] if (at == at[0]).all() else at
