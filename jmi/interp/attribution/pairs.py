"""The arguments of an attribution, checked, as a `Pair`; and its scores, found to be numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp

from jmi import tree
from jmi.captures.capture import Capture, as_list, plan
from jmi.checks import as_function, choice, flag, several, shown
from jmi.engine.lengths import beginning, has_places, length_for, padded
from jmi.engine.probe import plan_points
from jmi.engine.run import check_logits_at
from jmi.engine.takes_padding import Held, held_in
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, as_data, prepare
from jmi.interp.attribution.nodes import Pair
from jmi.interp.attribution.scores import NodeScores
from jmi.interp.finite import check_scores
from jmi.interp.into import Into
from jmi.interp.repadded import repadded
from jmi.lm import LanguageModel, check_lm
from jmi.metrics import Metric, check_metric
from jmi.model.architecture import Architecture
from jmi.model.inputs import Prompts, checked
from jmi.model.sites import layer_name, table_of

NODES = ("batch", "pos", "head")
"""Axes that tell nodes apart unless ``keep`` says otherwise."""

_MEANS = {"pos": ("pos", "query"), "head": ("head", "kv_head")}


def pair_of(
    lm: LanguageModel,
    clean: Any,
    corrupted: Any,
    sites: str | Sequence[str],
    *,
    metric: Metric | Mapping[str, Metric],
    into: Into,
    passes: int,
    keep: Sequence[str] = NODES,
    hooks: Hooks | None = None,
    capture: Sequence[str | Capture] = (),
    logits_at: Any = None,
    exact: bool = False,
) -> tuple[Pair, Prompts]:
    """The arguments of an attribution, checked, and the prompts of the base, of which the pair may have more.

    Args:
      passes: through the model, about: whether padding is worth less than a compilation.
    """
    arch = check_lm(lm).arch
    both = {
        name: checked(arch, lm.prompts(given))
        for name, given in zip(get_args(Into), (clean, corrupted), strict=True)
    }
    base = both.pop(choice("into", into, get_args(Into)))
    (source,) = both.values()
    source = repadded(source, base)
    measure = _metrics(arch, metric)
    layout, prepared = plan_points(arch, sites, base.shape), prepare(arch, hooks, base.shape, base.mask)
    names = [
        group.point if layers is None else layer_name(group.point, layer)
        for group, layers in zip(layout.groups, layout.layers, strict=True)
        for layer in ((0,) if layers is None else layers)
    ]
    seen = [Capture(c) if isinstance(c, str) else c for c in as_list(capture)]
    read = plan(arch, seen, base.shape, base.mask)
    if logits_at is not None:
        points = [group.point for group in (*layout.groups, *read.groups)]
        check_logits_at(arch, logits_at, base, [*points, *prepared])
        logits_at = jnp.asarray(logits_at, jnp.int32)
    reducers = [as_data(c.reduce) for c in seen]
    held = held_in(arch, hooks, seen)
    if logits_at is None or has_places(arch, read, base, lm.dtype):
        held += [Held(one) for one in (measure.values() if isinstance(measure, dict) else [measure])]
    length = None if flag("exact", exact) else length_for(arch, lm.params, base, held, copies=passes)
    whole = [each if length is None else padded(each, length) for each in (base, source)]
    changed, other = jax.tree.map(jnp.asarray, whole)
    pair = Pair(
        # Its name and tokenizer decide nothing here, and another of them would compile anew.
        LanguageModel(arch, lm.params),
        changed,
        other,
        measure,
        prepared,
        reducers,
        logits_at,
        into=into,
        names=tuple(names),
        kept=_kept(arch, keep),
        seen=tuple((c.name, c.when, c.label) for c in seen),
        classes=tree.classes((prepared, reducers, measure)),
    )
    return pair, base


def checked_scores(pair: Pair, prompts: Prompts, scores: Any) -> Any:
    """``scores`` of ``prompts``; ArgumentError where one is NaN, see `jmi.interp.finite`."""
    run = lambda prompts: lambda: pair.measured(prompts, pair.hooks)  # noqa: E731
    (other,) = (name for name in get_args(Into) if name != pair.into)
    runs = {pair.into: run(pair.base), other: run(pair.source)}
    if pair.base.shape != prompts.shape:
        each = scores if isinstance(scores, dict) else {"": scores}
        each = {name: _cut(pair, prompts, one) for name, one in each.items()}
        scores = each if isinstance(scores, dict) else each[""]
    check_scores(jax.tree.leaves(scores), runs, pair.metric)
    return scores


def _cut(pair: Pair, prompts: Prompts, scores: NodeScores) -> NodeScores:
    """``scores`` of ``prompts``, which the pair has padded at their end."""
    captures = {}
    for group in pair.layout.groups:
        site = table_of(pair.lm.arch)[group.point]
        sizes = zip(site.axes, site.shape(*prompts.shape), strict=True)
        lead = () if group.count is None else (group.count,)
        shape = (*lead, *(size for axis, size in sizes if axis in pair.kept))
        captures[group.label] = beginning(scores.captures[group.label], shape)
    return dataclasses.replace(scores, captures=captures, mask=prompts.mask)


def _metrics(arch: Architecture, metric: Any) -> Any:
    """``metric`` as data: one, or a dict of one or more by name."""
    given = metric if isinstance(metric, Mapping) else {"": metric}
    if not given:
        raise ArgumentError(f"metric={shown(metric)}: give a metric, or a dict with one or more")
    for name, one in given.items():
        as_function(f"metric {name!r}" if isinstance(metric, Mapping) else "metric", one)
    check_metric(arch, dict(given))
    data = {name: as_data(one) for name, one in given.items()}
    return data if isinstance(metric, Mapping) else data[""]


def _kept(arch: Architecture, keep: Any) -> frozenset[str]:
    own = {axis for site in table_of(arch).values() for axis in site.axes}
    known = sorted({*own, *NODES})
    given = [choice("keep", axis, known) for axis in several("keep", keep, "axes")]
    return frozenset(axis for name in given for axis in _MEANS.get(name, (name,)))
