"""A clean and a corrupted prompt, and what a model makes of them."""

import dataclasses
from typing import Any

import numpy as np

from jmi import metrics
from jmi.captures.output import Output
from jmi.cli.options import described
from jmi.cli.prompts import CLEAN, CORRUPTED, Into, Metric, SmoothMetric
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel, check_logits
from jmi.model.inputs import checked

Tokens = tuple[np.ndarray, np.ndarray]
"""Int32 ``[1, s]`` of the clean and of the corrupted prompt."""


def texts_of(clean: str | None, corrupted: str | None) -> tuple[str, str]:
    """The prompts given, or those to begin with; ArgumentError for a prompt without its pair."""
    if clean is None or corrupted is None:
        if clean is not None:
            raise ArgumentError("give two prompts: the second like the first, with another answer")
        return CLEAN, CORRUPTED
    return clean, corrupted


def tokens_of(lm: LanguageModel, texts: tuple[str, str]) -> Tokens:
    """Tokens of both prompts; ArgumentError when they are the same, or too long."""
    clean, corrupted = (lm.to_tokens(text) for text in texts)
    for tokens in (clean, corrupted):
        checked(lm.arch, tokens)
    if np.array_equal(clean, corrupted):
        raise ArgumentError("both prompts are the same tokens: nothing differs that could be patched")
    return clean, corrupted


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts and what the model answers.

    Attributes:
      texts, tokens: of the clean and of the corrupted prompt.
      runs: of both, with logits ``[1, vocab]`` at the last token.
      into: the run that is changed.
      right, wrong: token ids of the answers.
    """

    lm: LanguageModel
    texts: tuple[str, str]
    tokens: Tokens
    runs: tuple[Output, Output]
    into: Into
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
            "kl": metrics.KL(self.changed(self.runs).logits),
        }
        return made[metric.value]

    def changed(self, both: tuple[Any, Any]) -> Any:
        """Of something of the clean and of the corrupted run, that of the one that is changed."""
        return both[self.into is Into.CORRUPTED]

    def values(self, metric: Metric | SmoothMetric) -> tuple[float, float]:
        """The metric of both runs; ArgumentError when they agree, as far as float32 can tell."""
        goal = self.metric(metric)
        clean, corrupted = (float(goal(run)[0]) for run in self.runs)
        if abs(corrupted - clean) <= 1e-5 * max(abs(clean), abs(corrupted)):
            raise ArgumentError(
                f"{metric.value} is {clean:.4g} on both prompts, so there is no difference to share out: "
                "take another --metric or --answer, or other prompts"
            )
        return clean, corrupted

    def gap(self, values: tuple[float, float]) -> float:
        """How far the metric of the run that is changed is from that of the other."""
        clean, corrupted = values
        return clean - corrupted if self.into is Into.CORRUPTED else corrupted - clean

    def record(self, values: tuple[float, float]) -> dict[str, Any]:
        """Model, prompts, answers and the metric of both runs as plain data."""
        both = zip(("clean", "corrupted"), self.texts, self.tokens, values, strict=True)
        answers = (("answer", self.right), ("wrong", self.wrong))
        return {
            "model": described(self.lm),
            **{name: {"text": text, "token_ids": ids[0], "value": x} for name, text, ids, x in both},
            **{name: {"token_id": t, "token": self.lm.token_string(t)} for name, t in answers},
            "into": self.into,
        }


def pair_of(
    lm: LanguageModel,
    texts: tuple[str, str],
    tokens: Tokens,
    *,
    into: Into,
    answer: str | None,
    wrong: str | None,
) -> Pair:
    """Run both prompts; the answers are the model's own where none are given."""
    given = [word if word is None else lm.token_id(word) for word in (answer, wrong)]
    clean, corrupted = (lm.run(each, logits_at=-1) for each in tokens)
    for run in (clean, corrupted):
        check_logits(lm, run.logits)
    likeliest = [int(run.logits.argmax()) for run in (clean, corrupted)]
    right, other = (own if word is None else word for own, word in zip(likeliest, given, strict=True))
    return Pair(lm, texts, tokens, (clean, corrupted), into, right, other)
