"""Alignment: which positions of two prompts correspond, when they differ in length.

An `Alignment` is a list of pairs and goes where an experiment on two prompts takes positions.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jmi.checks import choice, several, shown, whole_array, whole_number
from jmi.checks import text as check_text
from jmi.errors import ArgumentError
from jmi.lm import LanguageModel
from jmi.model.inputs import as_prompts

Span = tuple[int, int]
"""First position, and the one after the last."""


class Alignment(NamedTuple):
    """Pairs of corresponding positions, in ascending order.

    Positions are those of real tokens, also where prompts are padded.

    Attributes:
      clean: int ``[n]``, or ``[b, n]`` where rows differ.
      corrupted: likewise, the position in the corrupted prompt for each in the clean one.
    """

    clean: np.ndarray
    corrupted: np.ndarray


def align_tokens(clean: Any, corrupted: Any) -> Alignment:
    """Pair the longest common beginning and, of what is left, the longest common end.

    Args:
      clean, corrupted: token ids ``[s]`` and ``[t]``, or of several rows: ``[b, s]``, ``(tokens, mask)`` or
        `jmi.Prompts`. Positions are then paired where the tokens agree in every row. Where one of them has a
        mask, the end is paired as positions -1, -2, ..., which are other ones in rows of other lengths.

    Raises:
      ArgumentError: different numbers of rows.

    Example:
      >>> pairs = align_tokens([7, 1, 2, 9], [7, 5, 9])
      >>> pairs.clean.tolist(), pairs.corrupted.tolist()
      ([0, 3], [0, 2])
    """
    (a, mask), (b, other_mask) = _rows("clean", clean), _rows("corrupted", corrupted)
    if len(a) != len(b):
        raise ArgumentError(f"clean has {len(a)} rows and corrupted has {len(b)}: align row by row")
    if mask is not None or other_mask is not None:
        return _align_padded(_tokens_of(a, mask), _tokens_of(b, other_mask))
    s, t = a.shape[1], b.shape[1]
    shorter = min(s, t)
    first = _run((a[:, :shorter] == b[:, :shorter]).all(0))
    left = shorter - first
    last = _run((a[:, s - left :] == b[:, t - left :]).all(0)[::-1])
    begin, end = np.arange(first), np.arange(-last, 0)
    return Alignment(np.concatenate([begin, end + s]), np.concatenate([begin, end + t]))


def _rows(name: str, given: Any) -> tuple[np.ndarray, Any]:
    """Token ids ``[b, s]`` and their mask, or None."""
    prompts = as_prompts(given, name)
    ids = np.asarray(whole_array(name, prompts.tokens))
    if ids.ndim not in (1, 2):
        raise ArgumentError(f"{name}={shown(given)}: give token ids [s], or [b, s]")
    return np.atleast_2d(ids), prompts.mask


def _tokens_of(tokens: np.ndarray, mask: Any) -> list[np.ndarray]:
    """The real tokens of each row."""
    real = np.ones(tokens.shape, bool) if mask is None else np.atleast_2d(np.asarray(mask))
    if real.shape != tokens.shape:
        raise ArgumentError(
            f"a mask has shape {real.shape} and its tokens {tokens.shape}: they must be alike"
        )
    return [row[kept] for row, kept in zip(tokens, real, strict=True)]


def _align_padded(clean: list[np.ndarray], corrupted: list[np.ndarray]) -> Alignment:
    pairs = [(a, b, min(len(a), len(b))) for a, b in zip(clean, corrupted, strict=True)]
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
    clean: Mapping[str, Span], corrupted: Mapping[str, Span], anchor: Literal["first", "last"] = "last"
) -> Alignment:
    """Pair the positions of spans of one name, such as the subject, token by token.

    Args:
      clean, corrupted: name -> span of positions in each prompt.
      anchor: of spans that differ in length, the last (or first) tokens are paired, as many as the
        shorter one has.

    Raises:
      ArgumentError: other names on one side, or a span that is empty or overlaps another.

    Example:
      >>> pairs = align_spans({"subject": (1, 4)}, {"subject": (2, 4)})
      >>> pairs.clean.tolist(), pairs.corrupted.tolist()
      ([2, 3], [2, 3])
    """
    clean, corrupted = _spans("clean", clean), _spans("corrupted", corrupted)
    if set(clean) != set(corrupted) or not clean:
        raise ArgumentError(f"spans of the same names pair up; got {sorted(clean)} and {sorted(corrupted)}")
    choice("anchor", anchor, ("first", "last"))
    pairs: list[tuple[int, int]] = []
    for name in clean:
        (a, a_stop), (b, b_stop) = clean[name], corrupted[name]
        n = min(a_stop - a, b_stop - b)
        if n < 1 or min(a, b) < 0:
            raise ArgumentError(
                f"{name}: spans {clean[name]} and {corrupted[name]} must hold a position each"
            )
        if anchor == "last":
            a, b = a_stop - n, b_stop - n
        pairs += zip(range(a, a + n), range(b, b + n), strict=True)
    ordered = np.array(sorted(pairs))
    if any((np.diff(np.sort(side)) == 0).any() for side in ordered.T):
        raise ArgumentError(f"spans overlap: {dict(clean)}, {dict(corrupted)}")
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
            raise ArgumentError(f"{name}[{key!r}]={shown(span)}: give (first, one after the last)")
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
