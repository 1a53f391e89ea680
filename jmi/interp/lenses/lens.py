"""What every lens returns.

Axis letters: n streams, b batch, p positions, k top tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jmi.checks import choice, whole_number
from jmi.interp.results import Result, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measure = Literal["prob", "entropy", "kl", "rank"]


@dataclasses.dataclass(frozen=True)
class Lens(Result):
    """What each stream of a run says, in numpy; the last of them is what the model itself says.

    Divergences and entropies are in nats. The axis of positions is always there. At places of a padded batch
    that hold no token floats are NaN, ids, ranks and `first` are -1.

    Attributes:
      kind: which lens.
      note: how it misleads, in a line.
      labels: of the streams, TransformerLens's: ``0_pre``, ``0_mid``, ..., ``final_post``.
      ids, values: ``[n, b, p, k]``, the top tokens and their logits, largest first.
      rank: ``[n, b, p]``, how many tokens have a larger logit than the target; 0 is the top.
      prob: ``[n, b, p]``, probability of the target.
      entropy: ``[n, b, p]``.
      kl: ``[n, b, p]``, KL(what the model says || what the stream says).
      first: ``[b, p]``, index of the first stream with the target on top; -1 where there is none. Later
        streams may have lost it again.
      target: ``[b, p]``, token ids.
      tokens: ``[b, p]``, ids of the prompt's tokens at these positions.
      words: id -> text, of all ids here.
    """

    kind: str
    note: str
    labels: tuple[str, ...]
    ids: np.ndarray
    values: np.ndarray
    rank: np.ndarray
    prob: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    first: np.ndarray
    target: np.ndarray
    tokens: np.ndarray
    words: Mapping[int, str]

    def strings(self) -> np.ndarray:
        """The top tokens as texts, ``[n, b, p, k]``; empty where there is no token."""
        return _texts(self.ids, self.words)

    def __repr__(self) -> str:
        streams, rows, positions, top = self.ids.shape
        return f"Lens({self.kind}: {streams} streams, rows {rows}, positions {positions}, top {top})"

    def _held(self) -> dict[str, Any]:
        streams = ["stream", "batch", "position"]
        return {
            "lens": self.kind,
            "note": self.note,
            "labels": {"stream": self.labels},
            **{name: array([*streams, "top"], getattr(self, name)) for name in ("ids", "values")},
            **{name: array(streams, getattr(self, name)) for name in ("rank", "prob", "entropy", "kl")},
            **{name: array(streams[1:], getattr(self, name)) for name in ("first", "target", "tokens")},
            "words": self.words,
        }

    def plot(self, of: Measure = "prob", row: int = 0, title: str = "") -> "Figure":
        """Streams upwards, tokens across, one measure in colour, and the top token of each in words.

        Args:
          of: "prob" and "rank" of the target, "entropy", or "kl".
          row: of the batch.

        Raises:
          ArgumentError: another measure, or no such row.
        """
        from jmi.plots.lens import plot_lens

        choice("of", of, ("prob", "entropy", "kl", "rank"))
        row = whole_number("row", row, 0, self.ids.shape[1] - 1)
        there = self.tokens[row] >= 0
        columns = list(_texts(self.tokens[row, there], self.words))
        cells = self.strings()[:, row, there, 0]
        return plot_lens(
            getattr(self, of)[:, row, there], cells, self.labels, columns, title or self.kind, of
        )


def _texts(ids: np.ndarray, words: Mapping[int, str]) -> np.ndarray:
    known, place = np.unique(ids, return_inverse=True)
    return np.array([words.get(int(i), "") for i in known], object)[place.reshape(ids.shape)]
