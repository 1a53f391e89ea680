"""Accuracy of a trained model on held-out items, per task."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from jmi_models.embedded import corpus
from jmi_models.embedded.batches import repeated_tokens, word_ids
from jmi_models.embedded.items import Item, evaluation_items

Logits = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""From tokens [batch, position], and a position of each row, to logits [batch, vocabulary] there; without
positions to all, [batch, position, vocabulary]."""

BATCH, LENGTH = 128, 64
STEP = 8
"""Rows are padded to a multiple of so many tokens: a program for each."""
FACTS = {"blind facts:": "facts in phrasings of another author", "facts:": "facts in unseen phrasings"}
"""Beginning of the tasks that are averaged, and the name of the average."""
UNCOUNTED = 3
"""Tokens of a repetition that are not counted, for induction needs something to match."""


def _padded(encoded: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Rows padded on the right, which a causal model does not see."""
    rows = np.zeros((len(encoded), length), dtype=np.int32)
    for row, ids in zip(rows, encoded, strict=True):
        row[: len(ids)] = ids
    return rows


def next_token_probabilities(logits: Logits, tokenizer: Tokenizer, prompts: Sequence[str]) -> np.ndarray:
    """Distribution [prompt, vocabulary] of the token after each prompt."""
    ids = [e.ids for e in tokenizer.encode_batch(list(prompts))]
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    out = np.zeros((len(prompts), tokenizer.get_vocab_size()))
    for batch in np.array_split(order, range(BATCH, len(order), BATCH)):
        full = np.pad(batch, (0, BATCH - len(batch)), mode="edge")
        rows = _padded([ids[i] for i in full], -(-int(lengths[full].max()) // STEP) * STEP)
        final = logits(rows, lengths[full] - 1)[: len(batch)].astype(np.float64)
        weights = np.exp(final - final.max(axis=-1, keepdims=True))
        out[batch] = weights / weights.sum(axis=-1, keepdims=True)
    return out


def _answer_ids(tokenizer: Tokenizer, item: Item) -> list[int]:
    return [i for i in (tokenizer.token_to_id(a.replace(" ", "Ġ")) for a in item.answers) if i]


def item_accuracy(logits: Logits, tokenizer: Tokenizer, items: Sequence[Item]) -> dict[str, float]:
    """Share of items per task whose most likely next token is a right one.

    For greater-than, the mean probability of all later years is reported as well.
    """
    probabilities = next_token_probabilities(logits, tokenizer, [item.prompt for item in items])
    right, mass = defaultdict(list), defaultdict(list)
    for item, row in zip(items, probabilities, strict=True):
        answers = _answer_ids(tokenizer, item)
        right[item.task].append(int(row.argmax()) in answers)
        mass[item.task].append(row[answers].sum())
    scores = {task: float(np.mean(hits)) for task, hits in right.items()}
    for kind, name in FACTS.items():
        hits = [hit for task, found in right.items() if task.startswith(kind) for hit in found]
        scores = {name: float(np.mean(hits)), **scores}
    if "greater-than" in mass:
        scores["greater-than, probability of later years"] = float(np.mean(mass["greater-than"]))
    return scores


def induction_accuracy(logits: Logits, rows: np.ndarray, periods: Sequence[int]) -> float:
    """Accuracy on the second occurrence of a sequence that starts after BOS in each row."""
    predicted = logits(rows, None).argmax(axis=-1)
    hits = [
        predicted[r, position - 1] == rows[r, position]
        for r, period in enumerate(periods)
        for position in range(1 + period + UNCOUNTED, 1 + 2 * period)
    ]
    return float(np.mean(hits))


def repeated_word_rows(rng: np.random.Generator, tokenizer: Tokenizer) -> tuple[np.ndarray, list[int]]:
    """Rows that hold a random word sequence twice, and the length of each sequence."""
    periods = [int(rng.integers(6, 31)) for _ in range(BATCH)]
    texts = [" " + " ".join(corpus.pick(rng, corpus.WORDS) for _ in range(n)) for n in periods]
    return _padded([e.ids for e in tokenizer.encode_batch([t + t for t in texts])], LENGTH), periods


def induction_scores(logits: Logits, tokenizer: Tokenizer, seed: int = 1) -> dict[str, float]:
    """Induction on random words and on random tokens of the whole vocabulary."""
    rng = np.random.default_rng([seed, 3])
    words, periods = repeated_word_rows(rng, tokenizer)
    length = 1 + 2 * 30
    period = (length - 1) // 2
    tokens = repeated_tokens(rng, BATCH, length, [word_ids(tokenizer)], period=period).tokens
    return {
        "induction on random words": induction_accuracy(logits, words, periods),
        "induction on random tokens": induction_accuracy(
            logits, _padded(tokens.tolist(), LENGTH), [period] * BATCH
        ),
    }


def evaluate(logits: Logits, tokenizer: Tokenizer, seed: int = 1, count: int = 500) -> dict[str, float]:
    """All held-out scores of a model, by name; every one is a share between 0 and 1."""
    scores = item_accuracy(logits, tokenizer, evaluation_items(seed, count))
    return scores | induction_scores(logits, tokenizer, seed)
