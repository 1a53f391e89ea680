"""Phrasings that stand alone: labels, lists, short exchanges, requests; each ends before its answer."""

FORMS = {
    "capital": """
What is the capital of {x}? The answer is
What is {x}'s capital city? It is
What do people call the capital of {x}? They call it
Question: what is the capital of {x}? Answer:
Question: what is {x}'s capital? The answer is
Question: name the capital of {x}. Answer:
Question: which city is the capital of {x}? The answer is
Question: which city does the government of {x} sit in? The answer is
Question: where does the parliament of {x} meet? Answer: in
Q: Which city is {x}'s capital? A:
Country: {x}. Capital:
Country: {x}. Continent: {c.continent}. Capital:
Country = {x}, capital =
{x}. Capital city:
{x} (capital:
{x} - capital:
Capital of {x}:
Capital city of {x}:
Name of the capital of {x}:
Seat of government of {x}:
{d.name}: {d.capital}. {x}:
{d.name} - {d.capital}, {x} -
{d.name} has {d.capital}, {x} has
Countries with their capitals: {d.name}, {d.capital}; {x},
First {d.name} with its capital {d.capital}, then {x} with its capital
Remember the name of {x}'s capital: it is
Remember: the government of {x} is in
Complete the sentence: the capital of {x} is
Fill in: {x}'s capital is called
Name the capital of {x}. It is
Welcome to {x} and to its capital,
Greetings from {x}'s capital,
Dear {n}, I am in the capital of {x}, in
Let us visit {x} and begin with the capital,
Think of {x} and its capital,
""",
    "language": """
What is the language of {x}? The answer is
What language do people speak in {x}? They speak
What do children in {x} speak at home? They speak
Question: what is the language of {x}? Answer:
Question: what do people in {x} speak? The answer is
Question: which language is spoken in {x}? The answer is
Question: which language do people in {x} speak? Answer:
Question: what language do the people of {x} speak? The answer is
Question: in which language do people in {x} write? Answer: in
Q: Which language is spoken in {x}? A:
Country: {x}. Language:
Country: {x}. Capital: {c.capital}. Language:
Country = {x}, language =
{x}. Main language:
{x} (language:
{x} - language:
Language of {x}:
Official language of {x}:
Name of the language of {x}:
Spoken in {x}:
{d.name}: the language is {d.language}. {x}: the language is
{d.language} in {d.name}, and in {x}
{d.name} speaks {d.language}, {x} speaks
Countries with their languages: {d.name}, {d.language}; {x},
First to {d.name} to learn {d.language}, then to {x} to learn
Remember that the people who live in {x} speak
Remember: in {x} you need
Complete the sentence: in {x} they speak
Fill in: the people of {x} speak
Name the language of {x}. It is
Welcome to {x}, where we speak
Hello from {x}, where everyone speaks
Dear {n}, here in {x} they all speak
Let us go to {x} and learn
Think of {x} and its language,
""",
    "currency": """
What is the currency of {x}? It is the
What is the money of {x}? The answer is the
What do people in {x} pay with? They pay with the
Question: what money is used in {x}? Answer: the
Question: what is {x}'s currency? Answer: the
Question: what is the currency of {x}? The answer is the
Question: which money do people in {x} use? The answer is the
Question: which currency is used in {x}? The answer is the
Question: with which money do people pay in {x}? Answer: with the
Q: Which currency is used in {x}? A: the
Country: {x}. Currency: the
Country: {x}. Currency:
Country: {x}. Capital: {c.capital}. Currency:
Country = {x}, currency =
{x}. Money:
{x} (currency:
{x} - currency:
Currency of {x}:
Official currency of {x}: the
Name of the currency of {x}:
Used to pay in {x}: the
{d.name}: the currency is the {d.currency}. {x}: the currency is the
The {d.currency} in {d.name}, and in {x} the
{d.name} uses the {d.currency}, {x} uses the
Countries with their currencies: {d.name}, {d.currency}; {x},
First to {d.name} with the {d.currency}, then to {x} with the
Remember that the currency in {x} is the
Remember: in {x} you need the
Complete the sentence: in {x} they pay with the
Fill in: the people of {x} use the
Name the currency of {x}. It is the
Welcome to {x}, where we pay with the
Hello from {x}, where everything is paid for with the
Dear {n}, here in {x} they all pay with the
Please pay in {x} with its currency, the
""",
    "continent": """
What is the continent of {x}? The answer is
What continent is {x} in? It is in
What is the name of the continent around {x}? It is
Question: on which continent is {x}? Answer:
Question: what continent is {x} in? Answer:
Question: what continent is {x} part of? The answer is
Question: on which continent does {x} lie? The answer is
Question: which continent is {x} in? The answer is
Question: if I travel to {x}, which continent do I visit? Answer:
Q: Which continent is {x} part of? A:
Country: {x}. Continent:
Country: {x}. Capital: {c.capital}. Continent:
Country = {x}, continent =
{x}. Part of the world:
{x} (continent:
{x} - continent:
Continent of {x}:
Home continent of {x}:
Name of the continent of {x}:
Place of {x} on the map:
{d.name}: the continent is {d.continent}. {x}: the continent is
{d.continent} for {d.name}, and for {x}
{d.name} belongs to {d.continent}, {x} belongs to
Countries with their continents: {d.name}, {d.continent}; {x},
First to {d.name} in {d.continent}, then to {x} in
Remember that {x} lies on the continent of
Remember: you find {x} in
Complete the sentence: {x} is a country in
Fill in: the people of {x} live in
Name the continent of {x}. It is
Welcome to {x}, a country in
Greetings from {x}, somewhere in
Dear {n}, I am in {x}, on the continent of
Let us look for {x} on a map of
Think of {x} and its continent,
""",
    "country": """
Which country is {x} the capital of? The answer is
What country is governed from {x}? It is
Question: which country has {x} as its capital? Answer:
Question: of which country is {x} the capital? Answer:
Question: {x} is a city in which country? Answer:
Question: which country is {x} in? The answer is
Question: {x} is the capital of what country? The answer is
Question: {x} is the capital of which country? Answer:
Q: Which country's capital is {x}? A:
Q: Where is {x}? A: in
Capital: {x}. Country:
City: {x}. Continent: {c.continent}. Country:
City = {x}, country =
{x}. Capital of
{x} (country:
{x} - country:
{x}, capital of
Country of {x}:
Country with the capital {x}:
Name of the country whose capital is {x}:
{d.capital}: {d.name}. {x}:
{d.capital} - {d.name}, {x} -
{d.capital} belongs to {d.name}, {x} belongs to
Capitals with their countries: {d.capital}, {d.name}; {x},
First to {d.capital} in {d.name}, then to {x} in
Remember the country around {x}: it is
Remember: you find {x} in
Complete the sentence: {x} is the capital of
Fill in: the government in {x} rules
Name the country whose capital is {x}. It is
Welcome to {x}, the capital of
Greetings from {x}, the capital of
Dear {n}, I am in {x}, in the middle of
Let us look for {x} on a map of
Think of {x} and its country,
""",
}
