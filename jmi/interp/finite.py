"""Scores that are no numbers: one error that says in which run that began."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jmi.captures.output import Output
from jmi.errors import ArgumentError
from jmi.metrics import Metric
from jmi.model.inputs import is_known


def check_scores(
    scores: Any, runs: Mapping[str, Callable[[], Output]], metric: Metric | Mapping[str, Metric]
) -> None:
    """Raise ArgumentError where ``scores`` have NaN; traced ones, and those spread over processes, keep it.

    Args:
      scores: a pytree of arrays.
      runs: name -> how to run it again, in the order in which to look. They run only if something is wrong.
      metric: of the first run; one, or a dict of them.
    """
    if not is_known(scores) or not any(map(has_nan, jax.tree.leaves(scores))):
        return
    outs = {name: run() for name, run in runs.items()}
    for name, out in outs.items():
        if has_nan(out.logits):
            raise ArgumentError(
                f"the {name} run gives logits that are NaN, and so are all scores; capture jmi.IsFinite() of "
                "blocks.*.hook_resid_post to see in which layer it begins"
            )
    name, out = next(iter(outs.items()))
    for which, one in metric.items() if isinstance(metric, Mapping) else [("", metric)]:
        if has_nan(one(out)):
            the = f"the metric {which!r}" if which else "the metric"
            raise ArgumentError(f"{the} of the {name} run is NaN, though its logits are not")
    raise ArgumentError(
        f"scores are NaN, though no run is, nor the metric of the {name} run: its gradient has no value, "
        "as that of a root or a logarithm at zero, or activations pass the range of their dtype"
    )


def has_nan(values: Any) -> bool:
    """Whether an entry of an array is NaN."""
    return bool(np.isnan(np.asarray(values).astype(np.float64)).any())
