"""Metrics of runs and of the cells of a sweep, ``[b]`` each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi import pytrees
from jmi.errors import ConfigError
from jmi.hooks import Hooks, as_data
from jmi.lm import LanguageModel
from jmi.metrics import Metric
from jmi.output import Output
from jmi.sweeps import sweep

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
    if getattr(tokens, "ndim", 0) != 2:
        raise ConfigError("prompts are a text, several texts, or tokens [batch, pos]")
    return Prompts(tokens, None if mask is None or np.asarray(mask).all() else mask)


def measured(metrics: Metrics, out: Output) -> Measured:
    """Every metric of one run with logits ``[b, vocab]``, checked.

    Raises:
      ConfigError: a metric without one number per row, or one that is NaN: it names no such token.
    """
    if not metrics:
        raise ConfigError("metrics= is empty: name at least one, such as {'prob': jmi.metrics.Prob(token)}")
    values = {name: np.asarray(value) for name, value in _Readout(metrics)(out).items()}
    for name, value in values.items():
        if value.shape != out.logits.shape[:1]:
            raise ConfigError(f"metric {name!r} gave shape {value.shape}; give one number per row, [batch]")
        if np.isnan(value).any():
            raise ConfigError(f"metric {name!r} is NaN: its token ids must be 0 to {out.logits.shape[1] - 1}")
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


@pytrees.dataclass
class _Readout:
    """Every metric of a run. Their arrays are data: other tokens run the same program."""

    metrics: Any

    def __call__(self, out: Output) -> dict[str, jax.Array]:
        return {name: metric(out) for name, metric in self.metrics.items()}
