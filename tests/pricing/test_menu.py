"""The best menu against closed forms: logit markup, Mussa and Rosen, and the shadow price as a derivative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.demand import Offer, Segment
from pricing.menu import at_prices, best_prices, equal_markup, screening


def test_the_markup_of_one_segment_is_the_printed_one() -> None:
    markup, profit, shares = equal_markup((2, 3, 4.5), (0.2, 0.6, 1.8), 1.5)
    assert f"{markup:.5f}" == "1.69670"
    assert f"{profit:.5f}" == "1.03003"
    assert [f"{share:.4f}" for share in shares] == ["0.1688", "0.2518", "0.1865"]


def one_segment() -> tuple[tuple[Segment, ...], tuple[tuple[Offer, ...], ...]]:
    """The same market in USD: utility a - 1.5 p is (a / 1.5 - p) / (1 / 1.5); a right answer is worth 1."""
    values, costs = (2, 3, 4.5), (0.2, 0.6, 1.8)
    offers = [
        Offer(str(a), 1.0, a / 4.5, 0.0, c, gpu_s=c) for a, c in zip(values, costs, strict=True)
    ]
    return (Segment("all", 1.0, value=3.0, scale=1 / 1.5),), (tuple(offers),)


def test_the_search_finds_the_closed_form() -> None:
    segments, offers = one_segment()
    menu = best_prices(segments, offers)
    assert menu.margin_usd == pytest.approx(1.03003, abs=2e-6)
    assert [f"{s:.4f}" for s in menu.bought(segments)] == ["0.1688", "0.2518", "0.1865"]
    markups = np.array(menu.prices) - [o.cost_usd for o in offers[0]]
    assert markups == pytest.approx(1.69670, abs=1e-4)
    assert menu.shadow_usd == 0


def test_a_capacity_that_binds_has_the_shadow_price_that_one_more_second_earns() -> None:
    segments, offers = one_segment()
    free = best_prices(segments, offers)
    limit = 0.6 * free.gpu_s
    menu = best_prices(segments, offers, capacity=limit)
    assert menu.gpu_s == pytest.approx(limit, rel=1e-5)
    more, less = (best_prices(segments, offers, capacity=limit + d) for d in (1e-3, -1e-3))
    assert menu.shadow_usd == pytest.approx((more.margin_usd - less.margin_usd) / 2e-3, rel=1e-3)
    # with a limit the markup is the closed form at costs that hold the shadow price
    dear = [o.cost_usd + menu.shadow_usd * o.gpu_s for o in offers[0]]
    markup, _, _ = equal_markup((2, 3, 4.5), dear, 1.5)
    assert np.array(menu.prices) - dear == pytest.approx(markup, abs=1e-3)


SEGMENT = st.builds(
    Segment,
    name=st.just("s"),
    share=st.floats(0.1, 1),
    value=st.floats(0.0, 0.2),
    harm=st.floats(0, 0.3),
    wait=st.floats(0, 1e-3),
    scale=st.floats(0.005, 0.05),
)
OFFER = st.builds(
    Offer,
    name=st.just("o"),
    coverage=st.floats(0.1, 1),
    precision=st.floats(0.3, 1),
    latency_s=st.floats(0, 60),
    cost_usd=st.floats(0.0001, 0.02),
    units=st.floats(0.1, 1),
)


@settings(max_examples=15)
@given(st.lists(SEGMENT, min_size=1, max_size=3), st.lists(OFFER, min_size=1, max_size=3))
def test_no_price_nearby_earns_more(segments: list[Segment], offers: list[Offer]) -> None:
    rows = [offers] * len(segments)
    menu = best_prices(segments, rows)
    rng = np.random.default_rng(0)
    for _ in range(20):
        factors = 1 + rng.uniform(-0.2, 0.2, len(offers))
        other = at_prices(
            segments, rows, [p * f for p, f in zip(menu.prices, factors, strict=True)]
        )
        assert other.margin_usd <= menu.margin_usd + 1e-9


def test_prices_that_count_welfare_fully_are_those_of_marginal_cost() -> None:
    segments, offers = one_segment()
    menu = best_prices(segments, offers, welfare=1.0)
    assert np.array(menu.prices) == pytest.approx([o.cost_usd for o in offers[0]], abs=1e-4)
    assert menu.welfare_usd > best_prices(segments, offers).welfare_usd


def test_a_price_per_sold_answer_holds_coverage_and_refunds() -> None:
    segments = (Segment("all", 1.0, value=0.1, scale=0.01),)
    whole = best_prices(segments, [[Offer("a", 0.5, 0.9, 0, 0.01, units=0.5)]])
    less = best_prices(segments, [[Offer("a", 0.5, 0.9, 0, 0.01, units=0.4)]])
    assert less.margin_usd == pytest.approx(whole.margin_usd)
    assert less.prices[0] == pytest.approx(whole.prices[0] / 0.8, rel=1e-4)


def test_segments_that_see_a_tier_differently_pay_differently_and_one_may_not_have_it() -> None:
    segments = (
        Segment("easy", 0.5, value=0.05, scale=0.01),
        Segment("hard", 0.5, value=0.05, scale=0.01),
    )
    good, poor = (
        Offer("a", 0.9, 0.95, 0, 0.002, units=0.9),
        Offer("a", 0.3, 0.9, 0, 0.02, units=0.3),
    )
    menu = best_prices(segments, [[good], [poor]])
    assert menu.shares[0][0] > menu.shares[1][0]
    nothing = Offer("a", float("nan"), 0, 0, 0)
    alone = best_prices(segments, [[good], [nothing]])
    assert alone.shares[1][0] == 0
    assert alone.margin_usd == pytest.approx(best_prices(segments[:1], [[good]]).margin_usd / 2)


def test_an_offer_whose_refunds_eat_its_price_is_refused() -> None:
    segments = (Segment("all", 1.0, value=0.1, scale=0.01),)
    with pytest.raises(ValueError, match="brings nothing at any price"):
        best_prices(segments, [[Offer("a", 0.5, 0.3, 0, 0.01, units=-0.2)]])
    with pytest.raises(ValueError, match="at least one segment and one offer"):
        best_prices(segments, [[]])


def test_two_types_with_hidden_tastes() -> None:
    quality, price, profit = screening((1, 2), (0.8, 0.2))
    assert quality == pytest.approx([0.75, 2])
    assert price == pytest.approx([0.75, 3.25])
    assert profit == pytest.approx(0.625)
    for share in (0.5, 0.7):
        assert screening((1, 2), (1 - share, share))[0][0] == pytest.approx(0, abs=1e-12)


def test_uniform_tastes() -> None:
    theta = (np.arange(4000) + 0.5) / 4000
    quality, price, profit = screening(theta, np.full(4000, 1 / 4000))
    served = quality > 0
    assert theta[served].min() == pytest.approx(0.5, abs=1e-3)
    assert quality == pytest.approx(np.maximum(0, 2 * theta - 1), abs=1e-3)
    assert price[served] == pytest.approx((quality / 2 + quality**2 / 4)[served], abs=1e-3)
    assert profit == pytest.approx(1 / 12, abs=1e-4)


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=6), st.integers(0, 1000))
def test_no_type_wants_the_bundle_of_another_and_nobody_pays_more_than_it_is_worth(
    gaps: list[float], seed: int
) -> None:
    theta = np.cumsum(gaps)
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(gaps))
    quality, price, _ = screening(theta, weights)
    rent = theta * quality - price
    assert (rent >= -1e-9).all()
    assert (np.diff(quality) >= -1e-12).all()
    gain = theta[:, None] * quality[None, :] - price[None, :]
    assert (gain <= rent[:, None] + 1e-9).all()
