"""The options of sampling, by the names of transformers' GenerationConfig, checked and as data."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmi import tree
from jmi.checks import as_array, flag, real_number, several, shown, whole_array, whole_number
from jmi.errors import ArgumentError, printable

NONE = -2
"""Fills lists of ids; no token, nor the -1 that stands where logits are NaN."""

FEWEST = 8
"""Lists are filled up to the powers of two from here on, so that few more ids compile nothing."""


@tree.dataclass
class Phrases:
    """Sequences of tokens whose last one gets a bias where the others come right before it.

    Attributes:
      before: int32 ``[n, m]``, all but the last, filled with `NONE` on the left.
      last: int32 ``[n]``, filled with `NONE`.
      bias: float32 ``[n]``, added to the logit of the last token.
    """

    before: Any
    last: Any
    bias: Any


@tree.dataclass
class Sampling:
    """What is done to logits; None leaves a step out. Make one with `sampling_of`, which checks it.

    Numbers and ids are data, so that others compile nothing. Which steps there are is structure.

    Attributes:
      temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: act in this order, and
        only if ``do_sample``.
      repetition_penalty: divides positive logits of tokens that the text holds, prompt included, and
        multiplies negative ones.
      presence_penalty, frequency_penalty: of OpenAI: taken once, or as often as a token was generated, from
        its logit. The prompt does not count.
      no_repeat_ngram_size: no sequence of so many tokens comes twice, prompt included. Static.
      bad_words_ids, sequence_bias: `Phrases`.
      min_length, min_new_tokens: below so many tokens of the row, or new ones, no end token is chosen.
      suppress_tokens, begin_suppress_tokens: int32 ``[n]``, never chosen, or not as the first new token.
      eos_token_id: int32 ``[n]``, end tokens; None when there is none.
      pad_token_id: stands after the end of a row.
      renormalize_logits: make log-probabilities of the logits in the end. Static.
      do_sample: whether the first group acts. Static.
    """

    temperature: Any = 1.0
    top_h: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    typical_p: Any = None
    epsilon_cutoff: Any = None
    eta_cutoff: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    bad_words_ids: Any = None
    sequence_bias: Any = None
    min_length: Any = None
    min_new_tokens: Any = None
    suppress_tokens: Any = None
    begin_suppress_tokens: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = 0
    no_repeat_ngram_size: int | None = tree.static(default=None)
    renormalize_logits: bool = tree.static(default=False)
    do_sample: bool = tree.static(default=True)


_REALS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: x > 0, "above 0"),
    "top_h": (lambda x: 0 < x <= 1, "above 0, at most 1"),
    "top_p": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "min_p": (lambda x: 0 <= x <= 1, "from 0 to 1"),
    "typical_p": (lambda x: 0 < x <= 1, "above 0, at most 1"),
    "epsilon_cutoff": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "eta_cutoff": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "repetition_penalty": (lambda x: x > 0, "above 0"),
    "presence_penalty": (lambda x: True, "that is finite"),
    "frequency_penalty": (lambda x: True, "that is finite"),
}
"""Numbers by option: which are allowed, and how that is said."""

_COUNTS = ("top_k", "min_length", "min_new_tokens")
_IDS = ("suppress_tokens", "begin_suppress_tokens", "eos_token_id")
_FLAGS = ("renormalize_logits", "do_sample")
_OF_A_DRAW = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_ENDS = ("min_length", "min_new_tokens")
NAMES = tuple(field.name for field in dataclasses.fields(Sampling) if field.name != "_class")


def sampling_of(
    options: Mapping[str, Any], *, n_vocab: int | None, draws: bool, stop: Sequence[int] = ()
) -> Sampling:
    """Options as data, found to be known, in range, and of an effect.

    Args:
      options: by the names of `Sampling`; None, or an option left out, leaves its step out. Ids may be one
        or a list, ``bad_words_ids`` is a list of lists, ``sequence_bias`` pairs ``(ids, bias)`` or a dict of
        tuples of ids; numbers may be traced.
      n_vocab: size of the vocabulary, which ids must be in, if known.
      draws: whether tokens are drawn, rather than the most likely ones taken.
      stop: more end tokens.

    Raises:
      ArgumentError: an unknown option, a value out of range, an id outside the vocabulary, or an option that
        would change nothing.

    Example:
      >>> from jmi.sampling.options import sampling_of
      >>> sampling_of({"top_p": 0.9, "suppress_tokens": 3}, n_vocab=29, draws=True).suppress_tokens
      array([ 3, -2, -2, -2, -2, -2, -2, -2], dtype=int32)
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
            raise ArgumentError(f"{printable(name, 60)}= is no option of sampling; {meant}")
    read = {name: _value(name, value, n_vocab) for name, value in given.items()}
    drawn = read.pop("do_sample", draws)
    if drawn and not draws:
        raise ArgumentError("do_sample=True: a random choice needs a seed; give seed= (of jmi.generate key=)")
    for name in _OF_A_DRAW if not drawn else ():
        if name in read:
            raise ArgumentError(f"{name}= has no effect where the most likely token is taken; give seed=")
    own = read.pop("eos_token_id", ())
    ends = sorted(
        {int(i) for i in own if i != NONE} | {int(i) for i in _ids("stop", stop, n_vocab) if i != NONE}
    )
    for name in _OF_ENDS if not ends else ():
        if read.get(name) is not None:
            raise ArgumentError(f"{name}= has no effect without an end token; give eos_token_id=")
    for word in several("bad_words_ids", given.get("bad_words_ids", ()), "lists of ids"):
        if len(word) == 1 and word[0] in ends:
            raise ArgumentError(
                f"bad_words_ids= holds {list(word)}, an end token; to forbid it use suppress_tokens="
            )
    listed = _filled(ends) if ends else None
    return Sampling(**read, eos_token_id=listed, do_sample=drawn)


