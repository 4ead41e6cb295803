"""Promises that a calibration sample supports: printed bounds, and how often a certified promise is broken."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.promise import (
    at_threshold,
    certify,
    highest,
    lower_bound,
    sample_for,
    sample_needed,
    upper_bound,
)


@pytest.mark.parametrize(
    ("right", "n", "printed"), [(970, 1000, 0.9595), (299, 299, 0.990), (1000, 1000, 0.997)]
)
def test_the_bounds_one_may_advertise_are_the_printed_ones(
    right: int, n: int, printed: float
) -> None:
    assert round(lower_bound(right, n), len(str(printed)) - 2) == printed


@given(st.integers(1, 400), st.data(), st.floats(0.001, 0.5))
def test_at_the_bound_the_binomial_tail_is_exactly_delta(
    n: int, data: st.DataObject, delta: float
) -> None:
    right = data.draw(st.integers(0, n))
    if right:
        low = lower_bound(right, n, delta)
        assert stats.binom.sf(right - 1, n, low) == pytest.approx(delta, rel=1e-6)
    if right < n:
        high = upper_bound(right, n, delta)
        assert stats.binom.cdf(right, n, high) == pytest.approx(delta, rel=1e-6)


@given(st.floats(0.5, 0.995), st.integers(0, 5))
def test_the_sample_needed_is_the_least_that_supports_the_promise(
    promise: float, wrong: int
) -> None:
    n = sample_needed(promise, wrong)
    assert lower_bound(n - wrong, n) >= promise - 1e-9
    assert n - 1 <= wrong or lower_bound(n - 1 - wrong, n - 1) < promise


def test_ninety_queries_cannot_support_97_percent_however_right_they_are() -> None:
    assert sample_needed(0.97) == 99
    signals = np.linspace(0, 1, 90)
    assert certify(signals, np.ones(90, bool), 0.97) is None
    found = highest(signals, np.ones(90, bool))
    assert found is not None
    assert (found.promise, found.coverage) == (0.96, 1.0)
    assert sample_for(0.97, 1.0) == 99
    assert sample_for(0.97, 0.97) is None


def test_the_sample_for_a_precision_supports_the_promise_and_a_smaller_one_need_not() -> None:
    n = sample_for(0.95, 0.97)
    assert n is not None
    assert lower_bound(math.floor(0.97 * n), n) >= 0.95
    assert lower_bound(math.floor(0.97 * 200), 200) < 0.95 < lower_bound(194 * 3, 600)


def drawn(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals uniform in [0, 1], right with probability signal^(1/4)."""
    signals = rng.random(n)
    return signals, rng.random(n) < signals**0.25


def precision_above(threshold: float) -> float:
    """The true share right of answers whose signal reaches the threshold, for `drawn`."""
    return (1 - threshold**1.25) / 1.25 / (1 - threshold)


@pytest.mark.parametrize(("n", "promise"), [(250, 0.85), (1000, 0.9), (1000, 0.95)])
def test_a_certified_promise_is_broken_in_at_most_delta_of_the_samples(
    n: int, promise: float
) -> None:
    rng, draws, broken, broken_highest, certified = np.random.default_rng(n), 150, 0, 0, 0
    for _ in range(draws):
        signals, correct = drawn(rng, n)
        found, best = certify(signals, correct, promise), highest(signals, correct)
        certified += found is not None
        broken += found is not None and precision_above(found.threshold) < promise
        broken_highest += best is not None and precision_above(best.threshold) < best.promise
    assert certified > 0.6 * draws
    allowed = stats.binom.ppf(0.999, draws, 0.05)
    assert broken <= allowed
    assert broken_highest <= allowed


def test_coverage_nears_the_ideal_as_the_sample_grows() -> None:
    grid = np.linspace(0, 0.999, 4000)
    ideal = 1 - grid[np.array([precision_above(t) for t in grid]) >= 0.9].min()
    rng = np.random.default_rng(3)
    found = [certify(*drawn(rng, 8000), 0.9) for _ in range(20)]
    coverage = np.mean([item.coverage for item in found if item is not None])
    assert ideal - 0.07 < coverage <= ideal + 0.01


def test_queries_without_an_answer_are_never_sold_and_count_in_the_coverage() -> None:
    signals = np.concatenate([np.linspace(0.5, 1, 300), np.full(100, np.nan)])
    found = certify(signals, np.concatenate([np.ones(300, bool), np.zeros(100, bool)]), 0.9)
    assert found is not None
    assert (found.sold, found.n, found.coverage) == (300, 400, 0.75)


def test_answers_of_equal_signal_are_sold_together() -> None:
    signals = np.repeat([0.9, 0.5], [200, 200])
    correct = np.concatenate([np.ones(200, bool), np.zeros(200, bool)])
    found = certify(signals, correct, 0.95)
    assert found is not None
    assert (found.threshold, found.sold) == (0.9, 200)
    fixed = at_threshold(signals, correct, 0.5, 0.95)
    assert fixed is not None
    assert (fixed.sold, fixed.precision) == (400, 0.5)
    assert fixed.bound < 0.95
    assert at_threshold(signals, correct, 0.95, 0.9) is None


def test_a_signal_that_knows_nothing_supports_no_more_than_the_mean() -> None:
    rng = np.random.default_rng(5)
    correct = rng.random(1000) < 0.7
    assert certify(np.full(1000, 0.9), correct, 0.9) is None
    found = highest(np.full(1000, 0.9), correct)
    assert found is not None
    assert found.promise < 0.7
    assert found.coverage == 1
