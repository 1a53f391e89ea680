"""Evaluation items: prompts whose content is held out of the training text."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from jmi_models.embedded import corpus, facts, phrases, stories


class Item(NamedTuple):
    """A prompt and the strings that are right as its next token."""

    task: str
    prompt: str
    answers: frozenset[str]


def _item(task: str, prompt: str, answers: str | list[str]) -> Item:
    words = [answers] if isinstance(answers, str) else answers
    return Item(task, prompt, frozenset(" " + word.split()[0] for word in words))


def fact_items(rng: Generator) -> list[Item]:
    """Facts in every phrasing the training text never uses, each about a third of the countries."""
    items = []
    for kind, phrasings in {"facts": phrases.FACTS_HELD_OUT, "blind facts": phrases.FACTS_BLIND}.items():
        for relation, templates in phrasings.items():
            for template in templates:
                for i in rng.permutation(len(facts.COUNTRIES))[: len(facts.COUNTRIES) // 3]:
                    prompt, answer = corpus.fact_prompt(rng, relation, template, facts.COUNTRIES[i])
                    items.append(_item(f"{kind}: {relation}", prompt, answer))
    return items


def greater_than_items(rng: Generator, count: int) -> list[Item]:
    """Unseen pairs of noun and year; any later year of the century is right."""
    items = []
    for _ in range(count):
        prompt, year = corpus.greater_than_prompt(rng, unseen=True)
        later = frozenset(f"{end:02d}" for end in range(year + 1, 100))
        items.append(Item("greater-than", prompt, later))
    return items


def evaluation_items(seed: int = 1, count: int = 500) -> list[Item]:
    """Held-out prompts: all facts, and `count` of every other task with a next-token answer."""
    rng = np.random.default_rng([seed, 2])
    tasks: dict[str, Callable[..., tuple[str, str | list[str]]]] = {
        "indirect object": corpus.indirect_object_prompt,
        "rhyme": corpus.rhyme_prompt,
        "sentiment": corpus.sentiment_prompt,
        "arithmetic": corpus.sum_prompt,
        "pronoun": stories.pronoun_prompt,
        "agreement": stories.agreement_prompt,
    }
    items = fact_items(rng) + greater_than_items(rng, count)
    for task, prompt in tasks.items():
        items += [_item(task, *prompt(rng, unseen=True)) for _ in range(count)]
    return items
