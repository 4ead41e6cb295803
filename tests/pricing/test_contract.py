"""What a client owes, by hand, and the closed forms of a promise against published check values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.contract import (
    break_even,
    charges,
    covered,
    kept,
    margin,
    miscalibration_loss,
    price,
)
from pricing.cost import rates
from scenarios.errors import UserError
from scenarios.schema import Tier
from sim.records import Table, measured, select
from sim.resolve import resolve
from tests.sim import fixtures

SHARE = st.floats(0.01, 1)
USD = st.floats(0.001, 10)


def owed(
    changes: dict[str, object], price_of: dict[str, object], **tier: object
) -> tuple[float, ...]:
    """Charge, refund and credit of one query under one contract."""
    table = fixtures.table("queries", fixtures.query(**changes))
    contract = Tier.model_validate({"price": price_of, **tier})
    assert contract.price is not None
    return tuple(float(value[0]) for value in charges(table, contract, contract.price))


def test_the_example_of_a_contract_to_its_printed_digits() -> None:
    terms = {"price": 1.0, "cost": 0.35, "coverage": 0.8, "refund": 2.0}
    assert round(margin(**terms, precision=0.93), 3) == 0.338
    assert round(margin(**terms, precision=0.97), 3) == 0.402
    assert round(break_even(0.35, coverage=0.8, precision=0.93, refund=2.0), 4) == 0.5087
    assert round(miscalibration_loss(1.0, 0.8, 2.0, 0.97, 0.93), 3) == 0.064


@given(USD, SHARE, SHARE, st.floats(0, 3), SHARE, SHARE)
def test_the_margin_at_break_even_is_nought(
    cost: float, a: float, s: float, r: float, credit: float, late: float
) -> None:
    at = break_even(cost, a, s, r, credit, late)
    if math.isinf(at):
        assert kept(s, r, credit, late) <= 0
    else:
        assert margin(at, cost, a, s, r, credit, late) == pytest.approx(0, abs=1e-9 * max(1, cost))


@given(USD, SHARE, SHARE, SHARE, st.floats(0, 3))
def test_what_a_wrong_promise_loses_is_the_gap_between_its_margins(
    price_usd: float, a: float, claimed: float, true: float, r: float
) -> None:
    gap = margin(price_usd, 0.1, a, claimed, r) - margin(price_usd, 0.1, a, true, r)
    assert miscalibration_loss(price_usd, a, r, claimed, true) == pytest.approx(gap, abs=1e-9)


def test_per_token_per_query_and_per_trajectory() -> None:
    tokens = {"input_tokens": 1_000_000, "output_tokens": 500_000, "trajectories": 4}
    assert owed(tokens, {"per_mtok_in": "0.60 USD", "per_mtok_out": "2.40 USD"})[
        0
    ] == pytest.approx(1.8)
    assert owed(tokens, {"per_query": "0.05 USD"})[0] == 0.05
    assert owed(tokens, {"per_trajectory": "0.01 USD"})[0] == 0.04


def test_a_confidence_contract_charges_only_what_it_accepts_and_refunds_what_was_wrong() -> None:
    terms = {"per_answer": "0.02 USD", "refund": 2.0}
    assert owed({"accepted": True}, terms) == (0.02, 0, 0)
    assert owed({"accepted": True, "correct": False}, terms) == (0.02, 0.04, 0)
    assert owed({"accepted": False, "correct": False}, terms) == (0, 0, 0)


def test_a_late_answer_is_credited_and_an_unanswered_query_owes_nothing() -> None:
    terms, slo = {"per_answer": "1 USD", "late_credit": "10%"}, {"e2e_p95": "2s"}
    assert owed({"finish_s": 2.5}, terms, slo=slo) == (1, 0, 0.1)
    assert owed({"finish_s": 1.5}, terms, slo=slo) == (1, 0, 0)
    assert owed({"status": "refused", "finish_s": math.nan}, terms, slo=slo) == (0, 0, 0)
    assert owed({"status": "cut", "finish_s": 1.5}, terms, slo=slo) == (1, 0, 0)


def test_a_ladder_of_levels_charges_the_highest_that_the_confidence_reaches() -> None:
    terms = {"levels": {"80%": "0.01 USD", "95%": "0.03 USD"}, "refund": 1.0}
    assert owed({"confidence": 0.79}, terms) == (0, 0, 0)
    assert owed({"confidence": 0.8}, terms)[0] == 0.01
    assert owed({"confidence": 0.96, "correct": False}, terms) == (0.03, 0.03, 0)
    assert owed({"confidence": 0.96, "accepted": False}, terms) == (0, 0, 0)
    assert owed({"confidence": math.nan, "accepted": False}, terms) == (0, 0, 0)


def test_an_outcome_is_paid_only_where_it_is_right() -> None:
    assert owed({"correct": True}, {"per_outcome": "0.99 USD"}) == (0.99, 0, 0)
    assert owed({"correct": False}, {"per_outcome": "0.99 USD"}) == (0, 0, 0)
    assert owed({"accepted": False}, {"per_outcome": "0.99 USD"}) == (0, 0, 0)


def test_nobody_pays_more_than_the_budget_that_was_promised() -> None:
    terms = {"per_mtok_in": "1 USD", "per_mtok_out": "1 USD"}
    tokens = {"input_tokens": 20_000, "output_tokens": 50_000}
    assert owed(tokens, terms)[0] == pytest.approx(0.07)
    assert owed(tokens, terms, promise={"budget": "0.05 USD"})[0] == 0.05


def test_a_budget_in_usd_lets_a_search_generate_what_it_buys() -> None:
    budget = "promise: {budget: 0.0005 USD}, price: {per_mtok_out: 2.40 USD}"
    text = fixtures.SCENARIO.replace("price: {per_mtok_out: 2.40 USD}", budget)
    assert resolve(fixtures.loaded(text)).plans[0].max_tokens == 208
    with pytest.raises(UserError, match=r"made-up.yaml:\d+:\d+: 0.0005 USD buy no answer"):
        resolve(fixtures.loaded(text.replace("price: {", "price: {per_query: 0.001 USD, ")))
    narrow = text.replace("0.0005 USD}", "0.05 USD}").replace(
        "search: {algorithm: direct}", "search: {algorithm: self_consistency, n: 8}"
    )
    with pytest.raises(UserError, match="finishes 8, more than 0.05 USD buy"):
        resolve(fixtures.loaded(narrow.replace("price: {", "price: {per_trajectory: 0.01 USD, ")))


def test_a_commitment_covers_the_first_queries_of_each_minute_and_is_owed_unused() -> None:
    rows = [fixtures.query(query_id=i, arrival_s=10.0 * i) for i in range(12)]
    table = fixtures.table("queries", *rows)
    assert covered(table, 2 / 60).tolist() == ([True] * 2 + [False] * 4) * 2
    text = fixtures.SCENARIO.replace(
        "price: {per_mtok_out: 2.40 USD}",
        "price: {per_query: 0.01 USD, committed: {rate: 1/s, fee: 36 USD/h}}",
    )
    result = fixtures.result()
    priced = price(result, fixtures.loaded(text).scenario)
    mine = measured(priced.result.queries)
    fast = select(mine, mine["tier"] == "fast")
    beyond = int(
        (~covered(select(result.queries, result.queries["tier"] == "fast"), 1.0))[
            select(result.queries, result.queries["tier"] == "fast")["measured"]
        ].sum()
    )
    fees = 36 / 3600 * sum(result.pools["span_s"][result.pools["role"] == "policy"])
    assert beyond > 0
    assert fast["charge_usd"].sum() == pytest.approx(fees + 0.01 * beyond)


def test_terms_and_power_change_what_a_gpu_hour_costs() -> None:
    text = fixtures.SCENARIO.replace(
        "pricing: {device_rates: {h200-sxm-141gb: 3.60 USD/h}}", "pricing: {PRICING}"
    )

    def rate(pricing: str) -> float | None:
        return rates(fixtures.loaded(text.replace("PRICING", pricing)).scenario)["thinker"]

    assert rate("terms: committed") == 2.52
    assert rate("terms: spot") == 2.62
    # 700 W x 1.5 x 0.10 USD/kWh
    assert rate("power: {per_kwh: 0.10 USD, pue: 1.5}") == pytest.approx(3.99 + 0.105)
    scarce = text.replace("h200-sxm-141gb", "l40s-48gb").replace("PRICING", "terms: spot")
    with pytest.raises(UserError, match="no spot rate is known for l40s-48gb: add pricing"):
        resolve(fixtures.loaded(scarce))


def careful(table: Table) -> Table:
    mine = measured(table)
    return select(mine, mine["tier"] == "careful")


def test_a_run_earns_what_the_closed_form_says_at_its_realised_shares() -> None:
    text = fixtures.SCENARIO.replace(", late_credit: 10%", "")
    priced = price(fixtures.result(), fixtures.loaded(text).scenario)
    money = priced.tiers[1]
    table = careful(priced.result.queries)
    a, s = table["accepted"].mean(), table["correct"][table["accepted"]].mean()
    cost = table["cost_usd"].mean() * priced.bill.overhead
    closed = margin(0.02, cost, a, s, 1.0)
    assert money.margin_per_query.value == pytest.approx(closed)
    assert money.margin_usd == pytest.approx(closed * money.n)
    assert money.break_even * 0.02 == pytest.approx(break_even(cost, a, s, 1.0))
    claimed = table["confidence"][table["accepted"]].mean()
    assert money.margin_claimed == pytest.approx(margin(0.02, cost, a, claimed, 1.0))


def test_every_tiers_cost_and_idle_add_up_to_the_measured_share_of_the_bill() -> None:
    priced = price(fixtures.result(), fixtures.loaded().scenario)
    queries = priced.result.queries
    share = queries["cost_usd"][queries["measured"]].sum() / queries["cost_usd"].sum()
    spent = sum(tier.cost_usd + tier.idle_usd for tier in priced.tiers)
    assert spent == pytest.approx(priced.bill.total_usd * share, rel=1e-9)


def test_a_tier_without_a_price_has_costs_and_no_revenue() -> None:
    text = fixtures.SCENARIO.replace(", price: {per_mtok_out: 2.40 USD}", "")
    priced = price(fixtures.result(), fixtures.loaded(text).scenario)
    fast = priced.tiers[0]
    assert fast.cost_usd > 0
    assert math.isnan(fast.revenue_usd)
    assert math.isnan(fast.margin_per_query.value)
    assert math.isnan(fast.break_even)
    assert not np.isnan(careful(priced.result.queries)["charge_usd"]).any()


def test_a_device_without_a_rate_leaves_revenue_and_no_cost() -> None:
    spec = fixtures.loaded().scenario
    money = price(fixtures.result(), spec, {"thinker": None, "judge": None}).tiers[0]
    assert money.revenue_usd > 0
    assert math.isnan(money.cost_usd)
    assert math.isnan(money.margin_usd)
