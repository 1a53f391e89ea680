"""Statements of one fact beside others: two facts about a country, or the same about two countries.

`{c}` is the country the fact is about and `{d}` another one.
"""

COMPARISONS = {
    "capital": """
The language of {x} is {c.language} and the capital is
The currency of {x} is the {c.currency}, and its capital is
People in {x} speak {c.language}, and their capital is called
People in {x} pay with the {c.currency}, and their government sits in
{x} is a country in {c.continent} with a capital called
{x} lies in {c.continent} and is governed from
The capital of {d.name} is {d.capital}, but the capital of {x} is
{d.capital} is the capital of {d.name}, and the capital of {x} is
{d.name} is governed from {d.capital}, and {x} is governed from
The parliament of {d.name} meets in {d.capital}, and that of {x} in
Unlike {d.name}, {x} has its capital in
{x}, unlike {d.name}, has as its capital
{n} left {d.capital}, the capital of {d.name}, for the capital of {x},
{n} works in {d.capital}, but comes from the capital of {x},
""",
    "language": """
The capital of {x} is {c.capital} and its language is
The currency of {x} is the {c.currency}, and the language is
People in {x} pay with the {c.currency} and speak
{x} is a country in {c.continent} where people speak
{c.capital} is the capital of {x}, and people there speak
In {c.capital}, the capital of {x}, you hear
People in {d.name} speak {d.language}, and people in {x} speak
The language of {d.name} is {d.language}, and that of {x} is
In {d.name} books are written in {d.language}, and in {x} in
{n} left {d.name} for {x}, so now {n} hears people speak
{n} learned {d.language} in {d.name}, and then, in {x},
{n} travelled from {d.name} to {x} and had to speak
Just as people in {d.name} speak {d.language}, people in {x} speak
""",
    "currency": """
The capital of {x} is {c.capital} and its currency is the
The language of {x} is {c.language}, and the currency is the
People in {x} speak {c.language} and pay with the
{x} is a country in {c.continent} with a currency called the
{c.capital} is the capital of {x}, and people there pay with the
In {c.capital}, the capital of {x}, you pay with the
People in {d.name} pay with the {d.currency}, and people in {x} pay with the
The currency of {d.name} is the {d.currency}, and that of {x} is the
In {d.name} lunch is paid for with the {d.currency}, and in {x} with the
{n} left {d.name} for {x} and now pays with the
{n} had the {d.currency} from {d.name}, and in {x} you need the
{n} travelled from {d.name} to {x} and changed money into the
Just as people in {d.name} use the {d.currency}, people in {x} use the
""",
    "continent": """
The capital of {x} is {c.capital}, and the country lies in
The language of {x} is {c.language}, and its continent is
People in {x} speak {c.language}, and they live in
The currency of {x} is the {c.currency}, and the country is in
{c.capital} is the capital of {x}, a country in
{x}, with its capital {c.capital}, is in
{d.name} is in {d.continent}, and {x} is in
{d.name} lies in {d.continent}; {x} lies in
The continent of {d.name} is {d.continent}, and that of {x} is
{n} flew from {d.name} in {d.continent} to {x} in
{n} left {d.name} for {x}, a country in
{n} has seen {d.name}, which is in {d.continent}, and {x}, which is in
Just as {d.name} belongs to {d.continent}, {x} belongs to
""",
    "country": """
In {x}, people speak {c.language}, because it is the capital of
In {x}, you pay with the {c.currency}, as everywhere in
{x} lies in {c.continent} and is the capital of
{x} lies in {c.continent}, in a country called
You pay with the {c.currency} in {x}, the capital of
People speak {c.language} in {x}, a city in
{d.capital} is the capital of {d.name}, and {x} is the capital of
{d.capital} is in {d.name}, but {x} is in
{d.name} is governed from {d.capital}, and from {x} a government rules
The country around {d.capital} is {d.name}, and the country around {x} is
{n} left {d.capital} in {d.name} and flew to {x} in
{n} moved from {d.capital}, the capital of {d.name}, to {x}, the capital of
Unlike {d.capital}, {x} is a city in
Just as {d.capital} belongs to {d.name}, {x} belongs to
""",
}
