"""What `jmi_sparse.score` gives."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jmi.interp.results import Result, array
from jmi_sparse.scoring.sums import Features, Outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = 0.1
"""A feature that is active on a larger share of tokens than this is called dense."""


@dataclasses.dataclass(frozen=True)
class OutputScores(Result):
    """How well an output ``z`` stands for what is at its site, ``y``: the input of an SAE, or a target.

    The four FVUs (fraction of variance unexplained) are four numbers; say which is meant. SAELens's
    ``explained_variance`` and its like are 1 minus these.

    Attributes:
      n: tokens.
      fvu_saelens: mean ``|y - z|^2`` over ``E|y|^2 - |E y|^2``, both over all tokens.
      fvu_saelens_legacy: mean over tokens of ``|y - z|^2 / |y - m|^2``, with ``m`` the mean of the token's
        batch. A token near the mean counts without bound; depends on the batches.
      fvu_dictionary_learning: variance of ``y - z`` over that of ``y``, with ``ddof`` 1, summed over the
        width: a constant offset is forgiven.
      fvu_sparsify: of each batch ``sum |y - z|^2 / sum |y - m|^2``, weighted by its tokens; depends on the
        batches.
      mse: mean of ``|y - z|^2``, summed over the width.
      cosine: mean cosine of ``y`` and ``z``; 0 where one of them is 0 (NaN in SAELens).
      l2_ratio: mean of ``|z| / |y|``; a norm below 1e-4 counts as 1 there, as in SAELens.
      relative_reconstruction_bias: ``E|z|^2 / E[y z]`` (arXiv 2404.16014): below 1 where outputs shrink.
    """

    n: int
    fvu_saelens: float
    fvu_saelens_legacy: float
    fvu_dictionary_learning: float
    fvu_sparsify: float
    mse: float
    cosine: float
    l2_ratio: float
    relative_reconstruction_bias: float

    def _held(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class FeatureScores(Result):
    """How features are used. Active is what is not exactly 0. Arrays are of numpy, ``[features]``.

    Attributes:
      n: tokens.
      l0: mean number of active features of a token.
      l1: mean over tokens of the sum of magnitudes.
      density: share of tokens on which each is active.
      mean_activation: mean of each over the tokens on which it is active; NaN where there is none.
      consistent_activation: of the prompts with such a token, how many tokens each has in the mean (SAELens's
        ``consistent_activation_heuristic``); NaN where there is none.
    """

    n: int
    l0: float
    l1: float
    density: np.ndarray
    mean_activation: np.ndarray
    consistent_activation: np.ndarray

    @property
    def log10_density(self) -> np.ndarray:
        """log10 of density + 1e-10, SAELens's ``sparsity``: -10 for a dead feature."""
        return np.log10(self.density + 1e-10)

    @property
    def dead(self) -> np.ndarray:
        """Bool: never active in this sample; a larger one may find it alive."""
        return self.density == 0

    @property
    def dense(self) -> np.ndarray:
        """Bool: active on more than a tenth of tokens."""
        return self.density > DENSE

    @property
    def alive(self) -> float:
        """Share of features that are not dead."""
        return float(1 - self.dead.mean())

    def _held(self) -> dict[str, Any]:
        held = {name: getattr(self, name) for name in ("n", "l0", "l1", "alive")}
        of_features = (
            "density",
            "log10_density",
            "mean_activation",
            "consistent_activation",
            "dead",
            "dense",
        )
        return held | {name: array(["feature"], getattr(self, name)) for name in of_features}

    def __repr__(self) -> str:
        return (
            f"FeatureScores({len(self.density)} features, l0 {self.l0:.4g}, {int(self.dead.sum())} dead, "
            f"{int(self.dense.sum())} dense, {self.n:,} tokens)"
        )


