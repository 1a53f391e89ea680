"""Metrics of runs and of the cells of a sweep, ``[b]`` each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.captures.output import Output
from jmi.checks import as_function, as_result, several, shown, whole_number
from jmi.errors import ArgumentError
from jmi.hooks.resolve import Hooks, as_data
from jmi.lm import LanguageModel
from jmi.metrics import Metric
from jmi.model.inputs import check_arrays
from jmi.sweeps.sweep import sweep

Metrics = Mapping[str, Metric]
Measured = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of an experiment.

    Attributes:
      tokens: int32 ``[b, s]``.
      mask: bool ``[b, s]``, or None without padding.
    """

    tokens: Any
    mask: Any = None


def prompts_of(lm: LanguageModel, given: str | Sequence[str] | Any, mask: Any = None) -> Prompts:
    """Tokens of a text, of several (padded on the left), or ``[b, s]`` as given."""
    tokens, mask = lm.tokens_of(given, mask)
    mask, _ = check_arrays(tokens, mask, None)
    return Prompts(tokens, None if mask is None or np.asarray(mask).all() else mask)


def checked_metrics(metrics: Any) -> Metrics:
    """``metrics``, found to be a dict of one or more metrics by name."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise ArgumentError(
            f"metrics={shown(metrics)}: give a dict of metrics, such as {{'prob': jmi.metrics.Prob(token)}}"
        )
    for name, metric in metrics.items():
        as_function(f"metric {name!r}", metric)
    return metrics


def checked_seeds(seeds: Any) -> list[int]:
    """``seeds``, found to be one or more whole numbers."""
    given = [whole_number("seeds", seed, 0) for seed in several("seeds", seeds, "whole numbers")]
    if not given:
        raise ArgumentError("seeds=[] is empty: give one or more")
    return given


def measured(metrics: Metrics, out: Output) -> Measured:
    """Every metric of one run with logits ``[b, vocab]``, checked.

    Raises:
      ArgumentError: a metric without one number per row, or one that is NaN: it names no such token.
    """
    values = {name: np.asarray(value) for name, value in _Readout(metrics)(out).items()}
    for name, value in values.items():
        if value.shape != out.logits.shape[:1]:
            raise ArgumentError(f"metric {name!r} gave shape {value.shape}; give one number per row, [batch]")
        if np.isnan(value).any():
            raise ArgumentError(
                f"metric {name!r} is NaN: its token ids must be 0 to {out.logits.shape[1] - 1}"
            )
    return values


def swept(
    lm: LanguageModel, prompts: Prompts, hooks: Hooks, metrics: Metrics, logits_at: Any, **options: Any
) -> Measured:
    """Every metric of every cell of `jmi.sweep`, ``[*grid.shape, b]`` each; ``options`` are its."""
    return sweep(
        lm.arch,
        lm.params,
        prompts.tokens,
        hooks,
        _Readout({name: as_data(metric) for name, metric in metrics.items()}),
        mask=prompts.mask,
        logits_at=logits_at,
        **options,
    )


@tree.dataclass
class _Readout:
    """Every metric of a run. Their arrays are data: other tokens run the same program."""

    metrics: Any

    def __call__(self, out: Output) -> dict[str, jax.Array]:
        return {name: as_result(f"metric {name!r}", metric(out)) for name, metric in self.metrics.items()}
