"""The comparison that other tests rely on: it passes on what agrees, and on nothing else."""

import numpy as np
import pytest

from tests.support.tolerances import BARS, assert_agree

WANT = {"x": np.array([[1.0, -20.0], [0.0, 3.0]]), "ids": np.array([3, 7])}


def changed(**entries: object) -> dict[str, object]:
    return {**WANT, **entries}


def test_what_differs_by_less_than_the_bar_agrees() -> None:
    assert_agree(WANT, WANT)
    nearly = WANT["x"] + 0.9 * 20 * BARS["plans"]["float64"]
    assert_agree(changed(x=nearly), WANT)
    masked = np.where(WANT["x"] == 0, -np.inf, WANT["x"])
    assert_agree(masked, masked)
    assert_agree(np.float32(1e-6), np.float32(0), scale=[1.0, -2.0])
    assert_agree(np.float32(1 + 6e-6), np.float32(1), times=4)


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (changed(x=WANT["x"] + 1.1 * 20 * BARS["plans"]["float64"]), r"x.*plans in float64.*apart"),
        (changed(x=np.where(WANT["x"] == 3, np.nan, WANT["x"])), "NaN"),
        (changed(x=np.where(WANT["x"] == 3, np.inf, WANT["x"])), "apart"),
        (changed(x=WANT["x"][0]), r"shape \(2,\)"),
        (changed(x=WANT["x"].astype(np.float32)), "dtype float32"),
        (changed(ids=np.array([3, 8])), "ids"),
        (changed(more=0.0), "structure"),
    ],
)
def test_what_does_not_agree_fails_and_says_why(got: object, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert_agree(got, WANT)


@pytest.mark.parametrize("nothing", [{}, np.zeros(0), np.full(2, np.nan), np.ones(2, np.complex64)])
def test_nothing_and_nan_agree_with_nothing(nothing: object) -> None:
    with pytest.raises(AssertionError):
        assert_agree(nothing, nothing)


def test_what_was_seen_is_written_down_on_request(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JMI_TEST_MARGINS", str(tmp_path / "margins"))
    assert_agree(WANT["x"] + 1e-11, WANT["x"])
    line = (tmp_path / "margins").read_text()
    assert "test_what_was_seen" in line
    assert '"of_bar": 0.5' in line
