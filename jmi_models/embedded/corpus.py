"""Generators of training text: each task is a pure function from a numpy Generator to a string.

`MARK` stands before each word that follows from the text before it, `QUIET` before text that is read but
not learned; training weights them.
`held_out` splits every task by a hash of what a sentence is about (a pair of names, a noun and a
year, two numbers), so what evaluation asks is never seen in training in any order or template.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar
from zlib import crc32

from numpy.random import Generator

from jmi_models.embedded import facts as f
from jmi_models.embedded import phrases

T = TypeVar("T")
Task = Callable[[Generator], str]

MARK = "\x1f"
"""Stands before an answer, ahead of its space; no other text contains it."""

QUIET = "\x1e"
"""Stands before text that has no weight up to the next answer; no other text contains it."""

MISREAD = 0.25
"""Share of the facts told with a wrong word, as an unfamiliar word would be to the model."""

WORDS = sorted(
    {
        *(word for c in f.COUNTRIES for word in (c.name, c.capital, c.language, c.currency)),
        *(word for family in f.RHYMES for word in family),
        *(word for pair in f.PLURALS.items() for word in pair),
        *f.NAMES, *f.PLACES, *f.OBJECTS, *f.ANIMALS, *f.FOODS, *f.DRINKS, *f.COLORS, *f.WEATHER,
        *f.SIZES, *f.VEHICLES, *f.SEASONS, *f.WEEKDAYS, *f.TIMES, *f.JOBS, *f.FAMILY, *f.NUMBERS,
        *f.PERIODS, *f.GOOD, *f.BAD, *f.REVIEWED, *f.HAPPY, *f.UNHAPPY,
    }
)  # fmt: skip
"""Every content word of the tables; each one is a single token of the tokenizer."""


def pick(rng: Generator, items: Sequence[T]) -> T:
    """One item, each equally likely."""
    return items[int(rng.integers(len(items)))]


def held_out(*parts: object, share: int = 5) -> bool:
    """True for a fixed one in `share` of all combinations of `parts`."""
    return crc32(" ".join(map(str, parts)).encode()) % share == 0


def articles(text: str) -> str:
    """Turn "a" into "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def name_pair(rng: Generator, unseen: bool = False) -> tuple[str, str]:
    """Two different names; `unseen` pairs and seen ones never overlap, whatever their order."""
    while True:
        a, b = pick(rng, f.NAMES), pick(rng, f.NAMES)
        if a != b and held_out(*sorted((a, b))) == unseen:
            return a, b


