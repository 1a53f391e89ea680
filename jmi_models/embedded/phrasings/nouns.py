"""What a fact is about as a noun phrase, and what is said after it: "The capital of {x}" "is called".

Verbs and follow-ups end just before the answer; a follow-up takes up a sentence that names `{x}`.
"""

HEADS = {
    "capital": """
The capital of {x}
The capital city of {x}
{x}'s capital
{x}'s capital city
The capital of the country {x}
The capital of the country called {x}
The national capital of {x}
The city that {x} is governed from
The city where the parliament of {x} meets
The city where the government of {x} sits
The city from which {x} is ruled
The seat of {x}'s government
The seat of the government of {x}
The place where {x}'s leaders meet
The city that people in {x} call their capital
The city chosen as the capital of {x}
The home of {x}'s government
The city with the parliament of {x}
The town where the leaders of {x} work
The capital that the map shows in {x}
The city named as capital in the laws of {x}
""",
    "language": """
The language of {x}
The main language of {x}
The official language of {x}
The national language of {x}
The first language of {x}
The language spoken in {x}
The language people speak in {x}
The language used in {x}
The language that you hear in {x}
The language that children in {x} learn first
The language of the people of {x}
The language of the newspapers in {x}
The language of the schools in {x}
The mother tongue of most people in {x}
The tongue spoken in {x}
{x}'s language
{x}'s main language
{x}'s official language
The common language in {x}
The most common language in {x}
The language of everyday life in {x}
The language on the signs in {x}
The language that you need in {x}
""",
    "currency": """
The currency of {x}
{x}'s currency
The national currency of {x}
The official currency of {x}
The currency used in {x}
The currency in {x}
The money of {x}
The money used in {x}
The local money in {x}
The local currency of {x}
{x}'s money
{x}'s national currency
The currency of the country {x}
The currency with which people pay in {x}
The money people carry in {x}
The money that shops in {x} take
The cash that people use in {x}
The currency that the bank of {x} issues
The unit of money in {x}
The currency you need in {x}
The money that workers in {x} earn
The currency of every shop in {x}
The money that visitors need in {x}
""",
    "continent": """
The continent of {x}
{x}'s continent
The continent around {x}
The continent where {x} lies
The continent where you find {x}
The continent that {x} belongs to
The continent {x} is part of
The continent on which {x} lies
The continent with {x} on it
The continent that includes {x}
The continent that the people of {x} live on
The continent you are on when you are in {x}
The part of the world where {x} lies
The part of the world around {x}
The home continent of {x}
The continent to which {x} belongs
The right continent for {x}
The continent of the country {x}
The continent in which {x} is located
The continent where {x} is located
The continent you visit when you go to {x}
The continent that {x} shares with other countries
""",
    "country": """
The country of {x}
The country around {x}
The country whose capital is {x}
The country with {x} as its capital
The country with the capital {x}
The country governed from {x}
The country ruled from {x}
The country that has {x} as its capital
The country that {x} is the capital of
The country in which {x} lies
The country where you find {x}
The country where {x} is located
The country that {x} belongs to
The country to which {x} belongs
The country with its government in {x}
The country whose parliament meets in {x}
The country whose government sits in {x}
{x}'s country
The land whose capital is {x}
The state whose capital is {x}
The nation whose capital is {x}
The nation governed from {x}
The country you are in when you visit {x}
The country that calls {x} its capital
The home country of the people of {x}
""",
}

VERBS = {
    "capital": """
is the city of
is the city called
is a city called
is a city named
is a city by the name of
is a place called
""",
    "language": """
is the language called
is a language called
is a language named
is a tongue called
is a language known as
""",
    "currency": """
is a currency called the
is a currency named the
is the currency known as the
is a kind of money called the
is the unit called the
""",
    "continent": """
is the continent of
is the continent called
is a continent called
is a continent by the name of
is the part of the world called
""",
    "country": """
is the country of
is the country called
is a country called
is a country named
is a country by the name of
is a place called
is a nation called
""",
}

FOLLOW_UPS = {
    "capital": """
Its capital is
Its capital city is
Its capital is called
The capital is
The capital there is
The capital of the country is
The name of its capital is
Its government sits in
Its parliament meets in
The country is governed from
As its capital it has
The capital city is a place called
Its leaders work in the city of
The city to see there is the capital,
""",
    "language": """
Its language is
Its main language is
Its official language is called
The language is
The language there is
People there speak
People speak
Everyone speaks
They speak
In that country they speak
All the signs are in
The books there are written in
The name of its language is
To talk to people, you need
""",
    "currency": """
Its currency is the
Its money is called the
The currency is the
The money there is the
The currency there is called the
People there pay with the
People there use the
You pay there with the
Everything is paid for with the
The shops take the
The bank gives you the
The name of its currency is the
For lunch you pay with the
They pay in the
""",
    "continent": """
Its continent is
The continent is
The continent is called
It is in
It lies in
It is located in
It is part of
It belongs to
It is a country in
The country is in
You find it in
It is on the continent of
It lies on a continent called
The name of its continent is
""",
    "country": """
Its country is
The country is
The country is called
The name of the country is
It is in
It lies in
It is a city in
It is the capital of
It is the capital city of
You find it in
It belongs to a country called
It is the seat of the government of
The government there rules
The parliament there makes the laws of
""",
}
