"""Alignment: which positions of two prompts correspond, when they differ in length.

An `Alignment` is a list of pairs and goes where an experiment on two runs takes ``positions``.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jmi.checks import choice, several, shown, whole_array, whole_number
from jmi.checks import text as check_text
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel

Span = tuple[int, int]
"""First position, and the one behind the last."""


class Alignment(NamedTuple):
    """Pairs of corresponding positions, in ascending order.

    Positions are those of real tokens, also where prompts are padded.

    Attributes:
      base: int ``[n]``, or ``[b, n]`` where rows differ.
      source: likewise, the position in the source for each in the base.
    """

    base: np.ndarray
    source: np.ndarray


def align_tokens(base: Any, source: Any, mask: Any = None, source_mask: Any = None) -> Alignment:
    """Pair the longest common beginning and, of what is left, the longest common end.

    Args:
      base, source: token ids ``[s]`` and ``[t]``, or ``[b, s]`` and ``[b, t]``: then positions are
        paired where the tokens agree in every row.
      mask, source_mask: bool of their shapes, True at real tokens, of padded prompts. The end is then
        paired as positions -1, -2, ..., which are other ones in rows of other lengths.

    Raises:
      ArgumentError: different numbers of rows.

    Example:
      >>> pairs = align_tokens([7, 1, 2, 9], [7, 5, 9])
      >>> pairs.base.tolist(), pairs.source.tolist()
      ([0, 3], [0, 2])
    """
    a, b = _rows("base", base), _rows("source", source)
    if len(a) != len(b):
        raise ArgumentError(f"base has {len(a)} rows and source has {len(b)}: align row by row")
    if mask is not None or source_mask is not None:
        return _align_padded(_tokens_of(a, mask), _tokens_of(b, source_mask))
    s, t = a.shape[1], b.shape[1]
    shorter = min(s, t)
    first = _run((a[:, :shorter] == b[:, :shorter]).all(0))
    left = shorter - first
    last = _run((a[:, s - left :] == b[:, t - left :]).all(0)[::-1])
    begin, end = np.arange(first), np.arange(-last, 0)
    return Alignment(np.concatenate([begin, end + s]), np.concatenate([begin, end + t]))


def _rows(name: str, given: Any) -> np.ndarray:
    ids = np.asarray(whole_array(name, given))
    if ids.ndim not in (1, 2):
        raise ArgumentError(f"{name}={shown(given)}: give token ids [s], or [b, s]")
    return np.atleast_2d(ids)


def _tokens_of(tokens: np.ndarray, mask: Any) -> list[np.ndarray]:
    """The real tokens of each row."""
    real = np.ones(tokens.shape, bool) if mask is None else np.atleast_2d(np.asarray(mask))
    if real.shape != tokens.shape:
        raise ArgumentError(
            f"a mask has shape {real.shape} and its tokens {tokens.shape}: they must be alike"
        )
    return [row[kept] for row, kept in zip(tokens, real, strict=True)]


def _align_padded(base: list[np.ndarray], source: list[np.ndarray]) -> Alignment:
    pairs = [(a, b, min(len(a), len(b))) for a, b in zip(base, source, strict=True)]
    first = min(_run(a[:n] == b[:n]) for a, b, n in pairs)
    left = [n - first for *_, n in pairs]
    last = min(
        _run((a[len(a) - n :] == b[len(b) - n :])[::-1]) for (a, b, _), n in zip(pairs, left, strict=True)
    )
    positions = np.concatenate([np.arange(first), np.arange(-last, 0)])
    return Alignment(positions, positions)


def _run(equal: np.ndarray) -> int:
    """Length of the run of True at the start."""
    return len(equal) if equal.all() else int(equal.argmin())


def align_spans(
    base: Mapping[str, Span], source: Mapping[str, Span], anchor: Literal["first", "last"] = "last"
) -> Alignment:
    """Pair the positions of spans of one name, such as the subject, token by token.

    Args:
      base, source: name -> span of positions in each prompt.
      anchor: of spans that differ in length, the last (or first) tokens are paired, as many as the
        shorter one has.

    Raises:
      ArgumentError: other names on one side, or a span that is empty or overlaps another.

    Example:
      >>> pairs = align_spans({"subject": (1, 4)}, {"subject": (2, 4)})
      >>> pairs.base.tolist(), pairs.source.tolist()
      ([2, 3], [2, 3])
    """
    base, source = _spans("base", base), _spans("source", source)
    if set(base) != set(source) or not base:
        raise ArgumentError(f"spans of the same names pair up; got {sorted(base)} and {sorted(source)}")
    choice("anchor", anchor, ("first", "last"))
    pairs: list[tuple[int, int]] = []
    for name in base:
        (a, a_stop), (b, b_stop) = base[name], source[name]
        n = min(a_stop - a, b_stop - b)
        if n < 1 or min(a, b) < 0:
            raise ArgumentError(f"{name}: spans {base[name]} and {source[name]} must hold a position each")
        if anchor == "last":
            a, b = a_stop - n, b_stop - n
        pairs += zip(range(a, a + n), range(b, b + n), strict=True)
    ordered = np.array(sorted(pairs))
    if any((np.diff(np.sort(side)) == 0).any() for side in ordered.T):
        raise ArgumentError(f"spans overlap: {dict(base)}, {dict(source)}")
    return Alignment(ordered[:, 0], ordered[:, 1])


def _spans(name: str, given: Any) -> dict[str, Span]:
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{name}={shown(given)}: give a dict of spans, such as {{'subject': (1, 4)}}")
    spans = {}
    for key, span in given.items():
        ends = [
            whole_number(f"{name}[{check_text('name', key)!r}]", end, 0)
            for end in several(name, span, "two ends")
        ]
        if len(ends) != 2:
            raise ArgumentError(f"{name}[{key!r}]={shown(span)}: give (first, one behind the last)")
        spans[key] = ends[0], ends[1]
    return spans


def find_span(lm: LanguageModel, text: str, part: str) -> Span:
    """Positions of the tokens of ``text`` that cover its first ``part``.

    Raises:
      ArgumentError: ``part`` does not occur.

    Example:
      >>> import jmi_models
      >>> lm = jmi_models.load("atlas")
      >>> start, stop = find_span(lm, "The capital of France is", "France")
      >>> lm.decode(lm.encode("The capital of France is")[0, start:stop]).strip()
      'France'
    """
    check_text("text", text)
    start = text.find(check_text("part", part))
    if start < 0:
        raise ArgumentError(f"{part!r} does not occur in {text!r}")
    covered = [
        i
        for i, (low, high) in enumerate(lm.encode_with_offsets(text).offsets)
        if low < start + len(part) and high > start
    ]
    return covered[0], covered[-1] + 1
