"""The composition of phrasings: every statement, question and request of a fact in many surroundings.

In a phrasing `{x}` is the subject of the fact, `{c}` the country it is about, `{d}` another country,
`{n}` a first name and `{m}` one more, of someone who speaks or answers.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from jmi_models.embedded.phrasings import exchanges as e
from jmi_models.embedded.phrasings import frames as f
from jmi_models.embedded.phrasings import nouns, questions
from jmi_models.embedded.phrasings.clauses import CLAUSES
from jmi_models.embedded.phrasings.comparisons import COMPARISONS
from jmi_models.embedded.phrasings.forms import FORMS


def lines(block: str) -> list[str]:
    """The lines of a block of text."""
    return block.strip().splitlines()


def combine(rng: Generator, count: int, *parts: Sequence[str]) -> list[str]:
    """`count` texts made of one item of each part; each item of a part comes equally often."""
    columns = [
        np.concatenate([rng.permutation(len(part)) for _ in range(-(-count // len(part)))])[:count]
        for part in parts
    ]
    rows = [zip(parts, row, strict=True) for row in zip(*columns, strict=True)]
    return [re.sub(r" (?=[,:.])", "", " ".join(part[i] for part, i in row)) for row in rows]


def small(texts: Sequence[str]) -> list[str]:
    """The texts as they begin within a sentence."""
    return [text if text.startswith("I ") else text[0].lower() + text[1:] for text in texts]


def compose(relation: str) -> list[str]:
    """Distinct phrasings of one relation: what stands alone, and combinations of everything else."""
    rng = np.random.default_rng(0)
    statements = lines(CLAUSES[relation]) + lines(COMPARISONS[relation])
    heads, asked = lines(nouns.HEADS[relation]), lines(questions.QUESTIONS[relation])
    asked_how = lines(questions.ADVERBIAL_QUESTIONS[relation])
    answers_how = lines(questions.ADVERBIAL_LEADS[relation])
    # A currency is "the euro" where another answer needs no article.
    article = " the" if relation == "currency" else ""
    verbs = [f"{verb}{article}" for verb in f.COPULAS] + lines(nouns.VERBS[relation])
    verbs += [] if article else f.NAMING
    answers = [f"{lead}{article}" for lead in e.ANSWERS] + lines(questions.LEADS[relation])
    resolutions = [f"{ending}{article}" for ending in e.RESOLUTIONS]
    replies = [f"{ending}{article}" for ending in e.REPLIES]
    phrasings = [
        *statements,
        *lines(FORMS[relation]),
        *combine(rng, 150, f.PREFIXES, small(statements)),
        *combine(rng, 80, heads, verbs),
        *combine(rng, 50, heads, f.ASIDES, verbs),
        *combine(rng, 80, f.PREFIXES, small(heads), verbs),
        *combine(rng, 90, f.INTROS, lines(nouns.FOLLOW_UPS[relation])),
        *combine(rng, 80, asked, answers),
        *combine(rng, 50, e.MARKERS, asked, answers),
        *combine(rng, 50, e.ASKING, small(asked), answers),
        *combine(rng, 30, asked_how, answers_how),
        *combine(rng, 30, e.MARKERS, asked_how, e.MARKED_ANSWERS, small(answers_how)),
        *combine(rng, 50, e.ENQUIRIES, small(heads), resolutions),
        *combine(rng, 20, e.REQUESTS, small(heads), replies),
    ]
    return list(dict.fromkeys(phrasings))
