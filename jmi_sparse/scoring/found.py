"""What `jmi_sparse.examples` gives."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jmi.artefacts import plain, write_json
from jmi.checks import shown
from jmi.errors import ArgumentError, OutputError
from jmi.interp.results import Result, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP = "Top activations"


class Example(NamedTuple):
    """A stretch of a prompt, and a feature's activations on it.

    Attributes:
      prompt, start: which prompt, and which of its tokens is the first here.
      tokens: int32 ``[c]``; strings: the same as texts.
      acts: float32 ``[c]``.
    """

    prompt: int
    start: int
    tokens: np.ndarray
    strings: list[str]
    acts: np.ndarray

    @property
    def peak(self) -> float:
        """The largest activation by magnitude, with its sign."""
        return float(self.acts[np.argmax(np.abs(self.acts))])


class Quantile(NamedTuple):
    """Examples under one heading, with the least and largest of their peaks, by magnitude."""

    name: str
    low: float
    high: float
    examples: list[Example]


@dataclasses.dataclass(frozen=True)
class FeatureExamples:
    """Examples of one feature, and what is known of it. `to_dict` is a feature file of Neuronpedia's graphs.

    Attributes:
      site, index: which feature.
      top: the windows of the largest peaks, largest first.
      quantiles: a sample of the windows in which it is active, in parts of equal size, of the largest peaks
        first. They may hold some of ``top``.
      frequency: share of tokens on which it is active.
      low, high: least and largest activation; NaN where there is none.
      histogram: ``[bins]``, tokens by the magnitude of the activation; edges: ``[bins + 1]``.
      top_logits, bottom_logits: tokens whose logits its decoder row raises and lowers most; None where what
        it writes is not of the stream's width.
    """

    site: str
    index: int
    top: list[Example]
    quantiles: list[Quantile]
    frequency: float
    low: float
    high: float
    histogram: np.ndarray
    edges: np.ndarray
    top_logits: list[str] | None
    bottom_logits: list[str] | None

    def to_dict(self) -> dict[str, Any]:
        """As dicts, lists, strings, numbers and None."""
        parts = [Quantile(TOP, np.nan, np.nan, self.top), *self.quantiles]
        held: dict[str, Any] = {
            "index": self.index,
            "examples_quantiles": [
                {
                    "quantile_name": part.name,
                    "examples": [{"tokens": e.strings, "tokens_acts_list": e.acts} for e in part.examples],
                }
                for part in parts
            ],
            "top_logits": self.top_logits,
            "bottom_logits": self.bottom_logits,
            "act_min": self.low,
            "act_max": self.high,
            "quantile_values": [part.high for part in self.quantiles],
            "histogram": {"counts": self.histogram, "edges": self.edges},
            "activation_frequency": self.frequency,
        }
        return plain({name: value for name, value in held.items() if value is not None})

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def plot(self, title: str = "") -> "Figure":
        """A histogram of its activations."""
        from jmi.plots import new_figure

        figure = new_figure(6, 3.5, title or f"{self.site}, feature {self.index}")
        axes = figure.subplots()
        axes.stairs(self.histogram, self.edges, fill=True)
        axes.set_xlabel("activation (magnitude)")
        axes.set_ylabel("tokens")
        return figure

    def __repr__(self) -> str:
        return (
            f"FeatureExamples({self.site}, feature {self.index}: active on {self.frequency:.3%} of tokens, "
            f"up to {self.high:.4g}; {len(self.top)} top examples, {len(self.quantiles)} quantiles)"
        )


@dataclasses.dataclass(frozen=True)
class SiteExamples:
    """Arrays of the features of one site, all numpy: k features, n and m windows of c tokens.

    Attributes:
      ids: int32 ``[k]``.
      top_windows, top_acts: ``[k, n]`` and ``[k, n, c]``, of the largest peaks; sample_windows, sample_acts:
        ``[k, m]`` and ``[k, m, c]``, a sample in no order. -1 is no window.
      counts, low, high, histogram, exponent: as of `jmi_sparse.scoring.gathering.Gathered`.
      top_logits, bottom_logits: int32 ``[k, t]``, token ids; None where there are none.
    """

    ids: np.ndarray
    top_windows: np.ndarray
    top_acts: np.ndarray
    sample_windows: np.ndarray
    sample_acts: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    histogram: np.ndarray
    exponent: np.ndarray
    top_logits: np.ndarray | None
    bottom_logits: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Examples(Result):
    """Examples of features: ``found[site, id]``, or ``found[id]`` where there is one site.

    Attributes:
      sites: arrays of the features of each site.
      rows: the tokens of each prompt.
      strings: token id -> text, of those that occur.
      n: tokens that count.
      quantiles: into how many parts a sample is cut.
      both: int64 ``[k, k]``, tokens on which both of two features are active, in the order of `features`; on
        the diagonal, one. None where the features were too many.
    """

    sites: Mapping[str, SiteExamples]
    rows: Sequence[np.ndarray]
    strings: Mapping[int, str]
    n: int
    quantiles: int
    both: np.ndarray | None

    @property
    def features(self) -> list[tuple[str, int]]:
        """(site, id) of each feature."""
        return [(site, int(i)) for site, held in self.sites.items() for i in held.ids]

    def __iter__(self) -> Iterator[FeatureExamples]:
        return (self[key] for key in self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[str, int] | int) -> FeatureExamples:
        site, index = key if isinstance(key, tuple) else (next(iter(self.sites)), key)
        if site not in self.sites or (not isinstance(key, tuple) and len(self.sites) > 1):
            raise ArgumentError(f"{shown(key)}: give (site, id), with a site of {', '.join(self.sites)}")
        held = self.sites[site]
        at = np.flatnonzero(held.ids == index)
        if not at.size:
            raise ArgumentError(f"feature {shown(index)} of {site} is not among those asked for")
        return self._feature(site, held, int(at[0]))

    def jaccard(self) -> np.ndarray:
        """Tokens on which both are active over those on which either is, ``[k, k]``; NaN where none is."""
        both, own = self._counts()
        return _over(both, own[:, None] + own[None] - both)

    def phi(self) -> np.ndarray:
        """Correlation of being active, ``[k, k]``; NaN where a feature is never or always active."""
        both, own = self._counts()
        apart = own * (self.n - own)
        return _over(self.n * both - own[:, None] * own[None], np.sqrt(apart[:, None] * apart[None]))

    def save(self, folder: str | Path) -> None:
        """Write a file for each feature: ``folder/site/id.json``; folders are made.

        Raises:
          OutputError: a file or folder cannot be written.
        """
        for found in self:
            place = Path(folder).expanduser() / found.site
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{place}: this folder cannot be made: {error.strerror}") from None
            write_json(place / f"{found.index}.json", found.to_dict())

    def _held(self) -> dict[str, Any]:
        labels = [f"{site}/{index}" for site, index in self.features]
        both = None if self.both is None else array(["feature", "feature"], self.both)
        features = {label: found.to_dict() for label, found in zip(labels, self, strict=True)}
        return {"n": self.n, "features": features, "labels": {"feature": labels}, "both": both}

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        if self.both is None:
            raise ArgumentError("there were too many features to count pairs of them; ask for fewer")
        return self.both.astype(np.float64), np.diag(self.both).astype(np.float64)

    def _feature(self, site: str, held: SiteExamples, i: int) -> FeatureExamples:
        active = held.counts[i] > 0
        words = [
            None if ids is None else [self.strings[int(t)] for t in ids[i]]
            for ids in (held.top_logits, held.bottom_logits)
        ]
        return FeatureExamples(
            site,
            int(held.ids[i]),
            self._examples(held.top_windows[i], held.top_acts[i]),
            self._in_parts(self._examples(held.sample_windows[i], held.sample_acts[i])),
            float(held.counts[i] / self.n),
            float(held.low[i]) if active else np.nan,
            float(held.high[i]) if active else np.nan,
            held.histogram[i],
            np.linspace(0, 2.0 ** held.exponent[i] if active else 1.0, len(held.histogram[i]) + 1),
            *words,
        )

    def _examples(self, windows: np.ndarray, acts: np.ndarray) -> list[Example]:
        c = acts.shape[-1]
        each = -(-max(map(len, self.rows)) // c)
        found = []
        for window, values in zip(windows, acts, strict=True):
            if window < 0:
                continue
            prompt, start = int(window) // each, int(window) % each * c
            tokens = self.rows[prompt][start : start + c]
            words = [self.strings[int(t)] for t in tokens]
            found.append(Example(prompt, start, tokens, words, values[: len(tokens)]))
        return found

    def _in_parts(self, sample: list[Example]) -> list[Quantile]:
        """A sample in parts of equal size, the largest peaks first; parts without an example left out."""
        ordered = sorted(sample, key=lambda e: (-abs(e.peak), e.prompt, e.start))
        parts, found = np.array_split(np.arange(len(ordered)), self.quantiles), []
        for i, part in enumerate(parts):
            if part.size:
                examples = [ordered[j] for j in part]
                low, high = abs(examples[-1].peak), abs(examples[0].peak)
                name = f"Quantile {self.quantiles - i} of {self.quantiles}: {low:.3g} to {high:.3g}"
                found.append(Quantile(name, low, high, examples))
        return found

    def __repr__(self) -> str:
        sites = ", ".join(f"{site}: {len(held.ids)}" for site, held in list(self.sites.items())[:6])
        more = f", and {len(self.sites) - 6} more sites" if len(self.sites) > 6 else ""
        return f"Examples({len(self)} features ({sites}{more}), {self.n:,} tokens)"


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
