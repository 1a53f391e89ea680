"""Intervals and tests against scipy, and against counting by hand."""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats

from jmi.errors import ArgumentError
from jmi.stats import bootstrap, sign_flip, summary


def values(n: int, *cells: int) -> np.ndarray:
    """Skewed numbers whose sums are exact: scipy sees a tie only where nothing was rounded."""
    return np.round(64 * (np.random.default_rng(n).gamma(2.0, size=(*cells, n)) - 1.5)) / 64


@pytest.mark.parametrize("n", [2, 3, 10, 200])
def test_bootstrap_is_scipys_bca_of_the_same_resamples(n: int) -> None:
    given = values(n, 2, 3)
    low, high = bootstrap(given, level=0.9, resamples=500, seed=7)
    assert low.shape == high.shape == (2, 3)
    for cell in np.ndindex(2, 3):
        want = scipy.stats.bootstrap(
            (given[cell],), np.mean, confidence_level=0.9, n_resamples=500, rng=np.random.default_rng(7)
        ).confidence_interval
        np.testing.assert_allclose((low[cell], high[cell]), want, rtol=1e-10)


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    given = np.random.default_rng(0).exponential(size=(600, 40))
    low, high = bootstrap(given, level=0.9, resamples=600)
    # 600 cells: the standard error of the share is 0.012; BCa of 40 skewed examples is a little short.
    assert 0.84 < ((low < 1) & (high > 1)).mean() < 0.94


def test_equal_examples_have_an_interval_without_width_and_nan_stays_in_its_cell() -> None:
    given = np.stack([np.full(6, 0.1), np.arange(6.0), np.r_[np.nan, np.arange(5.0)]])
    low, high = bootstrap(given)
    np.testing.assert_allclose(low[0], 0.1, rtol=1e-15)
    assert low[0] == high[0]
    assert low[1] < 2.5 < high[1]
    assert np.isnan([low[2], high[2]]).all()
    p = sign_flip(given)
    assert p[0] == 2 / 2**6
    assert np.isnan(p[2])


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_exact_sign_flips_are_scipys_and_those_counted_by_hand(n: int) -> None:
    given = values(n, 4)
    p = sign_flip(given)
    for row, got in zip(given, p, strict=True):
        sums = [abs(np.dot(signs, row)) for signs in itertools.product((1, -1), repeat=n)]
        assert got == pytest.approx(np.mean(np.array(sums) >= abs(row.sum()) - 1e-12))
        if n > 1:
            flips = scipy.stats.permutation_test(
                (row,), np.mean, permutation_type="samples", n_resamples=np.inf
            )
            assert got == pytest.approx(min(1.0, flips.pvalue))


def test_drawn_sign_flips_come_near_the_exact_ones_and_are_never_zero() -> None:
    given = values(12, 30)
    exact, drawn = sign_flip(given), sign_flip(given, permutations=4000, seed=1)
    # Four standard errors of a share of 4000 draws.
    assert (np.abs(exact - drawn) < 4 * np.sqrt(exact * (1 - exact) / 4000) + 2 / 4000).all()
    np.testing.assert_array_equal(drawn, sign_flip(given, permutations=4000, seed=1))
    assert (drawn != sign_flip(given, permutations=4000, seed=2)).any()
    assert sign_flip(np.ones(100), permutations=999) == 1 / 1000


def test_p_values_of_no_effect_are_uniform() -> None:
    p = sign_flip(np.random.default_rng(3).normal(size=(2000, 10)))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_many_cells_in_blocks_are_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    given = values(6, 50)
    whole = bootstrap(given, resamples=100), sign_flip(given)
    monkeypatch.setattr("jmi.stats._BLOCK", 1000)
    parts = bootstrap(given, resamples=100), sign_flip(given)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-14)
    np.testing.assert_array_equal(parts[1], whole[1])


