"""Scores of nodes: what attribution returns."""

import json
from typing import Any

import numpy as np

from jmi import tree
from jmi.captures.output import Output
from jmi.interp.into import Into


@tree.dataclass
class NodeScores(Output):
    """Scores, addressed as captures are, with the axes that tell nodes apart; a pytree.

    ``scores["blocks.3.attn.hook_z"]`` is ``[b, s, heads]``, ``scores.stack("attn.hook_z")`` has the layers in
    front. There are no logits.

    Attributes:
      into: the run that is changed, "clean" or "corrupted". Static.
    """

    into: Into = tree.static(kw_only=True)

    def __repr__(self) -> str:
        shapes = [f"{label} {list(np.shape(x))}" for label, x in self.captures.items()]
        more = [f"and {len(shapes) - 6} more"] * (len(shapes) > 6)
        return f"NodeScores(into={self.into!r}: {', '.join(shapes[:6] + more)})"

    def to_dict(self) -> dict[str, Any]:
        """``into``, and the scores as lists by name, each layer by itself."""
        return {
            "into": self.into,
            "scores": {name: np.asarray(self[name]).tolist() for name in self.names()},
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict())
