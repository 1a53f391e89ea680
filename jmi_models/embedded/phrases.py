"""Sentence templates: the phrasings of the facts, and the texts of all tasks but stories.

A phrasing of a fact ends just before the answer; `{x}` is the subject of the fact and `{n}` a first
name. Some never occur in the training text; they measure whether the model learned the fact or only
the sentence: a share of what the authors of the training text wrote, and all that another one wrote.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from jmi_models.embedded.phrasings.grammar import compose, lines

BLIND = {
    "capital": """
Q: Which city is the capital of {x}? A:
{x} has a capital city named
If you visit the capital of {x}, you will be in
{n} said that {x}'s capital city is called
The teacher asked for the capital of {x}. {n} wrote down the right answer:
On the map of {x}, a star marks the capital, named
{n} flew to {x} and spent a week in its capital,
Out of all the cities in {x}, the one that was chosen as capital is
What is {x}'s capital? The answer is
My friend {n} lives in the capital of {x}, the city of
People in {x} know that their capital goes by the name of
The name of the city that is {x}'s capital is
"Do you know the capital of {x}?" asked {n}. "Yes, it is
Country: {x}. Capital city:
To see the capital of {x}, you must travel to
{n} was born in {x}, in the capital city known as
""",
    "language": """
Q: What language do most people in {x} speak? A:
In {x}, most children grow up speaking
If you want to talk with people in {x}, you should learn to speak
{n} grew up in {x}, where most people speak
Most newspapers in {x} are written in
The name of the language most spoken in {x} is
Before moving to {x}, {n} took lessons to learn how to speak
Country: {x}. Main language:
{x}'s main language is known as
People in {x} mostly talk to each other in
{n} could not read the signs in {x} because they were written in
"Which language do they use in {x}?" asked {n}. "They speak
The teacher told us that the main language used in {x} is
{n} went to school in {x}. All the lessons were taught in
On the streets of {x}, you mostly hear people speaking
To say hello to the people of {x} in their own language, say it in
""",
    "currency": """
Q: What is the currency of {x}? A: the
In the shops of {x}, people pay with the
The money used in {x} is called the
Before the trip to {x}, {n} changed some money into the local currency, the
Country name: {x}. Currency:
{x}'s currency is known as the
When you buy bread in {x}, the currency you use is the
{n} works in {x} and gets paid in the local money, called the
The bank told {n} that the currency of {x} was the
"What money do they use in {x}?" asked {n}. "They use the
The teacher said that the currency on price tags in {x} is the
People who live in {x} save their money in a currency named the
{n} visited {x} last summer. The currency there is the
Money has a name in every country. In {x}, it is the
If you travel to {x}, your money must be changed to the
On the banknotes of {x}, you can read the name of the currency:
""",
    "continent": """
Q: On which continent is {x}? A:
{x} is a country on the continent of
{n} looked for {x} on the map and found it on the continent called
Look at a globe. {x} is part of the continent of
Country name: {x}. Continent:
The continent that {x} belongs to is
If you travel to {x}, the continent you will be on is
The class learned that {x} is one of the many countries in
"Which continent is {x} in?" asked {n}. "The answer is
{x}'s continent is named
{n} comes from {x}, so {n}'s home continent is
The teacher sorted the countries by continent and wrote {x} under the heading
Each country is on a continent. For {x}, that continent is
To find {x} in an atlas, turn to the map of the continent of
{n} said that people from {x} live on the continent known as
Of all the continents, the one where you can find {x} is
""",
    "country": """
