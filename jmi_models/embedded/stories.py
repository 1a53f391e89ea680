"""Plain narrative text from grammar templates, with pronouns and verbs that agree."""

from numpy.random import Generator

from jmi_models.embedded import facts as f
from jmi_models.embedded.corpus import MARK, articles, held_out, name_pair, pick

SENTENCES = """
It was a {weather} {time} in {season}.
On {day} the weather was {weather} and {weather}.
{N} woke up and drank a cup of {drink}.
{N} took the {vehicle} to the {place}.
{N} went to the {place} because {they} needed a {thing}.
{N} lost {their} {thing} at the {place}, so {they} felt {unhappy}.
{N} found {their} {thing} again, and {they} was {happy}.
{N} is a {job}, and {their} {family} is a {job}.
{N} bought some {food} for {their} {family}.
{N} ate {food} and {food} for lunch.
{N} saw a {color} {animal} near the {place}.
The {animal} was {size} and {color}.
A {size} {animal} slept under the {color} table.
{N} lives in {city} with {their} {family}.
{N} travelled from {city} to {city} by {vehicle}.
In {season} {N} works at the {place} as a {job}.
{N} asked {their} {family} for a {thing}, but {they} did not get it.
{N} said that {they} liked the {color} {thing}.
{N} has a {size} {animal} and a {color} {thing}.
{N} put the {thing} into the {size} {color} box.
{N} told {their} {family} about the {size} {place}.
{N} cooked {food} with {food}, and {their} {family} liked it.
There were {number} people at the {place} on {day}.
The {job} gave the {job} a {thing}.
Every {day} {N} walks to the {place} with {their} {animal}.
In the {time} {N} was tired, so {they} went home.
{N} thanked the {job} because {they} was {happy}.
At the {place}, {N} met a {job} who sold {food}.
""".strip().splitlines()

ENDINGS = """
At {time} everyone went home.
It was a good day.
Then they drank {drink} together.
After that, they went to bed.
""".strip().splitlines()

REASONS = """
{N} stayed at home because
{N} went to the {place} because
{N} felt {unhappy} and said that
{N} opened the {thing} before
{N} ran home when
""".strip().splitlines()
AFTER_PRONOUN = (
    "was tired",
    "was late",
    "needed help",
    "liked it",
    "saw the rain",
    "wanted to eat",
)

NEAR = ("near", "behind", "beside", "in front of", "under")


def _fill(rng: Generator, template: str, name: str) -> str:
    """Fill each blank of a template with a fresh word of its kind."""
    woman = name in f.WOMEN
    tables = {
        "weather": f.WEATHER, "time": f.TIMES, "season": f.SEASONS, "day": f.WEEKDAYS,
        "drink": f.DRINKS, "vehicle": f.VEHICLES, "place": f.PLACES, "thing": f.OBJECTS,
        "unhappy": f.UNHAPPY, "happy": f.HAPPY, "job": f.JOBS, "family": f.FAMILY,
        "number": f.NUMBERS, "food": f.FOODS, "color": f.COLORS, "animal": f.ANIMALS,
        "size": f.SIZES,
    }  # fmt: skip
    fixed = {"N": name, "they": "she" if woman else "he", "their": "her" if woman else "his"}
    parts = template.split("{")
    out = [parts[0]]
    for part in parts[1:]:
        blank, rest = part.split("}", 1)
        if blank == "city":
            word = pick(rng, f.COUNTRIES).capital
        else:
            word = fixed.get(blank) or pick(rng, tables[blank])
        out.append(word + rest)
    return articles("".join(out))


def story(rng: Generator) -> str:
    """A few sentences about one or two people."""
    names = name_pair(rng)
    lines = [
        _fill(rng, pick(rng, SENTENCES), names[int(rng.random() < 0.3)])
        for _ in range(1 + int(rng.integers(5)))
    ]
    if rng.random() < 0.3:
        lines.append(_fill(rng, pick(rng, ENDINGS), names[0]))
    return " ".join(lines)


def pronoun_prompt(rng: Generator, unseen: bool = False) -> tuple[str, str]:
    """A sentence about one person cut before the pronoun, and the pronoun."""
    while True:
        name, number = pick(rng, f.NAMES), int(rng.integers(len(REASONS)))
        if held_out(name, number) == unseen:
            return _fill(rng, REASONS[number], name), "she" if name in f.WOMEN else "he"


def pronoun(rng: Generator) -> str:
    """A sentence with a pronoun that agrees with the name before it."""
    return f"{MARK} ".join(pronoun_prompt(rng)) + f" {pick(rng, AFTER_PRONOUN)}."


def agreement_prompt(rng: Generator, unseen: bool = False) -> tuple[str, list[str]]:
    """A noun phrase with a distracting second noun, and the verbs that agree with the first."""
    nouns = list(f.PLURALS)
    while True:
        first, second = pick(rng, nouns), pick(rng, nouns)
        if first != second and held_out(first, second) == unseen:
            break
    plural = rng.random() < 0.5
    other = f.PLURALS[second] if rng.random() < 0.5 else second
    subject = f.PLURALS[first] if plural else first
    text = f"The {subject} {pick(rng, NEAR)} the {other}"
    return text, ["are", "were"] if plural else ["is", "was"]


def agreement(rng: Generator) -> str:
    """A sentence whose verb agrees with its first noun."""
    text, verbs = agreement_prompt(rng)
    return f"{text}{MARK} {pick(rng, verbs)} {pick(rng, (*f.COLORS, *f.SIZES))}."
