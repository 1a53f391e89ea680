"""A clean and a corrupted prompt, as ``jmi patch`` and ``jmi attribute`` take them."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from jmi import metrics
from jmi.errors import ConfigError
from jmi.lm import LanguageModel
from jmi.output import Output

CLEAN = "When John and Mary went to the shop, John gave the book to"
CORRUPTED = "When John and Mary went to the shop, Mary gave the book to"


class Metric(enum.StrEnum):
    """What is followed at the last token."""

    LOGIT_DIFF = "logit-diff"
    PROB = "prob"
    RANK = "rank"
    KL = "kl"


class Direction(enum.StrEnum):
    """Which run is patched."""

    DENOISING = "denoising"
    NOISING = "noising"


Clean = Annotated[str, typer.Argument(help="Prompt on which the model does the task.")]
Corrupted = Annotated[str, typer.Argument(help="Prompt like it with another answer.")]
Answer = Annotated[
    str | None, typer.Option(help="Right answer, one token. [default: the prediction on CLEAN]")
]
Wrong = Annotated[
    str | None, typer.Option(help="Wrong answer, one token. [default: the prediction on CORRUPTED]")
]
Towards = Annotated[
    Direction, typer.Option(help="denoising: CLEAN into CORRUPTED; noising: CORRUPTED into CLEAN.")
]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two prompts of a model, as base and source.

    Attributes:
      base, source: the texts.
      tokens: int32 ``[1, s]`` of each.
      runs: of each, with logits ``[1, vocab]`` at the last token.
      right, wrong: token ids of the answers.
    """

    lm: LanguageModel
    base: str
    source: str
    tokens: tuple[np.ndarray, np.ndarray]
    runs: tuple[Output, Output]
    right: int
    wrong: int

    @property
    def aligned(self) -> bool:
        """Whether the prompts have one length."""
        return self.tokens[0].shape == self.tokens[1].shape

    def metric(self, metric: Metric) -> metrics.Metric:
        """The metric as a function of a run."""
        if metric is Metric.LOGIT_DIFF and self.right == self.wrong:
            raise ConfigError(
                f"both prompts have the answer {self.lm.token_string(self.right)!r}: give --answer and "
                "--wrong, or prompts that differ in what the answer depends on"
            )
        made: dict[Metric, Callable[[], metrics.Metric]] = {
            Metric.LOGIT_DIFF: lambda: metrics.LogitDiff(self.right, self.wrong),
            Metric.PROB: lambda: metrics.Prob(self.right),
            Metric.RANK: lambda: metrics.Rank(self.right),
            Metric.KL: lambda: metrics.KL(self.runs[0].logits),
        }
        return made[metric]()

    def record(self) -> dict[str, Any]:
        """Prompts and answers as plain data."""
        named = zip(("base", "source"), (self.base, self.source), self.tokens, strict=True)
        answers = (("answer", self.right), ("wrong", self.wrong))
        return {
            **{name: {"text": text, "token_ids": tokens[0]} for name, text, tokens in named},
            **{name: {"token_id": t, "token": self.lm.token_string(t)} for name, t in answers},
        }


def pair_of(
    lm: LanguageModel, clean: str, corrupted: str, answer: str | None, wrong: str | None, direction: Direction
) -> Pair:
    """Run both prompts; the answers are the model's own where none are given."""
    texts = (corrupted, clean) if direction is Direction.DENOISING else (clean, corrupted)
    base, source = (lm.run(text, logits_at=-1) for text in texts)
    of_clean, of_corrupted = (source, base) if direction is Direction.DENOISING else (base, source)
    right = int(of_clean.logits.argmax()) if answer is None else lm.token_id(answer)
    other = int(of_corrupted.logits.argmax()) if wrong is None else lm.token_id(wrong)
    tokens = (lm.to_tokens(texts[0]), lm.to_tokens(texts[1]))
    return Pair(lm, *texts, tokens, (base, source), right, other)
