"""Sentence templates for the facts: every relation has training phrasings and held-out ones.

A template ends just before the answer. `{x}` is the subject of the fact and `{n}` a first name.
The held-out phrasings never occur in the training text; they measure whether the model learned
the fact or only the sentence.
"""

TRAIN = {
    "capital": """
The capital of {x} is
The capital city of {x} is
{x}'s capital is
{x}'s capital city is called
In {x}, the capital is
In {x} the capital city is
What is the capital of {x}? The answer is
Question: what is the capital of {x}? Answer:
Q: Which city is {x}'s capital? A:
Country: {x}. Capital:
The government of {x} sits in
The parliament of {x} meets in
{x} is governed from
If you visit the capital of {x}, you visit
The country called {x} has its capital in
{x} is a country whose capital is
{n} knows that the capital of {x} is
{n} flew to the capital of {x}, which is
A map of {x} shows the capital,
The city that serves as the capital of {x} is
The name of {x}'s capital city is
We learned at school that the capital of {x} is
Question: what is {x}'s capital? The answer is
Question: which city does the government of {x} sit in? The answer is
Everyone knows that {x}'s capital is
Everyone in {x} knows the capital,
On a map, {x}'s capital is
{n} asked about the capital of {x}, and was told that it is
""",
    "language": """
The language of {x} is
The main language of {x} is
The official language of {x} is
The language spoken in {x} is
The main language spoken in {x} is called
{x}'s language is
People in {x} speak
The people of {x} speak
In {x}, people speak
In {x} the main language is
Children in {x} learn to speak
Most people who live in {x} speak
What language do people speak in {x}? They speak
Question: what is the language of {x}? Answer:
Q: Which language is spoken in {x}? A:
Country: {x}. Language:
{n} comes from {x} and speaks
{n} grew up in {x}, so at home the family speaks
Newspapers in {x} are written in
Before moving to {x}, {n} studied
At school in {x}, lessons are held in
The name of {x}'s language is
{x} is a country where people speak
Question: which language is spoken in {x}? The answer is
Question: what do people in {x} speak? The answer is
What is the language of {x}? The answer is
{n} asked about {x}'s language, and the answer is
{n} moved to {x} and now speaks
If you live in {x}, you speak
If you come from {x}, your language is
Everyone in {x} speaks
The language that people use in {x} is
""",
    "currency": """
The currency of {x} is the
{x}'s currency is the
The currency used in {x} is the
The money of {x} is called the
In {x}, people pay with the
In {x} the currency is the
People in {x} pay with the
Shops in {x} take the
What is the currency of {x}? It is the
Question: what money is used in {x}? Answer: the
Q: Which currency is used in {x}? A: the
Country: {x}. Currency: the
{n} paid for lunch in {x} with the
Before flying to {x}, {n} bought some of its currency, the
The central bank of {x} issues the
{x} is a country that uses the
If you shop in {x}, you need the
The coins and notes of {x} belong to a currency called the
Workers in {x} earn their money in the
The name of {x}'s currency is the
Question: what is the currency of {x}? The answer is the
Question: which money do people in {x} use? The answer is the
What is the money of {x}? The answer is the
{n} asked about {x}'s currency, and the answer is the
{n} moved to {x} and now uses the
{n} lives in {x} and pays with the
Everyone in {x} uses the
The currency that people use in {x} is the
The money that people need in {x} is the
""",
    "continent": """
{x} is in
{x} is a country in
{x} is located in
The continent of {x} is
{x} is on the continent of
{x} is a part of
What continent is {x} in? It is in
Question: on which continent is {x}? Answer:
Q: Which continent is {x} part of? A:
Country: {x}. Continent:
On a map, you find {x} in
The country called {x} lies in
{n} went to {x}, which is in
{n} was born in {x}, a country in
When you are in {x}, you are in
The land of {x} belongs to
To reach {x}, you must travel to
The name of {x}'s continent is
{x} can be found on the continent called
Question: what continent is {x} part of? The answer is
Question: on which continent does {x} lie? The answer is
What is the continent of {x}? The answer is
{n} asked about {x}'s continent, and the answer is
{n} travelled to {x}, which is a country in
The continent that {x} belongs to is
""",
    "country": """
{x} is the capital of
{x} is the capital city of
The country whose capital is {x} is
{x} is a city in
The city of {x} is in
If you are in {x}, you are in
Question: which country has {x} as its capital? Answer:
Capital: {x}. Country:
{n} lives in {x}, the capital of
From {x}, a government rules
The name of the country around {x} is
Question: {x} is a city in which country? Answer:
Question: which country is {x} in? The answer is
{n} asked about {x}, a city in
{n} visited {x}, the capital of
""",
}

HELD_OUT = {
    "capital": """
The capital of the country {x} is
{n} says that the capital city of {x} is
Question: name the capital of {x}. Answer:
In {x}, the capital city is called
What is {x}'s capital city? It is
The name of the capital of {x} is
Everyone in {x} knows that the capital city is
Question: which city is the capital of {x}? The answer is
{n} asked about {x}'s capital, and the answer is
On a map, the capital city of {x} is called
""",
    "language": """
The official language in {x} is
{n} says that the main language of {x} is
Question: which language do people in {x} speak? Answer:
In {x}, the official language is
Most people in {x} speak
The name of the language spoken in {x} is
Everyone who lives in {x} learns to speak
Question: what language do the people of {x} speak? The answer is
{n} lives in {x} and speaks
If you live in {x}, your main language is
""",
    "currency": """
The official currency of {x} is the
{n} says that the currency of {x} is the
Question: what is {x}'s currency? Answer: the
In {x}, the currency is called the
People who live in {x} pay with the
The name of the currency of {x} is the
Everyone in {x} pays for lunch with the
Question: which currency is used in {x}? The answer is the
{n} moved to {x} and now pays with the
The money that people use in {x} is the
""",
    "continent": """
The continent where {x} lies is
{n} says that {x} is located in
Question: what continent is {x} in? Answer:
{x} is a country on the continent of
The country {x} lies in
The name of the continent of {x} is
The country of {x} is located on the continent of
Question: which continent is {x} in? The answer is
{n} travelled to {x}, a country located in
On the map, {x} lies in
""",
    "country": """
{x} is the capital city of the country
{n} says that {x} is the capital of
Question: {x} is the capital of what country? The answer is
{n} went to {x}, the capital of
The city of {x} is the capital of
The name of the country whose capital is {x} is
Question: {x} is the capital of which country? Answer:
{n} visited {x}, the capital city of
""",
}


def _lines(table: dict[str, str]) -> dict[str, list[str]]:
    return {relation: block.strip().splitlines() for relation, block in table.items()}


FACTS_TRAIN = _lines(TRAIN)
FACTS_HELD_OUT = _lines(HELD_OUT)

OPENINGS = """
As everyone knows,
In fact,
People say that
It is true that
Remember that
Today we learn that
{n} said that
{n} wrote that
""".strip().splitlines()

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
