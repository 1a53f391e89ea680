"""What patching returns: the metrics of every patched run, and what they amount to.

Axis letters: b batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jmi.checks import choice
from jmi.errors import ArgumentError
from jmi.interp.into import Into
from jmi.interp.patching.measure import Measured
from jmi.interp.results import Result, of_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class PatchResult(Result):
    """Metrics of every patched run, in numpy. The last axis is always the row of the batch.

    What is an array here is, of a dict of metrics, a dict of arrays.

    Attributes:
      axes: name -> values, of the axes in front of the rows, in their order.
      patched: ``[*axes, b]``; NaN in rows of a padded batch that have no token at a position when all
        positions are visited (for means over rows, ``numpy.nanmean``).
      base: of the run that is changed, without the patch, ``[b]``, or one for each noise,
        ``[seed, ..., b]``.
      source: of the run that is patched in, ``[b]``; None when there is none to move towards (ablations).
      into: which run is changed, "clean" or "corrupted".
    """

    axes: Mapping[str, np.ndarray]
    patched: Measured
    base: Measured
    source: Measured | None
    into: Into

    @property
    def effect(self) -> Measured:
        """Patched minus base, ``[*axes, b]`` float."""
        return jax.tree.map(lambda x, base: _float(x) - _float(base), self.patched, self.base)

    @property
    def recovery(self) -> Measured:
        """(patched - base) / (source - base), ``[*axes, b]``: 0 nothing happened, 1 as the source.

        NaN in rows where base and source agree; noisy where they nearly do, so for means and tests of
        several rows take `effect`, or divide means.
        """
        if self.source is None:
            raise ArgumentError(
                "an ablation moves towards no run: there is an effect, but nothing to recover"
            )
        return jax.tree.map(_share, self.effect, self.base, self.source)

    def _held(self) -> dict[str, Any]:
        axes = [*self.axes, "batch"]
        # Of several seeds, [seed, 1, ..., b].
        base = ["seed", "batch"] if jax.tree.leaves(self.base)[0].ndim > 1 else ["batch"]
        unchanged = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x, self.base)
        held = {
            "into": self.into,
            "labels": dict(self.axes),
            "patched": of_metrics(axes, self.patched),
            "base": of_metrics(base, unchanged),
            "effect": of_metrics(axes, self.effect),
        }
        if self.source is None:
            return held
        return held | {
            "source": of_metrics(["batch"], self.source),
            "recovery": of_metrics(axes, self.recovery),
        }

    def plot(self, metric: str | None = None, title: str = "") -> "Figure":
        """A heat map of the effect, mean over rows and seeds, of two axes.

        Args:
          metric: which, of a dict of them.

        Raises:
          ArgumentError: other than two axes beside seeds, or a metric that is not there.
        """
        from jmi.plots.heatmap import plot_heatmap

        effect = self.effect
        if isinstance(effect, Mapping):
            effect = effect[choice("metric", metric, list(effect))]
        axes = {name: values for name, values in self.axes.items() if name != "seed"}
        if len(axes) != 2:
            raise ArgumentError(f"plot() draws a map of two axes; this result has {', '.join(axes)}")
        mean = np.nanmean(effect, axis=(-1, 0) if "seed" in self.axes else -1)
        rows, columns = ((name, [str(i) for i in values]) for name, values in axes.items())
        return plot_heatmap(mean, rows, columns, title or f"into the {self.into} run", "effect")

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} {len(values)}" for name, values in self.axes.items())
        return f"PatchResult(into={self.into!r}, {axes}, rows {jax.tree.leaves(self.patched)[0].shape[-1]})"


def _float(x: np.ndarray) -> np.ndarray:
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(float)


def _share(effect: np.ndarray, base: np.ndarray, source: np.ndarray) -> np.ndarray:
    gap = _float(source) - _float(base)
    return np.where(gap == 0, np.nan, effect / np.where(gap == 0, 1, gap))
