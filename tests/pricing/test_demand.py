"""Logit demand and the unravelling of a flat price, against printed values and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from pricing.demand import Offer, Segment, choice, elasticities, surplus, unravelling, worth

SEGMENTS = (
    Segment("casual", 0.7, value=0.02, harm=0.0, wait=1e-4, scale=0.004),
    Segment("careful", 0.3, value=0.10, harm=0.3, wait=1e-5, scale=0.02),
)
OFFERS = (Offer("fast", 1.0, 0.7, 5.0, 0.001), Offer("sure", 0.6, 0.97, 40.0, 0.01))


def test_average_cost_pricing_unravels_to_the_printed_shares() -> None:
    assert [round(100 * share, 1) for share in unravelling()[:3]] == [24.5, 2.5, 0.0]


def test_the_unravelling_is_what_a_million_clients_do() -> None:
    z, e = np.random.default_rng(1).standard_normal((2, 1_000_000))
    cost, value = np.exp(1.2 * z), 1.2 * np.exp(1.2 * z) ** 0.6 * np.exp(0.3 * e)
    buys, shares = np.ones(len(z), bool), []
    for _ in range(2):
        buys = value >= cost[buys].mean()
        shares.append(float(buys.mean()))
    assert shares == pytest.approx(unravelling()[:2], rel=0.03)
    assert (value >= cost).mean() > 0.5  # most trades would have paid


def test_when_clients_value_hard_queries_more_than_they_cost_a_flat_price_serves_everybody() -> (
    None
):
    assert unravelling(premium=100.0, elasticity=1.0, tastes=0.0)[-1] > 0.99


def test_demand_is_a_share_falls_with_its_price_and_surplus_is_its_integral() -> None:
    value, scale = worth(SEGMENTS, [OFFERS] * 2), np.array([s.scale for s in SEGMENTS])

    def utility(price: np.ndarray) -> np.ndarray:
        return (value - price) / scale[:, None]

    price = np.array([0.003, 0.02])
    share = choice(utility(price))
    assert (share > 0).all()
    assert (share.sum(axis=1) < 1).all()
    step = 1e-7 * np.array([1.0, 0.0])
    slope = (choice(utility(price + step)) - choice(utility(price - step)))[:, 0] / 2e-7
    wanted = elasticities(utility(price), scale, price)[:, 0] * share[:, 0] / price[0]
    assert slope == pytest.approx(wanted, rel=1e-5)
    gain = surplus(utility(price - step), scale) - surplus(utility(price + step), scale)
    assert gain / 2e-7 == pytest.approx(share[:, 0], rel=1e-5)


def test_a_wrong_answer_sold_as_right_costs_those_who_rely_on_it() -> None:
    value = worth(SEGMENTS, [OFFERS] * 2)
    assert value[0, 0] == pytest.approx(0.02 * 0.7 - 1e-4 * 5)
    assert value[1, 0] == pytest.approx(0.10 * 0.7 - 0.3 * 0.3 - 1e-5 * 5)
    assert value[1, 1] > value[1, 0]
