"""The reserve for wrong answers: printed values at risk, and the laws of the beta-binomial."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pricing.liability import reserve, value_at_risk


@pytest.mark.parametrize(("rho", "printed"), [(0.0, 551), (0.01, 1135), (0.05, 2206)])
def test_ten_thousand_answers_of_which_five_percent_are_wrong(rho: float, printed: int) -> None:
    assert value_at_risk(10_000, 0.05, rho) == printed


@given(st.integers(1, 500), st.floats(0.01, 0.9), st.floats(0.001, 0.6), st.floats(0.5, 0.999))
def test_it_is_the_percentile_of_the_beta_binomial(
    n: int, p: float, rho: float, level: float
) -> None:
    a, b = p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho
    law = stats.betabinom(n, a, b)
    found = value_at_risk(n, p, rho, level)
    assert law.cdf(found) >= level - 1e-9
    assert law.cdf(found - 1) <= level + 1e-9
    assert law.var() == pytest.approx(n * p * (1 - p) * (1 + (n - 1) * rho))


def test_errors_that_come_together_need_more_and_certain_ones_no_reserve() -> None:
    found = [value_at_risk(5000, 0.03, rho) for rho in (0.0, 0.001, 0.01, 0.1)]
    assert found == sorted(set(found))
    assert value_at_risk(5000, 0.0, 0.1) == 0
    assert value_at_risk(5000, 1.0, 0.1) == 5000
    assert value_at_risk(0, 0.5) == 0


def test_beyond_two_million_answers_the_share_is_taken_as_beta() -> None:
    exact, scaled = value_at_risk(1_900_000, 0.05, 0.01), value_at_risk(2_100_000, 0.05, 0.01)
    assert scaled / 2_100_000 == pytest.approx(exact / 1_900_000, rel=1e-3)


def test_a_reserve_is_what_lies_between_the_mean_and_the_worst_month_of_a_hundred() -> None:
    found = reserve(10_000, 0.05, 0.01, refund_usd=0.02)
    assert found.expected_usd == pytest.approx(10.0)
    assert found.at_risk_usd == pytest.approx(22.70)
    assert found.reserve_usd == pytest.approx(12.70)
    months = stats.betabinom(10_000, 0.05 * 99, 0.95 * 99).rvs(
        4000, random_state=np.random.default_rng(1)
    )
    assert np.mean(0.02 * months <= found.at_risk_usd) == pytest.approx(0.99, abs=0.007)


@pytest.mark.parametrize(("n", "p", "rho"), [(-1, 0.1, 0), (5, 1.1, 0), (5, 0.1, 1.0)])
def test_what_is_no_probability_is_refused(n: int, p: float, rho: float) -> None:
    with pytest.raises(ValueError, match="no reserve for"):
        value_at_risk(n, p, rho)
