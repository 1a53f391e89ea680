"""What results of techniques share: all that they hold as plain data, ready for JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi.artefacts import plain


class Result:
    """Base of what techniques return: `to_dict`, and the same as text, `to_json`.

    An array is ``{"axes": names, "values": nested lists}``, and ``labels`` has the entries of an axis by its
    name, where they have names or numbers of their own; axes without labels are counted from 0. NaN and
    infinity, which JSON lacks, are None. What a result computes of what it holds (an effect) is in it, too.

    Example:
      >>> import jmi_models
      >>> from jmi.interp.decompose.heads import head_scores
      >>> lm = jmi_models.load("atlas")
      >>> found = head_scores(lm, "The capital of France is the capital of France").to_dict()
      >>> found["kind"], found["induction"]["axes"]
      ('HeadScores', ['layer', 'head'])
    """

    def to_dict(self) -> dict[str, Any]:
        """All it holds as dicts, lists, strings, numbers and None."""
        return {"kind": type(self).__name__, **plain(self._held())}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def _held(self) -> dict[str, Any]:
        """What `to_dict` gives, its arrays in numpy or JAX."""
        raise NotImplementedError


def array(axes: Sequence[str], values: Any) -> dict[str, Any]:
    """An array with the names of its axes."""
    return {"axes": list(axes), "values": values}


def of_metrics(axes: Sequence[str], measured: Any) -> Any:
    """Arrays ``[*axes]`` that metrics gave, by name if there are several; of no dict, by their paths."""
    if isinstance(measured, Mapping):
        return {name: of_metrics(axes, x) for name, x in measured.items()}
    if not jax.tree_util.all_leaves([measured]):
        paths = jax.tree_util.tree_leaves_with_path(measured)
        return {jax.tree_util.keystr(path): of_metrics(axes, x) for path, x in paths}
    return array(axes, measured)


def short(what: Any, **arrays: Any) -> str:
    """A repr: the class, and the shapes of arrays by name."""
    shapes = ", ".join(f"{name} {list(np.shape(x))}" for name, x in arrays.items())
    return f"{type(what).__name__}({shapes})"
