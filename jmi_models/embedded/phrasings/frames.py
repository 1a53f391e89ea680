"""What stands around a statement: before it, before its verb, its verb, the sentence before it.

`{m}` is the first name of someone who speaks or knows, and `{n}` of someone in the fact.
"""

PREFIXES = """
{m} says that
{m} said that
{m} wrote that
{m} told me that
{m} thinks that
{m} remembers that
{m} is sure that
{m} learned that
{m} read that
{m} heard that
{m} explained that
{m} was surprised to hear that
{m}'s teacher says that
{m} and I know that
I told {m} that
As {m} wrote,
As {m} says,
If you ask {m},
According to {m},
The letter from {m} says that
Everyone knows that
Everybody knows that
Most people know that
Not everyone knows that
Few people know that
Every child knows that
Many people believe that
People say that
They say that
It is said that
It is true that
It is a fact that
It is well known that
It is clear that
It is no secret that
As everyone knows,
As you know,
As we all know,
As you may know,
In fact,
Of course,
By the way,
To be exact,
After all,
Even today,
These days,
Today we learn that
Today I learned that
Yesterday I read that
We learned at school that
At school they teach us that
Our teacher told us that
The teacher said that
The teacher wrote on the board that
My aunt told me that
My mother always says that
My brother thinks that
A friend from work told me that
My book says that
In the book it says that
On the first page it says that
The book on the table says that
The newspaper writes that
In the newspaper I read that
On the radio they said that
On television they said that
A sign at the airport says that
The guide told us that
The map shows that
A look at the map shows that
Remember that
Do not forget that
Never forget that
Please note that
Did you know that
I know that
I think that
I believe that
I am sure that
You should know that
You can read everywhere that
You will see that
Nobody doubts that
Here is a fact:
Lesson one:
Note:
""".strip().splitlines()
"""Before a statement."""

ASIDES = """
, of course,
, by the way,
, as {m} knows,
, as everyone knows,
, I think,
, as far as I know,
, according to {m},
, it is said,
, as you know,
, if I remember well,
, says {m},
, they say,
, as we learned at school,
, as it says in the book,
, and {m} agrees,
today
now
""".strip().splitlines()
"""Between a noun phrase and its verb."""

COPULAS = """
is
was
is called
is now
is still
is simply
is really
is today
is of course
is, of course,
is, quite simply,
is, in one word,
is certainly
is always
has always been
has long been
must be
should be
would be
can only be
will always be
is known as
is none other than
is no other than
turns out to be
turned out to be
happens to be
seems to be
remains
has to be
is said to be
is known to be
is this one:
is as follows:
""".strip().splitlines()
"""Before an answer, also one with an article."""

NAMING = """
is named
has the name
bears the name
carries the name
goes by the name of
is known by the name of
is known to everyone as
is known under the name
""".strip().splitlines()
"""Before an answer that is a name."""

INTROS = """
{n} lives in {x}.
{n} went to {x}.
{n} comes from {x}.
{n} has never been to {x}.
{n} would like to visit {x}.
{n} told me about {x}.
{n} sent me a letter from {x}.
This is {x}.
Here we are in {x}.
Look at {x} on the map.
We talked about {x}.
Let us talk about {x}.
I know {x} well.
I like {x}.
I read a book about {x}.
My sister works in {x}.
Many people visit {x}.
Think of {x}.
Have you been to {x}?
Welcome to {x}!
Now to {x}.
{x} is beautiful.
Last year we saw {d.name}, this year {x}.
""".strip().splitlines()
"""Sentences that name the subject of a fact and say nothing about it."""
