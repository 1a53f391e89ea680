"""The text that commands look at features on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmi.errors import ArgumentError

if TYPE_CHECKING:
    from jmi.lm import LanguageModel

Text = Annotated[
    Path | None,
    typer.Option(help="Text to look at, a prompt in each line.", show_default="text as atlas was trained on"),
]
_PROMPTS, _PIECES = 64, 4


def texts_of(lm: "LanguageModel", path: Path | None) -> list[str]:
    """The lines of a file, each cut to the context of the model; without one, made text of many kinds.

    Raises:
      ArgumentError: no text there.
    """
    if path is None:
        return _made()
    from jmi.reading import read_text

    lines = [line.strip() for line in read_text(path, ArgumentError).splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise ArgumentError(f"--text {path}: there is no text in it")
    return [_cut(lm, line) for line in found]


def _made() -> list[str]:
    """Text as atlas was trained on, of the kinds whose every word it learned to predict."""
    import numpy as np

    from jmi_models.embedded import corpus, stories

    draws, kinds = np.random.default_rng(0), (corpus.fact_paragraph, corpus.rhyme, stories.story)
    made = ["\n".join(kinds[i](draws) for i in draws.integers(3, size=_PIECES)) for _ in range(_PROMPTS)]
    # Marks of what training counts.
    return [text.replace(corpus.MARK, "").replace(corpus.QUIET, "") for text in made]


def _cut(lm: "LanguageModel", text: str) -> str:
    """The beginning of a text that the context holds."""
    most: Any = getattr(lm.arch, "n_ctx", None)
    if most is None or len(text) < most:
        return text
    ends = [end for _, end in lm.encode_with_offsets(text).offsets[:most]]
    return text[: max(ends)]