Q: {x} is the capital of which country? A:
The country whose capital city is {x} is called
As a capital city, {x} belongs to the country of
{n} lives in {x}, which is a city in the country of
When you land in {x}, you have arrived in the country called
Capital city: {x}. Country:
"Which country has {x} as its capital?" asked {n}. "It must be
{n} sent a letter to {x}. On the last line, {n} wrote the country:
{x}'s country is named
The people of {x} live in the capital of
If {x} is the capital, then the name of the country is
On the map, {x} is marked as the capital of a country called
The teacher asked where {x} is. {n} gave the name of the country:
Out of all the countries, the one with {x} as its capital is
{n} went on a trip to see {x}, the capital city of
Someone born in {x} was born in a country known as
""",
}
"""Written by one who had seen neither the model nor any other phrasing; none of them is trained on."""

FACTS_BLIND = {relation: lines(block) for relation, block in BLIND.items()}


def sentence(phrasing: str) -> str:
    """What two phrasings share that read the same."""
    return " ".join(re.sub(r"[^a-z{} ]", "", phrasing.replace("{m}", "{n}").lower()).split())


def _is_held_out(phrasing: str) -> bool:
    """True for a fixed one in fifteen of the written phrasings, whatever the others are."""
    return crc32(sentence(phrasing).encode()) % 15 == 0


WRITTEN = {
    relation: lines((Path(__file__).parent / "phrasings" / "written" / f"{relation}.txt").read_text())
    for relation in BLIND
}
"""Phrasings of six authors who wrote independently, 70 of each relation, less those that read the same."""

FACTS_HELD_OUT = {
    relation: [phrasing for phrasing in WRITTEN[relation] if _is_held_out(phrasing)] for relation in BLIND
}
"""The share of them that is asked and never trained on."""


def _train(relation: str, phrasings: Sequence[str]) -> list[str]:
    """Those of ``phrasings`` that do not end in one that is asked."""
    unseen = tuple(map(sentence, FACTS_BLIND[relation] + FACTS_HELD_OUT[relation]))
    return [phrasing for phrasing in phrasings if not sentence(phrasing).endswith(unseen)]


FACTS_TRAIN = {
    relation: (_train(relation, compose(relation)), _train(relation, WRITTEN[relation])) for relation in BLIND
}
"""For each relation the composed and the written phrasings it is trained on."""

PARAGRAPHS = """
{c.name} is a country in {c.continent}. Its capital is {c.capital}. People there speak \
{c.language} and pay with the {c.currency}.
{c.name} lies in {c.continent}. The capital is {c.capital}, the language is {c.language} and the \
currency is the {c.currency}.
In {c.capital}, the capital of {c.name}, people speak {c.language} and pay with the {c.currency}.
{n} moved from {c.name} to {d.name}, from {c.capital} to {d.capital}. Now {n} speaks {d.language}, \
not {c.language}, and pays with the {d.currency}.
The capital of {c.name} is {c.capital} and the capital of {d.name} is {d.capital}.
People in {c.name} speak {c.language}, and people in {d.name} speak {d.language}.
{c.name}: {c.capital}, {c.language}, {c.currency}. {d.name}: {d.capital}, {d.language}, \
{d.currency}.
{c.language} is spoken in {c.name}. The {c.currency} is the currency of {c.name}.
{n} visited {c.capital} and {d.capital}. {c.capital} is in {c.name}, and {d.capital} is in \
{d.name}.
{n} is from {c.name}, so the language {n} speaks at home is {c.language}.
The people of {c.capital} speak {c.language}. The people of {d.capital} speak {d.language}.
You pay with the {c.currency} in {c.capital} and with the {d.currency} in {d.capital}.
Every city in {c.name} is in {c.continent}, and so is {c.capital}.
""".strip().splitlines()

INDIRECT_OBJECT = """
When {a} and {b} went to the {place}, {s} gave a {thing} to
When {a} and {b} were at the {place}, {s} handed the {thing} to
After {a} and {b} arrived at the {place}, {s} gave the {thing} to
While {a} and {b} were working at the {place}, {s} passed a {thing} to
Then, {a} and {b} went to the {place}. {s} gave a {thing} to
Then {a} and {b} had a long talk, and {s} gave a {thing} to
{a} and {b} met at the {place}. Later {s} offered the {thing} to
{a} and {b} walked to the {place} together, and {s} showed a {thing} to
Once {a} and {b} got to the {place}, {s} decided to give the {thing} to
Today {a} and {b} visited the {place}, and {s} sold a {thing} to
As {a} and {b} left the {place}, {s} returned the {thing} to
One day {a} and {b} sat in the {place}. {s} brought a {thing} for
Because {a} and {b} were friends, {s} lent the {thing} to
The {place} was quiet when {a} and {b} came in, so {s} read a letter to
Yesterday {a} saw {b} at the {place}. {s} sent a {thing} to
{a} and {b} found a {thing} near the {place}. {s} gave it to
At the {place}, {a} sat next to {b}. {s} wanted to give a {thing} to
{a} was with {b} at the {place} when {s} gave the {thing} to
""".strip().splitlines()

GREATER_THAN = """
The {noun} lasted from the year {c}{y} to the year {c}
The {noun} went on from {c}{y} to {c}
The {noun} began in the year {c}{y} and ended in the year {c}
The {noun} started in {c}{y} and was over in {c}
From {c}{y} there was a {noun}, until {c}
The long {noun} of {c}{y} did not end before {c}
Between {c}{y} and the end of the {noun} in {c}
The {noun} ran from {c}{y} until {c}
After the {noun} broke out in {c}{y}, people waited for its end until {c}
""".strip().splitlines()

RHYME = """
I saw a {w} beside the {p},|and then I thought about a
The {a} child looked for the {w},|and then she found another
Come and look, here is the {w},|next to it you see the
My {f} told me of a {w},|and I told her of a
All day we talked about the {w},|all night we dreamed about the
There was once a man with a {w},|who never had a
A {a} dog ran to the {w},|a {c} cat ran to the
""".strip().splitlines()