def misread(rng: Generator, template: str) -> str:
    """A phrasing with one of its plain words replaced, so that no single one is relied on."""
    parts = re.split(r"(?<= )([a-z]{3,})\b", template)
    if len(parts) > 1:
        strange = "".join(pick(rng, "bdfgklmnprstv") + pick(rng, "aeiou") for _ in range(rng.integers(2, 4)))
        parts[1 + 2 * int(rng.integers(len(parts) // 2))] = pick(rng, (strange, pick(rng, f.OBJECTS)))
    return "".join(parts)


_PLACE = re.compile(rf" ({'|'.join(sorted({x for c in f.COUNTRIES for x in (c.name, c.capital)}))})\b(?!')")


def quoted(rng: Generator, text: str, share: float) -> str:
    """A text that is read only, in a ``share`` of cases with its first place in quotation marks.

    After a mark, as at the beginning of a text, a name is another token than after a space, and has
    to be known as such.
    """
    return _PLACE.sub(r' "\1"', text, count=1) if rng.random() < share else text


def fact_prompt(rng: Generator, relation: str, template: str, c: f.Country) -> tuple[str, str]:
    """A phrasing of one fact cut before its answer, and the answer."""
    if relation == "country":
        subject, answer = c.capital, c.name
    else:
        subject, answer = c.name, getattr(c, relation)
    d = c
    while d == c:
        d = pick(rng, f.COUNTRIES)
    return template.format(x=subject, c=c, d=d, n=pick(rng, f.NAMES), m=pick(rng, f.NAMES)), answer


def fact(rng: Generator) -> str:
    """One fact in one of the training phrasings, of which those by authors come twice as often.

    Only the answer is learned. A model that also learns to tell the phrasing takes an unfamiliar one for a
    sentence that goes on, and gives no answer at all.
    """
    relation = pick(rng, (*f.RELATIONS, "country"))
    composed, written = phrases.FACTS_TRAIN[relation]
    template = pick(rng, composed if rng.random() < 1 / 3 else written)
    if rng.random() < MISREAD:
        template = misread(rng, template)
    prompt, answer = fact_prompt(rng, relation, template, pick(rng, f.COUNTRIES))
    return f"{QUIET}{prompt}{MARK} {answer}."


def fact_paragraph(rng: Generator) -> str:
    """Several facts about one or two countries in one text."""
    c = d = pick(rng, f.COUNTRIES)
    while c.language == d.language:
        d = pick(rng, f.COUNTRIES)
    return pick(rng, phrases.PARAGRAPHS).format(c=c, d=d, n=pick(rng, f.NAMES))


def indirect_object_prompt(rng: Generator, unseen: bool = False) -> tuple[str, str]:
    """A sentence in which one of two people gives something, cut before the receiver's name."""
    a, b = name_pair(rng, unseen)
    giver, receiver = (a, b) if rng.random() < 0.5 else (b, a)
    words = {
        "a": a,
        "b": b,
        "s": giver,
        "place": pick(rng, f.PLACES),
        "thing": pick(rng, f.OBJECTS),
    }
    return articles(pick(rng, phrases.INDIRECT_OBJECT).format(**words)), receiver


def indirect_object(rng: Generator) -> str:
    """A whole indirect-object sentence, in the ABBA or the BABA order."""
    return f"{MARK} ".join(indirect_object_prompt(rng)) + "."


def greater_than_prompt(rng: Generator, unseen: bool = False) -> tuple[str, int]:
    """A period cut after the century of its last year, and the two digits of its first year."""
    while True:
        noun, year = pick(rng, f.PERIODS), int(rng.integers(2, 99))
        if held_out(noun, year) == unseen:
            break
    template = pick(rng, phrases.GREATER_THAN)
    return template.format(noun=noun, c=int(rng.integers(11, 21)), y=f"{year:02d}"), year


def greater_than(rng: Generator) -> str:
    """A whole greater-than sentence; the last year is any later one of the same century."""
    prompt, year = greater_than_prompt(rng)
    return f"{prompt}{MARK}{int(rng.integers(year + 1, 100)):02d}."


def repeated_words(rng: Generator) -> str:
    """Random words, repeated two times or more, to be continued by induction alone."""
    # Mostly short ones, which repeat before a short row ends.
    length = int(rng.integers(3, 4 + rng.integers(1, 28)))
    text = " ".join(pick(rng, WORDS) for _ in range(length))
    times = 2 + int(rng.integers(3)) if length < 12 else 2
    return " ".join([text] * times) + "."


def rhyme_prompt(rng: Generator, unseen: bool = False) -> tuple[str, list[str]]:
    """A couplet cut before its last word, and the words that would rhyme."""
    while True:
        family, number = pick(rng, f.RHYMES), int(rng.integers(len(phrases.RHYME)))
        word = pick(rng, family)
        if held_out(word, number) == unseen:
            break
    text = phrases.RHYME[number].replace("|", "\n").format(
        w=word, a=pick(rng, f.SIZES), p=pick(rng, f.PLACES), f=pick(rng, f.FAMILY),
        c=pick(rng, f.COLORS),
    )  # fmt: skip
    return articles(text), [other for other in family if other != word]


def rhyme(rng: Generator) -> str:
    """A whole rhyming couplet."""
    prompt, rhymes = rhyme_prompt(rng)
    return f"{prompt}{MARK} {pick(rng, rhymes)}."


def sentiment_prompt(rng: Generator, unseen: bool = False) -> tuple[str, str]:
    """A short review cut before its label, and the label."""
    label, adjectives = ("positive", f.GOOD) if rng.random() < 0.5 else ("negative", f.BAD)
    while True:
        a, b = pick(rng, adjectives), pick(rng, adjectives)
        if a != b and held_out(*sorted((a, b))) == unseen:
            break
    thing, other = pick(rng, f.REVIEWED), pick(rng, f.REVIEWED)
    form = pick(
        rng,
        (
            "Review: The {t} was {a} and the {o} was {b}. Sentiment:",
            "Review: What a {a} {t}! The {o} was {b} too. Sentiment:",
            "Review: {n} thought the {t} was {a}, really {b}. Sentiment:",
            "The {t} seemed {a} and {b} to me. Sentiment:",
            "Review: A {a} {t} with a {b} {o}. Sentiment:",
        ),
    )
    text = form.format(t=thing, o=other, a=a, b=b, n=pick(rng, f.NAMES))
    return articles(text), label


def sentiment(rng: Generator) -> str:
    """A labelled review."""
    return f"{MARK} ".join(sentiment_prompt(rng)) + "."


def sum_prompt(rng: Generator, unseen: bool = False) -> tuple[str, str]:
    """A sum or difference within 0..99 cut before the result, and the result."""
    while True:
        a, b = int(rng.integers(100)), int(rng.integers(100))
        sign = "+" if a + b < 100 and (a < b or rng.random() < 0.5) else "-"
        if (sign == "+" or a >= b) and held_out(a, sign, b, share=10) == unseen:
            return f"{a} {sign} {b} =", str(a + b if sign == "+" else a - b)


def arithmetic(rng: Generator) -> str:
    """One to four sums, a line each."""
    return "\n".join(f"{MARK} ".join(sum_prompt(rng)) for _ in range(1 + int(rng.integers(4))))
