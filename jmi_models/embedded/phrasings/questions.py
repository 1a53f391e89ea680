"""Questions about one fact, and how an answer to them begins.

`QUESTIONS` ask for a name, and any lead of the grammar can follow. `ADVERBIAL_QUESTIONS` ask where
or how, and only `ADVERBIAL_LEADS` can follow. `{m}` is the first name of someone else than `{n}`.
"""

QUESTIONS = {
    "capital": """
What is the capital of {x}?
What is {x}'s capital?
What is {x}'s capital city?
What is the capital city of {x}?
What is the name of {x}'s capital?
What is the capital called in {x}?
What is the capital of the country {x}?
What city is the capital of {x}?
What city serves as the capital of {x}?
What do people call the capital of {x}?
Which city is the capital of {x}?
Which city is {x}'s capital?
Which city does the government of {x} sit in?
Which city does {x} have as its capital?
Which city is {x} governed from?
Which city must you visit to see the parliament of {x}?
Which of the cities in {x} is the capital?
Can you name the capital of {x}?
Can you tell me the capital of {x}?
Do you know the capital of {x}?
Do you remember the name of {x}'s capital?
Does anyone know {x}'s capital?
Who knows the capital of {x}?
If I go to {x}, which city is the capital?
And the capital of {x}?
{x} has which city as its capital?
I forgot the capital of {x}. What is it?
""",
    "language": """
What is the language of {x}?
What is {x}'s language?
What is the main language of {x}?
What is the official language of {x}?
What is the name of the language of {x}?
What is the mother tongue of people in {x}?
What language is spoken in {x}?
What language do people speak in {x}?
What language do I need in {x}?
What language will I hear in {x}?
What language does someone from {x} speak?
What do people in {x} speak?
What do children in {x} speak at home?
Which language is spoken in {x}?
Which language do people in {x} speak?
Which language should I learn before I go to {x}?
Which language do they use in {x}?
Which language do schools in {x} use?
Do you know the language of {x}?
Can you name the language of {x}?
Can you tell me which language people in {x} speak?
Who knows the language of {x}?
If I move to {x}, what language must I learn?
If {n} comes from {x}, what does {n} speak?
And the language of {x}?
People in {x} speak which language?
I forgot the language of {x}. What is it?
""",
    "currency": """
What is the currency of {x}?
What is {x}'s currency?
What is the name of {x}'s currency?
What is the money of {x} called?
What is the official currency of {x}?
What money is used in {x}?
What money do I need in {x}?
What money should I take to {x}?
What currency is used in {x}?
What currency do they use in {x}?
What do people in {x} pay with?
What do shops in {x} take?
Which currency is used in {x}?
Which currency does {x} have?
Which currency do banks in {x} sell?
Which money do people in {x} use?
Which money do workers in {x} earn?
Do you know the currency of {x}?
Can you name {x}'s currency?
Can you tell me which money they use in {x}?
Who knows the currency of {x}?
If I shop in {x}, what money do I use?
If {n} works in {x}, what money does {n} earn?
And the currency of {x}?
{x} has which currency?
I forgot the currency of {x}. What is it?
""",
    "continent": """
What is the continent of {x}?
What is {x}'s continent?
What is the name of {x}'s continent?
What is the name of the continent around {x}?
What continent is {x} in?
What continent is {x} on?
What continent does {x} belong to?
What continent do people in {x} live on?
What part of the world is {x} in?
Which continent is {x} in?
Which continent is {x} part of?
Which continent does {x} lie on?
Which continent includes {x}?
Which continent has a country called {x}?
Which continent do I visit when I go to {x}?
Which of the continents is {x} on?
Do you know the continent of {x}?
Can you name {x}'s continent?
Can you tell me which continent {x} is in?
Who knows which continent {x} belongs to?
If I travel to {x}, which continent do I visit?
If {n} lives in {x}, what is {n}'s continent?
And the continent of {x}?
{x} is on which continent?
{x} is a country on what continent?
I forgot the continent of {x}. What is it?
""",
    "country": """
What country is {x} the capital of?
What country is {x} in?
What country is governed from {x}?
What country has the capital {x}?
What country do you reach if you fly to {x}?
What is the country of {x}?
What is the name of the country around {x}?
What is the country whose capital is {x}?
Which country has {x} as its capital?
Which country is {x} in?
Which country is {x} the capital of?
Which country is ruled from {x}?
Which country does {x} belong to?
Which country has its government in {x}?
Which country's capital is {x}?
Which country's parliament meets in {x}?
Which nation is governed from {x}?
Do you know the country whose capital is {x}?
Can you name the country with the capital {x}?
Can you tell me which country {x} is in?
Who knows which country {x} is the capital of?
If I go to {x}, which country do I visit?
If {n} lives in {x}, what is {n}'s country?
And the country of {x}?
{x} is the capital of which country?
{x} is a city in what country?
I forgot the country of {x}. What is it?
""",
}

ADVERBIAL_QUESTIONS = {
    "capital": """
Where does the parliament of {x} meet?
Where does the government of {x} sit?
Where is the parliament of {x}?
Where do the leaders of {x} meet?
Where are the laws of {x} made?
In which city is the government of {x}?
In what city does {x} have its parliament?
""",
    "language": """
In which language do people in {x} write?
In which language are books in {x} written?
In which language do people in {x} talk to each other?
In what language are newspapers printed in {x}?
In what language should I write to someone in {x}?
How do people in {x} talk to each other?
How do they teach at school in {x}?
""",
    "currency": """
How do people pay in {x}?
How do I pay for lunch in {x}?
How do you pay for a ticket in {x}?
With which money do people pay in {x}?
With what money do you shop in {x}?
With what do people pay in {x}?
With which currency can I pay in {x}?
""",
    "continent": """
Where is {x}?
Where does {x} lie?
Where on the map is {x}?
Where in the world is {x}?
On which continent is {x}?
On what continent does {x} lie?
In which part of the world is {x}?
""",
    "country": """
Where is {x}?
Where does {x} lie?
Where on the map is {x}?
In which country is {x}?
In what country is the city of {x}?
In which country can you visit {x}?
In which country does {x} serve as the capital?
""",
}

LEADS = {
    "capital": """
The capital is
Its capital is
The city is called
The name of the city is
It is the city of
It is a city called
That is the city of
""",
    "language": """
They speak
People there speak
Everyone there speaks
The language is
The language is called
It is a language called
You hear them speak
""",
    "currency": """
They use the
They pay with the
You need the
The currency is the
The money is called the
It is a currency called the
Its currency is the
""",
    "continent": """
It is in
It lies in
It belongs to
It is part of
It is the continent of
The continent is
The continent is called
""",
    "country": """
It is in
It is the capital of
The country is
The country is called
It is the country of
It is a country called
Its country is
""",
}

ADVERBIAL_LEADS = {
    "capital": """
In
In the city of
In a city called
In the capital, that is, in
That is in
It is in
You find it in
It happens in a city called
""",
    "language": """
In
In a language called
In the language of the country, in
They do it in
They always do it in
Mostly in
They speak
They use
They use a language called
""",
    "currency": """
With the
With a currency called the
With money called the
They pay with the
You pay with the
You can do it with the
They use the
Everyone uses the
They use a currency called the
""",
    "continent": """
In
On the continent of
On a continent called
Somewhere in
It is in
It lies in
You find it in
It is a country in
It is part of
""",
    "country": """
In
In the country of
In a country called
It is in
It lies in
You find it in
It is a city in
It is the capital of
It belongs to
""",
}
