"""Token batches for training: batch number `step` depends on nothing but the seed and `step`.

Most words of the generated text are drawn at random and cannot be predicted; their noise would
drown what is to be learned. So every token has a weight in the loss: full for the answers that
follow from the text, little for the rest, none for text that is there to be read only.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from tokenizers import Tokenizer

from jmi_models.embedded.corpus import MARK, QUIET, WORDS, quoted
from jmi_models.embedded.mixture import piece, running_text
from jmi_models.embedded.tokenizer import BOS_ID, EOS_ID, N_CTX

SHORT = (128, 32)
LONG = (16, N_CTX)
"""Rows and tokens per row of the two batch shapes; both hold the same number of tokens."""
ANSWER_WEIGHT, TEXT_WEIGHT = 1.0, 0.1
PLACES = 1024
"""Places that count come in multiples of this, for each number of them is a program of its own."""


class Phase(NamedTuple):
    """What batches are made of from one step on.

    Attributes:
      repeated: share of rows that are random sequences over and over.
      weight: of the tokens in them.
      vocabularies: of which each of these rows draws one: the first so many words of the list, or every
        token for None.
      quoted: share of facts with their place in quotation marks.
    """

    repeated: float
    weight: float
    vocabularies: tuple[int | None, ...]
    quoted: float = 0.0


PHASES = {
    0: Phase(1.0, 1.0, (100,)),
    400: Phase(1.0, 1.0, (100, 700, None)),
    600: Phase(0.2, 0.15, (700, None)),
    1600: Phase(0.2, 0.15, (700, None), quoted=0.3),
}
"""Induction comes first and alone: beside other tasks it takes many times as long to form, and over a few
different words it forms soonest. Names in quotation marks come when they are known without."""


class Batch(NamedTuple):
    """Tokens [row, position] and how much the loss at predicting each of them counts."""

    tokens: np.ndarray
    weights: np.ndarray


class Counted(NamedTuple):
    """A batch with the places that count in the loss, and no others.

    Attributes:
      tokens: int32 [row, position].
      places: int32 [n], where a next token is predicted: row * length + position.
      targets: int32 [n], these next tokens.
      weights: float32 [n], how much each counts; zero for the filling at the end.
    """

    tokens: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def counted(batch: Batch) -> Counted:
    """The places of a batch whose weight is not zero, filled up to a multiple of `PLACES`."""
    rows, positions = np.nonzero(batch.weights[:, 1:])
    fill = (0, -len(rows) % PLACES)
    found = (
        (rows * batch.tokens.shape[1] + positions).astype(np.int32),
        batch.tokens[rows, positions + 1],
        batch.weights[rows, positions + 1],
    )
    return Counted(batch.tokens, *(np.pad(x, fill) for x in found))


def repeated_tokens(
    rng: Generator,
    rows: int,
    length: int,
    vocabularies: Sequence[np.ndarray],
    weight: float = 1.0,
    period: int | None = None,
) -> Batch:
    """Rows of a BOS token and one random token sequence over and over.

    Each row draws the length of its sequence unless `period` gives it, short ones more often:
    they are learned first, and lead to the long ones. What comes before the first repetition
    has no weight.
    """
    tokens = np.full((rows, length), BOS_ID, dtype=np.int32)
    weights = np.full((rows, length), weight, dtype=np.float32)
    for i, (row, counted) in enumerate(zip(tokens, weights, strict=True)):
        size = period or int(np.exp(rng.uniform(np.log(3), np.log(length // 2))))
        row[1:] = np.resize(rng.choice(vocabularies[i % len(vocabularies)], size=size), length - 1)
        counted[: size + 2] = 0.0
    return Batch(tokens, weights)


def text_rows(
    rng: Generator, tokenizer: Tokenizer, rows: int, length: int, alone: bool, quotes: float = 0.0
) -> Batch:
    """Rows of a BOS token and text: one piece each if `alone`, else pieces until the row is full.

    What follows a piece that stands alone is filling without weight. In the share `quotes` of what is
    read only, the first place stands in quotation marks.
    """
    texts = [_parts(piece(rng) if alone else running_text(rng, length)) for _ in range(rows)]
    texts = [[(m, quoted(rng, part, quotes) if m == QUIET else part) for m, part in text] for text in texts]
    parts = [part for text in texts for _, part in text]
    encoded = iter(tokenizer.encode_batch(parts, add_special_tokens=False))
    tokens = np.full((rows, length), EOS_ID, dtype=np.int32)
    weights = np.zeros((rows, length), dtype=np.float32)
    for row, weight, text in zip(tokens, weights, texts, strict=True):
        ids, counts = [BOS_ID], [0.0]
        for mark, _ in text:
            part = next(encoded).ids
            ids += part
            counts += [0.0 if mark == QUIET else TEXT_WEIGHT] * len(part)
            if mark == MARK:
                counts[-len(part)] = ANSWER_WEIGHT
        row[: len(ids)] = ids[:length]
        weight[: len(ids)] = counts[:length]
    return Batch(tokens, weights)


def _parts(text: str) -> list[tuple[str, str]]:
    """The marks in a text, each with the words that follow it."""
    first, *rest = re.split(f"([{MARK}{QUIET}])", text)
    return [part for part in [("", first), *zip(rest[::2], rest[1::2], strict=True)] if part[1]]


@functools.cache
def word_ids(tokenizer: Tokenizer, size: int | None = None) -> np.ndarray:
    """Ids of the first ``size`` words of the random sequences; without a size, of every token."""
    if size is None:
        return np.arange(EOS_ID + 1, tokenizer.get_vocab_size())
    return np.array([tokenizer.token_to_id(f"Ġ{word}") for word in WORDS[:size]])


def batch(tokenizer: Tokenizer, seed: int, step: int) -> Batch:
    """The batch of one training step; every eighth step has long rows."""
    rng = np.random.default_rng([seed, step])
    rows, length = LONG if step % 8 == 7 else SHORT
    phase = PHASES[max(start for start in PHASES if start <= step)]
    repeated_rows = round(rows * phase.repeated)
    vocabularies = [word_ids(tokenizer, size) for size in phase.vocabularies]
    repeated = repeated_tokens(rng, repeated_rows, length, vocabularies, phase.weight)
    text = text_rows(rng, tokenizer, rows - repeated_rows, length, length < N_CTX, phase.quoted)
    return Batch(*(np.concatenate(pair) for pair in zip(repeated, text, strict=True)))