@dataclasses.dataclass(frozen=True)
class Losses(Result):
    """What the model loses with a dictionary in it, beside what it loses without the site. In nats.

    Attributes:
      ce_clean, ce_spliced, ce_zero, ce_mean: mean cross-entropy of the model, with the dictionary in place
        of the site and no error term, and with the site at 0 or at its mean over the corpus.
      kl_spliced, kl_zero, kl_mean: mean KL(clean || new).
      n: tokens whose successor is predicted.
    """

    ce_clean: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    kl_spliced: float
    kl_zero: float
    kl_mean: float
    n: int

    @property
    def loss_recovered_zero(self) -> float:
        """``(CE_zero - CE_spliced) / (CE_zero - CE_clean)``: ``ce_loss_score``, ``frac_recovered``."""
        return ratio(self.ce_zero - self.ce_spliced, self.ce_zero - self.ce_clean)

    @property
    def loss_recovered_mean(self) -> float:
        """The same of mean ablation, which is harder to beat."""
        return ratio(self.ce_mean - self.ce_spliced, self.ce_mean - self.ce_clean)

    @property
    def kl_recovered_zero(self) -> float:
        """``(KL_zero - KL_spliced) / KL_zero``: SAELens's ``kl_div_score``."""
        return ratio(self.kl_zero - self.kl_spliced, self.kl_zero)

    @property
    def kl_recovered_mean(self) -> float:
        """The same of mean ablation."""
        return ratio(self.kl_mean - self.kl_spliced, self.kl_mean)

    def _held(self) -> dict[str, Any]:
        shares = ("loss_recovered_zero", "loss_recovered_mean", "kl_recovered_zero", "kl_recovered_mean")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in shares}


@dataclasses.dataclass(frozen=True)
class Scores(Result):
    """Scores of dictionaries over a corpus.

    Of a dictionary of one site all three have one name: the site, with ``[i]`` where a list was given. Of a
    cross-layer transcoder, ``features`` has the sites that it reads, ``outputs`` those that it writes, and
    ``losses`` ``"clt"``.

    Attributes:
      outputs: how well what is written stands for what was there.
      features: how features are used.
      losses: what the model loses; empty without ``losses``.
    """

    outputs: Mapping[str, OutputScores]
    features: Mapping[str, FeatureScores]
    losses: Mapping[str, Losses]

    def _held(self) -> dict[str, Any]:
        parts = ("outputs", "features", "losses")
        return {part: {name: x.to_dict() for name, x in getattr(self, part).items()} for part in parts}

    def plot(self, title: str = "") -> "Figure":
        """How dense features are: a histogram of the log10 density of each dictionary, dead ones apart."""
        from jmi.plots import new_figure

        figure = new_figure(7, 4, title)
        axes = figure.subplots()
        for name, found in self.features.items():
            label = f"{name}: {int(found.dead.sum())} dead of {len(found.density)}"
            axes.hist(found.log10_density[~found.dead], bins=40, histtype="step", label=label)
        axes.set_xlabel("log10 of the share of tokens on which a feature is active")
        axes.set_ylabel("features")
        axes.legend(frameon=False, fontsize=8)
        return figure

    def __repr__(self) -> str:
        parts = []
        for name, found in self.features.items():
            fvu = f", fvu_saelens {self.outputs[name].fvu_saelens:.4g}" if name in self.outputs else ""
            parts.append(f"{name}: l0 {found.l0:.4g}{fvu}")
        shares = [f"{n}: loss recovered {x.loss_recovered_zero:.4g}" for n, x in self.losses.items()]
        shown = [*parts, *shares]
        more = [f"and {len(shown) - 6} more"] if len(shown) > 6 else []
        return f"Scores({'; '.join([*shown[:6], *more])})"


def of_outputs(found: Outputs) -> OutputScores:
    """Scores of sums over all tokens."""
    n, sums = found.target.n, found.sums
    return OutputScores(
        n=n,
        fvu_saelens=ratio(sums["error"], found.target.squares),
        fvu_saelens_legacy=sums["legacy"] / n,
        fvu_dictionary_learning=ratio(found.error.squares, found.target.squares),
        fvu_sparsify=found.by_batch / n,
        mse=sums["error"] / n,
        cosine=sums["cosine"] / n,
        l2_ratio=sums["ratio"] / n,
        relative_reconstruction_bias=ratio(sums["own"], sums["both"]),
    )


def of_features(found: Features) -> FeatureScores:
    """Scores of sums over all tokens."""
    n, counts = found.n, found.counts
    with np.errstate(divide="ignore", invalid="ignore"):
        means, consistent = found.values / counts, counts / found.prompts
    return FeatureScores(n, float(counts.sum() / n), found.l1 / n, counts / n, means, consistent)


def ratio(above: float, below: float) -> float:
    """A quotient as floats have it: infinite or NaN over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(above) / np.float64(below))
