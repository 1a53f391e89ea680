"""What stands around a question: before it, and between it and its answer.

`{n}` is the first name of someone who asks, and `{m}` of someone who answers.
"""

MARKERS = """
Question:
Q:
{n} asked:
{n} asked me:
The teacher asked:
Quiz:
A question for {n}:
Next question:
First question:
An easy question:
I have a question:
Here is a question:
""".strip().splitlines()
"""Before a question that begins with a capital letter."""

ASKING = """
Question:
Q:
Tell me,
Please tell me:
Excuse me,
{n} wants to know:
My question is:
The question was:
So,
Now,
Once again,
Dear {n},
""".strip().splitlines()
"""Before a question that begins with a small letter."""

ANSWERS = """
Answer:
A:
The answer is
The answer:
The right answer is
The correct answer is
The answer was
The answer must be
The short answer is
My answer is
{m}'s answer was
{m} answered:
{m} replied:
{m} said:
{m} said that it is
{m} said it was
{m} answered that it is
{m} wrote
{m} guessed that it is
{m} knew that it was
He said that it is
She said that it was
I said
I think it is
I believe that it is
I would say
I am sure it is
It is
It's
It is of course
It is, of course,
It is called
It was
It has to be
It must be
It should be
It can only be
It would be
That is
That's
That is easy:
That would be
That must be
That is called
This is
This must be
They call it
People call it
We call it
You call it
Everyone calls it
Its name is
The name is
Well, it is
Yes, it is
Of course, it is
Sure, it is
No doubt, it is
Easy:
Reply:
Solution:
Right answer:
Correct answer:
The solution is
The book says
The book says that it is
The map says
The teacher said that it is
The class said
Everyone said
Everyone knows that it is
In one word:
You should say
One says
As far as I know, it is
Today it is
If I remember well, it is
My guess is
You mean
""".strip().splitlines()
"""Between a question and its answer, also one with an article."""

ENQUIRIES = """
{n} asked about
{n} asked me about
{n} asked for
{n} wanted to know
{n} had forgotten
{n} did not know
{n} looked up
{n} read about
{n} talked about
{n} wrote down
{n} told us about
We talked about
I asked {n} about
I am thinking of
The teacher asked for
The teacher asked us about
On the test they asked for
The first question was about
The book tells us about
My letter is about
Today we learn about
""".strip().splitlines()
"""Before a noun phrase, as a report."""

RESOLUTIONS = """
, and the answer is
, and the answer was
, and the right answer was
, and I said that it is
, and everyone said
, and the teacher said
, and they told me that it is
, and the book says that it is
, which is
, namely
, that is,
: it is
: it was
:
. It is
. It was
. It is called
. That is
. The answer is
. The answer:
. They call it
. Its name is
. I said that it is
. Someone said that it is
. In one word:
""".strip().splitlines()
"""Between a noun phrase of a report and its answer."""

REQUESTS = """
Tell me
Write down
Do not forget
Learn by heart
Find out
Guess
Let us write down
Let me tell you
You should know
We all know
""".strip().splitlines()
"""Before a noun phrase, as a request."""

REPLIES = """
: it is
:
. It is
. It's
, that is,
, namely
, which is
. The answer is
. Answer:
. They call it
""".strip().splitlines()
"""Between a requested noun phrase and its answer."""

MARKED_ANSWERS = """
Answer:
A:
The answer:
{m} said:
{m} answered:
""".strip().splitlines()
"""Between a question and the small beginning of its answer."""