def test_summary_corrects_for_the_number_of_cells_and_compares_with_a_placebo() -> None:
    noise = np.random.default_rng(4).normal(size=(3, 20, 10))
    effects, placebo = noise[0] + 4 * (np.arange(20) == 7)[:, None], noise[1:]
    found = summary(effects, placebo, seed=5)
    np.testing.assert_allclose(found.mean, effects.mean(-1))
    np.testing.assert_array_equal((found.low, found.high), bootstrap(effects, seed=5))
    np.testing.assert_array_equal(found.p, sign_flip(effects))
    np.testing.assert_allclose(found.q, scipy.stats.false_discovery_control(found.p))
    np.testing.assert_allclose(found.placebo, placebo.mean((0, 2)))
    np.testing.assert_array_equal(found.placebo_p, sign_flip(effects - placebo.mean(0)))
    assert np.argmin(found.placebo_p) == 7


@pytest.mark.parametrize("power", [-1000, -600, -300, 300, 600, 1000])
def test_the_unit_of_the_values_does_not_matter(power: int) -> None:
    """A power of two rounds nothing; squares of such values would be zero or infinite."""
    given = np.concatenate([values(8, 4), np.zeros((1, 8))])
    scaled = np.ldexp(given, power)
    np.testing.assert_array_equal(sign_flip(scaled), sign_flip(given))
    np.testing.assert_array_equal(bootstrap(scaled), np.ldexp(bootstrap(given), power))


FUNCTIONS = {"bootstrap": bootstrap, "sign_flip": sign_flip, "summary": summary}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@each_function
@pytest.mark.parametrize("n", [2, 5, 30])
def test_infinite_values_are_refused_wherever_they_are(function: Any, n: int) -> None:
    """They once had p = 0: the sum of infinite values is as large as any."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        given = rng.normal(size=(3, n))
        where = rng.random(given.shape) < rng.random()
        where[rng.integers(3), rng.integers(n)] = True
        given[where] = rng.choice([np.inf, -np.inf], where.sum())
        given[~where & (rng.random(given.shape) < 0.1)] = np.nan
        with pytest.raises(ArgumentError, match="infinite"):
            function(given)


NO_NUMBERS = {
    "none": None,
    "text": "text",
    "texts": ["1", "2"],
    "ragged": [[1.0, 2.0], [3.0]],
    "complex": [1 + 2j, 2],
    "mapping": {"a": 1.0},
    "empty": [],
    "no examples": np.zeros((3, 0)),
    "number": 3.0,
    "objects": [object(), object()],
    "dates": np.array(["2020-01-01"] * 2, "datetime64[D]"),
}


@each_function
@pytest.mark.parametrize("given", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_array_of_numbers_is_refused(function: Any, given: Any) -> None:
    with pytest.raises(ArgumentError, match="values="):
        function(given)


def test_no_cells_have_no_results_and_integers_are_numbers() -> None:
    none, found = np.zeros((0, 2, 5)), summary(np.zeros((0, 2, 5)))
    for result in (*bootstrap(none), sign_flip(none), found.mean, found.low, found.high, found.p, found.q):
        assert result.shape == (0, 2)
    assert summary([3, 1, 2]) == summary([3.0, 1.0, 2.0])


@pytest.mark.parametrize("bad", [0, -1, 2.5, "3", None, np.nan])
def test_counts_and_seeds_are_whole_numbers(bad: Any) -> None:
    for function, name in ((bootstrap, "resamples"), (sign_flip, "permutations")):
        with pytest.raises(ArgumentError, match=f"{name}=.* whole number, 1 or more"):
            function([1.0, 2.0], **{name: bad})
        if bad != 0:
            with pytest.raises(ArgumentError, match=r"seed=.* whole number, 0 or more"):
                function([1.0, 2.0], seed=bad)


def test_wrong_arguments_are_refused() -> None:
    for function in (bootstrap, summary):
        with pytest.raises(ArgumentError, match="two examples"):
            function([1.0])
        for level in (95, 0, 1, -0.5, np.nan):
            with pytest.raises(ArgumentError, match="between 0 and 1"):
                function([1.0, 2.0], level=level)
    for placebo in (np.zeros((3, 4)), np.zeros((0, 3, 4)), np.zeros((2, 3, 5)), 1.0):
        with pytest.raises(ArgumentError, match="placebo= has shape"):
            summary(np.zeros((3, 4)), placebo)
    for placebo in (np.full((2, 3, 4), np.inf), "text"):
        with pytest.raises(ArgumentError, match="placebo="):
            summary(np.zeros((3, 4)), placebo)