def _value(name: str, value: Any, n_vocab: int | None) -> Any:
    """One option as data."""
    if name in _REALS:
        return _real(name, value)
    if name in _COUNTS:
        return value if _is_traced(value) else whole_number(name, value, 0)
    if name in _IDS:
        ids = _ids(name, value, n_vocab)
        return ids if len(ids) or name == "eos_token_id" else None
    if name in _FLAGS:
        return flag(name, value)
    if name == "no_repeat_ngram_size":
        return whole_number(name, value, 0) or None
    if name == "pad_token_id":
        return _id(name, value, n_vocab)
    return _phrases(name, value, n_vocab)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer) and not value.ndim


def _real(name: str, value: Any) -> Any:
    if _is_traced(value):
        return value
    allowed, words = _REALS[name]
    try:
        number = real_number(name, value)
    except ArgumentError:
        number = np.nan
    if not np.isfinite(number) or not allowed(number):
        raise ArgumentError(f"{name}={shown(value)}: give a number {words}")
    return number


def _id(name: str, value: Any, n_vocab: int | None) -> int:
    index = whole_number(name, value, 0)
    if n_vocab is not None and index >= n_vocab:
        raise ArgumentError(f"{name}: there is no token {index}; ids are 0 to {n_vocab - 1}")
    return index


def _ids(name: str, value: Any, n_vocab: int | None) -> np.ndarray:
    """Ids, one or several, filled up; empty as they are."""
    array = as_array(name, value)
    if not array.size:
        return np.zeros(0, np.int32)
    given = np.atleast_1d(np.asarray(whole_array(name, array)))
    if given.ndim > 1:
        raise ArgumentError(f"{name}={shown(value)}: give one id, or a list of them")
    return _filled([_id(name, i, n_vocab) for i in given])


def _filled(ids: Sequence[int]) -> np.ndarray:
    found = np.full(_rounded(len(ids)), NONE, np.int32)
    found[: len(ids)] = ids
    return found


def _rounded(count: int) -> int:
    return max(FEWEST, 1 << (count - 1).bit_length())


def _phrases(name: str, value: Any, n_vocab: int | None) -> Phrases | None:
    """Sequences with their biases; bad words have one of -inf."""
    if name == "bad_words_ids":
        pairs = [(ids, -np.inf) for ids in several(name, value, "lists of ids")]
    else:
        given = (
            list(value.items()) if isinstance(value, Mapping) else several(name, value, "pairs (ids, bias)")
        )
        pairs = [
            tuple(each) if isinstance(each, (list, tuple)) and len(each) == 2 else ((), 0) for each in given
        ]
    if not pairs:
        return None
    rows: list[tuple[list[int], float]] = []
    for ids, bias in pairs:
        row = [i for i in _ids(name, ids, n_vocab) if i != NONE]
        number = bias if bias == -np.inf else real_number(name, bias)
        if not row or not number < np.inf:
            form = "[[5], [6, 9]]" if name == "bad_words_ids" else "[([8], 4.0), ([6, 9], -3.0)]"
            raise ArgumentError(f"{name}={shown(value)}: give ids, at least one each, such as {form}")
        rows.append((row, number))
    count, longest = _rounded(len(rows)), _rounded(max(len(row) for row, _ in rows))
    before, last = np.full((count, longest), NONE, np.int32), np.full(count, NONE, np.int32)
    biases = np.zeros(count, np.float32)
    for i, (row, bias) in enumerate(rows):
        before[i, longest - len(row) + 1 :], last[i], biases[i] = row[:-1], row[-1], bias
    return Phrases(before, last, biases)
