"""Prompts of other lengths: which positions correspond, and patching where they do."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmi_models
from jmi.align import Alignment, align_spans, align_tokens, find_span
from jmi.errors import ArgumentError
from jmi.interp.patching.patch import patch
from tests.interp.by_hand import MEASURES, by_hand, captured, diff, same, small


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def test_prompts_of_different_lengths_are_patched_where_they_are_aligned() -> None:
    lm = small()
    base = np.array([[1, 2, 3, 9, 4], [1, 2, 5, 9, 4]], np.int32)
    source = np.array([[1, 6, 7, 8, 9, 4], [1, 3, 3, 3, 9, 4]], np.int32)
    pairs = align_tokens(source, base)
    assert (pairs.corrupted.tolist(), pairs.clean.tolist()) == ([0, 3, 4], [0, 4, 5])
    found = patch(lm, source, base, "hook_resid_mid", metric=MEASURES, at={"position": pairs})
    same(found.source["diff"], diff(np.asarray(lm.run(source).logits[:, -1])))
    put = np.zeros((3, 2, 5, 16))
    put[:, :, pairs.corrupted] = captured(lm, source, "blocks.*.hook_resid_mid")[:, :, pairs.clean]
    for layer, i in ((0, 0), (1, 1), (2, 2)):
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [layer], position=pairs.corrupted[i])
        same(found.patched["diff"][layer, i], diff(want))
    back = patch(
        lm,
        base,
        source,
        "hook_resid_mid",
        metric=MEASURES,
        into="clean",
        at={"position": align_tokens(base, source)},
    )
    same(back.patched["diff"], found.patched["diff"])
    per_row = Alignment(np.array([[3, 4], [2, 5]]), np.array([[2, 3], [1, 3]]))
    rows = patch(lm, source, base, "hook_resid_mid", metric=MEASURES, at={"position": per_row})
    for row, i in np.ndindex(2, 2):
        put[:, row, per_row.corrupted[row, i]] = captured(lm, source, "blocks.*.hook_resid_mid")[
            :, row, per_row.clean[row, i]
        ]
        want = by_hand(lm, base, "blocks.*.hook_resid_mid", put, [1], position=per_row.corrupted[row, i])
        same(rows.patched["diff"][1, i, row], diff(want)[row])
    with pytest.raises(ArgumentError, match="say which correspond"):
        patch(lm, source, base, "hook_resid_mid", metric=MEASURES)
    with pytest.raises(ArgumentError, match="the other prompt has 6 positions"):
        patch(
            lm,
            source,
            base,
            "hook_resid_mid",
            metric=MEASURES,
            at={"position": Alignment(pairs.clean + 1, pairs.corrupted)},
        )


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_alignment_is_the_longest_common_beginning_and_end(base: list[int], source: list[int]) -> None:
    base = [*base, 3][:8]
    pairs = align_tokens(base, source)
    a, b = pairs.clean.tolist(), pairs.corrupted.tolist()
    assert [base[i] for i in a] == [source[i] for i in b]
    assert sorted(set(a)) == a
    assert sorted(set(b)) == b
    first = next((n for n in range(len(a) + 1) if n == len(a) or a[n] != n or b[n] != n), 0)
    last = len(a) - first
    assert a == [*range(first), *range(len(base) - last, len(base))]
    assert b == [*range(first), *range(len(source) - last, len(source))]
    inside = min(len(base), len(source)) - last > first
    # Between the two parts neither could be longer by one.
    assert not inside or base[first] != source[first]
    assert not inside or base[-last - 1] != source[-last - 1]


def test_spans_pair_from_the_end_or_the_start() -> None:
    base, source = {"subject": (1, 4), "verb": (6, 7)}, {"subject": (0, 2), "verb": (2, 3)}
    pairs = align_spans(base, source)
    assert (pairs.clean.tolist(), pairs.corrupted.tolist()) == ([2, 3, 6], [0, 1, 2])
    pairs = align_spans(base, source, anchor="first")
    assert (pairs.clean.tolist(), pairs.corrupted.tolist()) == ([1, 2, 6], [0, 1, 2])
    with pytest.raises(ArgumentError, match="same names"):
        align_spans(base, {"subject": (0, 2)})
    with pytest.raises(ArgumentError, match="must hold"):
        align_spans({"subject": (1, 1)}, {"subject": (0, 2)})
    with pytest.raises(ArgumentError, match="overlap"):
        align_spans({"a": (0, 2), "b": (1, 3)}, {"a": (0, 2), "b": (2, 4)})


def test_the_span_of_a_word_covers_its_tokens() -> None:
    lm = jmi_models.load("atlas")
    text = "Yesterday the prime minister of Czechoslovakia left."
    for part in ("prime minister", "Czechoslovakia", "Yesterday", "."):
        start, stop = find_span(lm, text, part)
        assert lm.decode(lm.encode(text)[0, start:stop]).strip() == part
    with pytest.raises(ArgumentError, match="does not occur"):
        find_span(lm, text, "Prague")
