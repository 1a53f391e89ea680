"""How the tasks are mixed into running text."""

from itertools import accumulate

from numpy.random import Generator

from jmi_models.embedded import corpus, stories

WEIGHTS: dict[corpus.Task, float] = {
    corpus.fact: 0.38,
    corpus.fact_paragraph: 0.07,
    corpus.indirect_object: 0.15,
    corpus.greater_than: 0.08,
    corpus.repeated_words: 0.06,
    corpus.rhyme: 0.05,
    corpus.sentiment: 0.05,
    corpus.arithmetic: 0.08,
    stories.story: 0.06,
    stories.pronoun: 0.02,
    stories.agreement: 0.02,
}
"""Share of each task among the pieces of text; repeated words have the longest pieces."""

_TASKS = list(WEIGHTS)
_EDGES = list(accumulate(WEIGHTS.values()))


def piece(rng: Generator) -> str:
    """One piece of text of a random task."""
    point = rng.random() * _EDGES[-1]
    return next(task for task, edge in zip(_TASKS, _EDGES, strict=True) if point <= edge)(rng)


def running_text(rng: Generator, min_words: int) -> str:
    """Pieces joined by a newline or a space until there are at least `min_words` words.

    A word is one token or more, so this is also a lower bound on the tokens.
    """
    parts: list[str] = []
    words = 0
    while words < min_words:
        part = piece(rng)
        words += len(part.split())
        parts += [part, "\n" if rng.random() < 0.7 else " "]
    return "".join(parts[:-1])
