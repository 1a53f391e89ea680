"""A clean and a corrupted prompt, and what a model makes of them."""

import dataclasses
from typing import Any, Literal

import numpy as np

from jmi import metrics
from jmi.captures.output import Output
from jmi.cli.options import described
from jmi.cli.prompts import CLEAN, CORRUPTED, Direction, Metric, SmoothMetric
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_logits
from jmi.model.inputs import Prompts as Inputs
from jmi.model.inputs import checked


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Two prompts of a model before anything is run.

    Attributes:
      clean, corrupted: the texts.
      direction: which of them is the base.
      tokens: int32 ``[1, s]`` of base and source: of the run that is changed, and of the other.
    """

    clean: str
    corrupted: str
    direction: Direction
    tokens: tuple[np.ndarray, np.ndarray]

    @property
    def texts(self) -> tuple[str, str]:
        """Base and source."""
        return _turned(self.clean, self.corrupted, self.direction)

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of clean and corrupted prompt."""
        return _turned(*self.tokens, self.direction)

    @property
    def into(self) -> Literal["clean", "corrupted"]:
        """Which run is changed."""
        return "corrupted" if self.direction is Direction.DENOISING else "clean"

    @property
    def aligned(self) -> bool:
        """Whether the prompts have one length."""
        return self.tokens[0].shape == self.tokens[1].shape


def texts_of(clean: str | None, corrupted: str | None) -> tuple[str, str]:
    """The prompts given, or those to begin with; ArgumentError for a prompt without its pair."""
    if clean is None or corrupted is None:
        if clean is not None:
            raise ArgumentError("give two prompts: the second like the first, with another answer")
        return CLEAN, CORRUPTED
    return clean, corrupted


def prompts_of(lm: LanguageModel, texts: tuple[str, str], direction: Direction) -> Prompts:
    """Tokens of both prompts; ArgumentError when they are the same, or too long."""
    base, source = (lm.to_tokens(text) for text in _turned(*texts, direction))
    for tokens in (base, source):
        checked(lm.arch, Inputs(tokens))
    if np.array_equal(base, source):
        raise ArgumentError("both prompts are the same tokens: nothing differs that could be patched")
    return Prompts(*texts, direction, (base, source))


def _turned(first: Any, second: Any, direction: Direction) -> tuple[Any, Any]:
    """Clean and corrupted as base and source, or base and source as clean and corrupted."""
    return (second, first) if direction is Direction.DENOISING else (first, second)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts and what the model answers.

    Attributes:
      runs: of base and source, with logits ``[1, vocab]`` at the last token.
      right, wrong: token ids of the answers.
    """

    lm: LanguageModel
    prompts: Prompts
    runs: tuple[Output, Output]
    right: int
    wrong: int

    def metric(self, metric: Metric | SmoothMetric) -> metrics.Metric:
        """The metric as a function of a run."""
        if metric == Metric.LOGIT_DIFF and self.right == self.wrong:
            raise ArgumentError(
                f"both prompts have the answer {self.lm.token_string(self.right)!r}: give --answer and "
                "--wrong, or prompts that differ in what the answer depends on"
            )
        made: dict[str, metrics.Metric] = {
            "logit-diff": metrics.LogitDiff(self.right, self.wrong),
            "prob": metrics.Prob(self.right),
            "rank": metrics.Rank(self.right),
            "kl": metrics.KL(self.runs[0].logits),
        }
        return made[metric.value]

    def values(self, metric: Metric | SmoothMetric) -> tuple[float, float]:
        """The metric of base and source; ArgumentError when they agree, as far as float32 can tell."""
        goal = self.metric(metric)
        base, source = (float(goal(run)[0]) for run in self.runs)
        if abs(source - base) <= 1e-5 * max(abs(base), abs(source)):
            raise ArgumentError(
                f"{metric.value} is {base:.4g} on both prompts, so there is no difference to share out: "
                "take another --metric or --answer, or other prompts"
            )
        return base, source

    def record(self, values: tuple[float, float]) -> dict[str, Any]:
        """Model, prompts, answers and the metric of both runs as plain data."""
        named = zip(("base", "source"), self.prompts.texts, self.prompts.tokens, strict=True)
        answers = (("answer", self.right), ("wrong", self.wrong))
        return {
            "model": described(self.lm),
            **{name: {"text": text, "token_ids": tokens[0]} for name, text, tokens in named},
            **{name: {"token_id": t, "token": self.lm.token_string(t)} for name, t in answers},
            "base_value": values[0],
            "source_value": values[1],
        }


def pair_of(lm: LanguageModel, prompts: Prompts, answer: str | None, wrong: str | None) -> Pair:
    """Run both prompts; the answers are the model's own where none are given."""
    given = [word if word is None else lm.token_id(word) for word in (answer, wrong)]
    base, source = (lm.run(tokens, logits_at=-1) for tokens in prompts.tokens)
    for run in (base, source):
        check_logits(lm, run.logits)
    likeliest = [int(run.logits.argmax()) for run in _turned(base, source, prompts.direction)]
    right, other = (own if word is None else word for own, word in zip(likeliest, given, strict=True))
    return Pair(lm, prompts, (base, source), right, other)
