"""Statements of one fact: each ends just before its answer and can follow "Everyone knows that".

`{x}` is the subject of the fact and `{n}` a first name.
"""

CLAUSES = {
    "capital": """
The capital of {x} is
The capital city of {x} is
The capital of the country {x} is
The city that serves as the capital of {x} is
The capital city that belongs to {x} is
The name of {x}'s capital city is
The name of the capital of {x} is
{x}'s capital is
{x}'s capital city is called
In {x}, the capital is
In {x} the capital city is
In {x}, the capital city is called
On a map, {x}'s capital is
On a map, the capital city of {x} is called
The country called {x} has its capital in
The government of {x} sits in
The government of {x} works in the city of
The parliament of {x} meets in
The laws of {x} are made in
The leaders of {x} live and work in
{x} is governed from
{x} is ruled from a city called
{x} has its government in
{x} has a capital city called
{x} has a capital, and its name is
{x} chose as its capital the city of
{x} is a country whose capital is
If you visit the capital of {x}, you visit
If you want to see the parliament of {x}, you must go to
If you ask people in {x} about their capital, they say that its name is
{n} knows that the capital of {x} is
{n} flew to the capital of {x}, which is
{n} took the plane to {x}'s capital, the city of
{n} took the train to the capital of {x} and got off in
{n} works for the government of {x} in its capital,
{n} lives in the capital of {x}, which people call
{n} moved to the capital of {x} and now lives in
{n} asked about {x}'s capital, and the answer is
{n} asked about the capital of {x}, and was told that it is
{n} wanted to see the capital of {x} and bought a ticket to
My uncle lives in the capital of {x}, that is, in
A map of {x} shows the capital,
A letter to the government of {x} must be sent to
A visit to the capital of {x} is a visit to
Everyone in {x} knows the capital,
Everyone in {x} knows that the capital city is
People in {x} have given their capital the name
Of all the cities in {x}, the capital is
Of all the cities in {x}, the parliament has chosen
Among the cities of {x}, the seat of government is
When the leaders of {x} meet, they meet in
When people speak of the capital of {x}, they mean
The teacher asked for the capital of {x}, and the right answer was
The star on the map of {x} stands for the capital,
""",
    "language": """
The language of {x} is
The main language of {x} is
The official language of {x} is
The official language in {x} is
The language spoken in {x} is
The main language spoken in {x} is called
The language that people use in {x} is
The language that children learn at school in {x} is
The name of {x}'s language is
The name of the language spoken in {x} is
{x}'s language is
{x}'s main language is called
{x} is a country where people speak
People in {x} speak
People in {x} talk to each other in
The people of {x} speak
The people of {x} sing, write and dream in
In {x}, people speak
In {x}, the official language is
In {x} the main language is
In the shops of {x} they talk to you in
On the streets of {x} you hear
On the train in {x}, everyone speaks
Children in {x} learn to speak
Children in {x} learn to read and write in
Most people who live in {x} speak
Most people in {x} speak
Most books in {x} are written in
Almost everyone in {x} understands
Everyone in {x} speaks
Everyone who lives in {x} learns to speak
Newspapers in {x} are written in
Songs from {x} are sung in
The news in {x} is read in
The government of {x} writes its letters in
The teachers in {x} teach in
At school in {x}, lessons are held in
{n} comes from {x} and speaks
{n} comes from {x}, so {n}'s first language is
{n} grew up in {x}, so at home the family speaks
{n} lives in {x} and speaks
{n} moved to {x} and now speaks
{n} is learning the language of {x}, which is called
{n} wants to live in {x} and is learning
{n}'s mother is from {x}, so at home {n} learned to speak
{n} asked about {x}'s language, and the answer is
{n} bought a book in {x}, and it was written in
Before moving to {x}, {n} studied
Before a trip to {x}, you should learn some
To talk to people in {x}, you must speak
To read a newspaper from {x}, you must know
If you live in {x}, you speak
If you live in {x}, your main language is
If you come from {x}, your language is
A teacher from {x} told me that people there speak
A child in {x} says its first words in
""",
    "currency": """
The currency of {x} is the
The official currency of {x} is the
The currency used in {x} is the
The currency that people use in {x} is the
The money of {x} is called the
The money that people need in {x} is the
The money that people use in {x} is the
The money in every wallet in {x} is the
The name of {x}'s currency is the
The name of the currency of {x} is the
The coins and notes of {x} belong to a currency called the
The bank in {x} gives you money in a currency called the
The central bank of {x} issues the
The prices in {x} are given in the
{x}'s currency is the
{x}'s money is called the
{x} is a country that uses the
{x} is a country where you pay with the
{x} has a currency called the
In {x}, people pay with the
In {x} the currency is the
In {x}, the currency is called the
In {x}, you buy bread with the
In every shop in {x} you can pay with the
On the banknotes of {x} you read the name of the currency, the
People in {x} pay with the
People who live in {x} pay with the
People in {x} save their money in the
Workers in {x} earn their money in the
Shops in {x} take the
Taxi drivers in {x} take only the
Everyone in {x} uses the
Everyone in {x} pays for lunch with the
All hotels and restaurants in {x} take a currency called the
A cup of coffee in {x} is paid for with the
A ticket for the train in {x} is paid for with the
A wallet from {x} is full of a currency called the
{n} paid for lunch in {x} with the
{n} works in {x} and is paid in the
{n} moved to {x} and now uses the
{n} moved to {x} and now pays with the
{n} lives in {x} and pays with the
{n} flew to {x} and changed some money into the
{n} found a coin from {x}, and its currency is the
{n} asked about {x}'s currency, and the answer is the
{n}'s sister lives in {x}, so she pays for everything with the
Before flying to {x}, {n} bought some of its currency, the
Before a trip to {x}, you should change your money into the
If you shop in {x}, you need the
If you travel to {x}, the money you need is the
If you work in {x}, your boss pays you in the
To buy something in {x}, you need the
When you pay in {x}, you pay with the
When the people of {x} talk about money, they talk about the
The coin for one unit of money in {x} is worth one
""",
    "continent": """
{x} is in
{x} is a country in
{x} is one of the countries of
{x} is located in
{x} is on the continent of
{x} is a part of
{x} is a country on the continent of
{x} is a country on the continent called
{x} lies somewhere in
{x} lies on the continent of
{x} belongs to
{x} can be found on the continent called
{x} has its place on the map of
{x}'s continent is
The continent of {x} is
The continent where {x} lies is
The continent that {x} belongs to is
The name of {x}'s continent is
The name of the continent of {x} is
The country {x} lies in
The country called {x} lies in
The country of {x} is located on the continent of
The land of {x} belongs to
The people of {x} live on the continent of
The people of {x} live in a country in
The government of {x} rules a country in
The cities, rivers and fields of {x} lie in
The map that shows {x} is a map of
In {x}, you are on the continent of
On a map, you find {x} in
On the map, {x} lies in
On the map of the world, {x} is part of
Every part of {x} is in
Every city of {x} is a city in
Everyone in {x} lives in
Of all the continents, the one with {x} in it is
Of all the continents, {x} belongs to
Among the countries of the world, {x} is one in
When you are in {x}, you are in
When you travel through {x}, you travel through
If {n} lives in {x}, then {n} lives on the continent of
If you want to see {x}, you must go to
If you live in {x}, your continent is
To reach {x}, you must travel to
To visit {x}, you take a plane to
{n} went to {x}, which is in
{n} was born in {x}, a country in
{n} travelled to {x}, which is a country in
{n} travelled to {x}, a country located in
{n} comes from {x} and so from the continent of
{n} looked for {x} on the map and found it in
{n} asked about {x}'s continent, and the answer is
At school, {n} learned that {x} is a country on the continent called
A trip to {x} is a trip to
Someone who visits {x} has been to
""",
    "country": """
{x} is the capital of
{x} is the capital city of
{x} is the capital city of the country
{x} is the capital of a country named
{x} is the name of the capital of
{x} is the city from which a government rules
{x} is a city in
{x} is the seat of the government of
{x} is where you find the parliament of
{x} is located in a country called
{x} lies in
{x} belongs to
{x} can be found on a map of
{x} serves as the capital of
{x} has been chosen as the capital of
The country whose capital is {x} is
The country with the capital {x} is
The name of the country around {x} is
The name of the country whose capital is {x} is
The city of {x} is in
The city of {x} is the capital of
The city called {x} lies in
The government that sits in {x} is the government of
The parliament that meets in {x} is the parliament of
The parliament in {x} makes the laws of
The leaders who meet in {x} rule
The people of {x} live in the capital of
The people of {x} are at home in
In {x}, you are in the capital of
In {x} sits the government of
From {x}, a government rules
From {x}, the government rules all of
On a map, {x} is the capital of
On a map, the city of {x} is in the country called
Everyone who lives in {x} lives in
Everyone knows that {x} is the capital of
Everyone in {x} knows that their country is called
If you are in {x}, you are in
If you were born in {x}, you were born in a country called
If you want to see {x}, you must travel to
If you live in {x}, your country is
When you arrive in {x}, you arrive in the capital of
When you land in {x}, you have reached
To reach {x}, you must travel to
{n} lives in {x}, the capital of
{n} went to {x}, the capital of
{n} visited {x}, the capital of
{n} visited {x}, the capital city of
{n} asked about {x}, a city in
{n} works in {x}, the capital of a country called
{n} works in {x} for the government of
{n} took the plane to {x}, so now {n} is in the country called
{n} was born in {x} and so comes from
{n} found {x} on a map of
A trip to {x} is a trip to
A letter to {x} is a letter to
""",
}
