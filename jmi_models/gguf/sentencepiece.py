"""Merges of a SentencePiece vocabulary, which lists scores instead."""

from collections.abc import Mapping

import numpy as np

from jmi.errors import TokenizerError
from jmi_models.gguf.words import FIX, PREFIX, Type, Words

SPACE = "▁"
_MOST_WORK = 1 << 27  # characters compared; Gemma's 262,144 tokens take 15 million
_MOST_MERGES = 1 << 22  # Gemma has half a million


def respelt(words: Words) -> Mapping[int, str]:
    """Texts of tokens as SentencePiece spells them: converters write runs of "▁" as runs of spaces.

    A run stays as it is where the vocabulary has the other spelling, too.
    """
    texts = dict(words.texts)
    known = set(texts.values())
    for index, text in texts.items():
        marks = SPACE * len(text)
        if not text.strip(" ") and marks not in known:
            texts[index] = marks
    return texts


def merges(texts: Mapping[int, str], types: np.ndarray, scores: np.ndarray) -> list[tuple[str, str]]:
    """Every pair of tokens that make a token, the one of the best score first, as in transformers.

    Of equal scores the longer left token is first, then the longer right one, then the lower id. Only
    ordinary tokens and those of a user have scores that count. Converters overwrite the scores of the
    latter; so where the scores of all ordinary ones fall from id to id, the ids decide.

    Args:
      texts: by id.
      types, scores: of each id.

    Raises:
      TokenizerError: a score is no number, or there is too much to do.
    """
    counts = np.isin(types, (Type.NORMAL, Type.USER_DEFINED)).tolist()
    pieces = {index: text for index, text in texts.items() if counts[index]}
    if not np.isfinite(scores).all():
        raise TokenizerError(f"{PREFIX}scores must be finite; {FIX}")
    if sum(len(text) ** 2 for text in pieces.values()) > _MOST_WORK:
        raise TokenizerError(f"{PREFIX}tokens are too many or too long to be those of SentencePiece; {FIX}")
    if (np.diff(scores[types == Type.NORMAL]) < 0).all():
        scores = -np.arange(len(scores))
    known = set(texts.values())
    pairs: list[tuple[str, str]] = []
    made: list[int] = []
    for index, text in pieces.items():
        for cut in range(1, len(text)):
            left = text[:cut]
            if left in known and text[cut:] in known:
                pairs.append((left, text[cut:]))
                made.append(index)
        if len(pairs) > _MOST_MERGES:
            raise TokenizerError(f"{PREFIX}tokens make more than {_MOST_MERGES:,} merges; {FIX}")
    ids = np.asarray(made, np.int64)
    lengths = np.asarray([(len(left), len(right)) for left, right in pairs], np.int64).reshape(-1, 2)
    order = np.lexsort((ids, -lengths[:, 1], -lengths[:, 0], -scores[ids].astype(np.float64)))
    return [pairs[i] for i in order.tolist()]
