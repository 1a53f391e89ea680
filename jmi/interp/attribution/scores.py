"""Scores of nodes: what attribution returns."""

from typing import Any

import numpy as np

from jmi import tree
from jmi.captures.output import Output
from jmi.interp.into import Into
from jmi.interp.results import Result, array
from jmi.model.sites import split


@tree.dataclass
class NodeScores(Output, Result):
    """Scores, addressed as captures are, with the axes that tell nodes apart; a pytree.

    ``scores["blocks.3.attn.hook_z"]`` is ``[b, s, heads]``, ``scores.stack("attn.hook_z")`` has the layers in
    front. There are no logits.

    Attributes:
      into: the run that is changed, "clean" or "corrupted". Static.
      axes: by label, names of the axes of one layer's scores. Static.
    """

    into: Into = tree.static(kw_only=True)
    axes: tuple[tuple[str, tuple[str, ...]], ...] = tree.static(kw_only=True)

    def __repr__(self) -> str:
        shapes = [f"{label} {list(np.shape(x))}" for label, x in self.captures.items()]
        more = [f"and {len(shapes) - 6} more"] * (len(shapes) > 6)
        return f"NodeScores(into={self.into!r}: {', '.join(shapes[:6] + more)})"

    def _held(self) -> dict[str, Any]:
        axes = dict(self.axes)
        label_of = lambda name: name if name in axes else split(name)[0]  # noqa: E731
        scores = {name: array(axes[label_of(name)], self[name]) for name in self.names()}
        return {"into": self.into, "scores": scores}
