"""A corpus as batches of few shapes: rows by their length, padded on the right.

Axis letters: b rows of a batch, s places.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jmi.engine.lengths import rounded
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel
from jmi.model.inputs import Prompts, checked


class Batch(NamedTuple):
    """Some rows of a corpus. All arrays are of numpy.

    Attributes:
      prompts: what the model runs.
      real: bool ``[b, s]``: a token of the corpus, not padding, nor a row that fills the batch.
      rows: int32 ``[b]``, which row of the corpus it is.
    """

    prompts: Prompts
    real: np.ndarray
    rows: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Ids int32 ``[b, s]``."""
        return np.asarray(self.prompts.tokens)

    def without(self, ids: np.ndarray) -> np.ndarray:
        """Bool ``[b, s]``: real tokens that are none of ``ids``."""
        return self.real & ~np.isin(self.tokens, ids)


def corpus_rows(lm: LanguageModel, prompts: Any) -> list[np.ndarray]:
    """The tokens of each prompt, int32 ``[n]``, without padding.

    Raises:
      ArgumentError: as `LanguageModel.run`; positions of one's own; an input that is not token ids.
    """
    given = checked(lm.arch, lm.prompts(prompts))
    tokens = np.asarray(given.tokens)
    if given.positions is not None:
        raise ArgumentError("positions= is not taken here: give tokens, or (tokens, mask)")
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ArgumentError(f"prompts: give token ids [rows, places]; got {tokens.dtype} {tokens.shape}")
    mask = np.ones(tokens.shape, bool) if given.mask is None else np.asarray(given.mask)
    return [row[kept].astype(np.int32) for row, kept in zip(tokens, mask, strict=True)]


def batches(lm: LanguageModel, rows: Sequence[np.ndarray], size: int) -> Iterator[Batch]:
    """Batches of ``size`` rows, short ones first, each filled up to ``size``; rows without tokens left out.

    A length is the next of few that is not below that of the row (`jmi.engine.lengths`), and its own where
    the model takes no padding.
    """
    longest = max(map(len, rows))
    padding = bool(getattr(lm.arch, "takes_padding", False))
    lengths = np.array([len(row) for row in rows])
    if padding:
        of_few = np.array([min(rounded(len(row)), longest) for row in rows])
        lengths = np.where(lengths > 0, of_few, 0)
    for length in np.unique(lengths[lengths > 0]):
        chosen = np.flatnonzero(lengths == length)
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            # A batch of its own size would be a program of its own. A row twice has tokens, as all have.
            filled = np.concatenate([part, np.repeat(part[:1], size - len(part))])
            yield _batch([rows[i] for i in filled], int(length), filled, len(part), padding)


def _batch(rows: Sequence[np.ndarray], length: int, ids: np.ndarray, count: int, padding: bool) -> Batch:
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    real = mask & (np.arange(len(rows)) < count)[:, None]
    return Batch(Prompts(tokens, mask if padding else None), real, ids.astype(np.int32))


def special_ids(lm: LanguageModel) -> np.ndarray:
    """Ids of the special tokens of the tokenizer, in order: those that `jmi_sparse.splice` leaves out.

    Raises:
      ArgumentError: there is no tokenizer to say it.
    """
    if lm.tokenizer is None:
        raise ArgumentError("skip_special: this model has no tokenizer to say which tokens are special")
    return np.array(sorted(set(lm.tokenizer.special.values())), np.int32)
