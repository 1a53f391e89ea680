"""Metrics of runs and of the cells of a sweep: one number for each row, ``[b]``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.captures.output import Output
from jmi.checks import as_arrays, as_function, flag, several, shown, whole_number
from jmi.engine.lengths import roomy
from jmi.engine.takes_padding import held_in
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, as_data
from jmi.lm import LanguageModel
from jmi.model.inputs import Prompts, checked
from jmi.model.padding import check_token
from jmi.sweeps.sweep import sweep

Measure = Callable[[Output], Any]
"""A metric, or several as one: a pytree whose leaves are ``[b]``."""

Metrics = Measure | Mapping[str, Measure]
"""One metric, or several by name."""

_OPTIONS = ("logits_at", "share", "memory", "mesh", "output", "progress", "exact")

Measured = Any
"""What a metric returned, in numpy; of several metrics a dict."""


def prompts_of(lm: LanguageModel, given: Any) -> Prompts:
    """Prompts as a user gives them, checked; without a mask where there is no padding."""
    prompts = checked(lm.arch, lm.prompts(given))
    padded = prompts.mask is not None and not np.asarray(prompts.mask).all()
    return Prompts(prompts.tokens, prompts.mask if padded else None, prompts.positions)


def checked_metric(metric: Any) -> Measure:
    """``metric``, or a dict of them as one, whose arrays are data: other tokens run the same program."""
    if not isinstance(metric, Mapping):
        found: Measure = as_data(as_function("metric", metric))
        return found
    if not metric:
        raise ArgumentError(
            f"metric={shown(metric)}: give a metric, or a dict such as {{'prob': jmi.metrics.Prob(token)}}"
        )
    return _Several({name: as_data(as_function(f"metric {name!r}", one)) for name, one in metric.items()})


@tree.dataclass
class _Several:
    """Every metric of a run, by name."""

    metrics: dict[str, Any]

    def __call__(self, out: Output) -> dict[str, jax.Array]:
        return {name: _numbers(f"metric {name!r}", metric(out)) for name, metric in self.metrics.items()}


def _numbers(what: str, result: Any) -> Any:
    """What a metric returned, found to hold arrays."""
    if not jax.tree.leaves(as_arrays(what, result)):
        raise ArgumentError(f"{what} returned {shown(result)}; return one number per row, [batch]")
    return result


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of `jmi.sweep`, ``exact`` among them; ArgumentError for one that it does not have."""
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ArgumentError(
            f"{', '.join(unknown)}: no such argument; options are {', '.join(_OPTIONS)}; choose places "
            "with at={'position': -1}"
        )
    return {**options, "exact": flag("exact", options.get("exact", False))}


def checked_seeds(seeds: Any) -> np.ndarray:
    """``seeds``, found to be one or more whole numbers, ``[n]``."""
    given = [whole_number("seeds", seed, 0, 2**32 - 1) for seed in several("seeds", seeds, "whole numbers")]
    if not given:
        raise ArgumentError("seeds=[] is empty: give one or more")
    return np.asarray(given)


def measured(metric: Measure, out: Output) -> Measured:
    """The metric of one run with logits ``[b, vocab]``, checked.

    Raises:
      ArgumentError: a metric without one number per row, or one that is NaN: it names no such token.
    """
    values = jax.tree.map(np.asarray, _numbers("the metric", metric(out)))
    for path, value in jax.tree_util.tree_leaves_with_path(values):
        name = f"the metric{jax.tree_util.keystr(path)}"
        if value.shape != out.logits.shape[:1]:
            raise ArgumentError(f"{name} gave shape {value.shape}; give one number per row, [batch]")
        if np.isnan(value).any():
            raise ArgumentError(f"{name} is NaN: its token ids must be 0 to {out.logits.shape[1] - 1}")
    return values


def with_room(
    lm: LanguageModel, prompts: Prompts, hooks: Hooks | None, *, cells: int, logits_at: Any, exact: bool
) -> Prompts:
    """Prompts at the length at which they run (`jmi.engine.lengths`); ``hooks`` are those of every run."""
    check_token("logits_at", logits_at, prompts.shape, prompts.mask)
    if exact:
        return prompts
    return roomy(lm.arch, lm.params, prompts, held_in(lm.arch, hooks), copies=cells)


def swept(
    lm: LanguageModel, prompts: Prompts, hooks: Hooks, metric: Measure, logits_at: Any, **options: Any
) -> Measured:
    """The metric of every cell of `jmi.sweep`, ``[*grid.shape, b]``; ``options`` are its."""
    return sweep(lm, prompts, hooks, metric, logits_at=logits_at, **options)
