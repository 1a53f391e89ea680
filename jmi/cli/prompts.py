"""Two prompts and what is followed on them, as ``jmi patch`` and ``jmi attribute`` take them."""

import enum
from typing import Annotated

import typer

CLEAN = "When John and Mary went to the shop, John gave the book to"
CORRUPTED = "When John and Mary went to the shop, Mary gave the book to"


class Metric(enum.StrEnum):
    """What is followed at the last token."""

    LOGIT_DIFF = "logit-diff"
    PROB = "prob"
    RANK = "rank"
    KL = "kl"


class SmoothMetric(enum.StrEnum):
    """Those of `Metric` with a gradient to follow: a rank has none, and KL none where it is zero."""

    LOGIT_DIFF = "logit-diff"
    PROB = "prob"


class Into(enum.StrEnum):
    """Which run is changed."""

    CORRUPTED = "corrupted"
    CLEAN = "clean"


Clean = Annotated[
    str | None, typer.Argument(help="Prompt on which the model does the task.", show_default=CLEAN)
]
Corrupted = Annotated[
    str | None, typer.Argument(help="Prompt like it with another answer.", show_default=CORRUPTED)
]
Answer = Annotated[
    str | None, typer.Option(help="Right answer, one token.", show_default="the prediction on CLEAN")
]
Wrong = Annotated[
    str | None, typer.Option(help="Wrong answer, one token.", show_default="the prediction on CORRUPTED")
]
Changed = Annotated[
    Into, typer.Option(help="The run that is changed; what is put there is of the other one.")
]
