"""The bill of the month: whole nodes over a week, the best commitment, and when an API is cheaper."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing.contract import Priced, price
from pricing.elsewhere import elsewhere
from pricing.month import (
    HOURS,
    MONTH_WEEKS,
    break_even_queries,
    cheapest_commitment,
    month_bill,
    week_of,
)
from scenarios.errors import UserError
from scenarios.schema import Scenario
from sim.records import measured, size
from tests.sim import fixtures

HOURLY = ", ".join(f"{1 + h % 12}/s" for h in range(24))
DAY = f"arrivals: {{kind: diurnal, hourly: [{HOURLY}]}}"


def scenario(*changes: tuple[str, str]) -> Scenario:
    text = fixtures.SCENARIO.replace("pricing: {device_rates: {h200-sxm-141gb: 3.60 USD/h}}", "")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return fixtures.loaded(text).scenario


def priced(spec: Scenario, **bound: float) -> Priced:
    """A made-up run whose pools need so many replica-seconds a query, by the run's own bound."""
    result = fixtures.result()
    rate = size(measured(result.queries)) / (
        float(result.pools["span_s"][result.pools["pool"] == "thinker"].sum())
    )
    rows = [{"pool": pool, "compute": each * rate, "kv": 0.0} for pool, each in bound.items()]
    return price(replace(result, meta={"bounds": rows}), spec)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.floats(0.05, 1.0))
def test_no_other_commitment_is_cheaper_and_it_is_the_newsvendors_quantile(
    needed: list[int], ratio: float
) -> None:
    best, cost = cheapest_commitment(needed, 1.0, ratio)
    for k in range(15):
        spent = sum(k * ratio + max(0, n - k) for n in needed) / len(needed)
        assert cost <= spent + 1e-12
    # one more committed node would be needed in less than a share `ratio` of the hours
    assert np.mean(np.array(needed) > best) <= ratio + 1e-12
    assert best == 0 or np.mean(np.array(needed) > best - 1) >= ratio - 1e-12


def test_a_constant_load_is_a_number_of_nodes_around_the_clock() -> None:
    spec = scenario()
    run = priced(spec, thinker=2.0, judge=0.1)
    bill = month_bill(spec, run)
    rate = bill.week[0]
    assert set(bill.week) == {rate}
    gpus = math.ceil(2.0 * rate / 0.7) + math.ceil(0.1 * rate / 0.7)
    (nodes,) = bill.nodes
    assert set(nodes.needed) == {math.ceil(gpus / 8)}
    assert nodes.committed == nodes.needed[0]  # 2.52 around the clock is less than 3.99
    usd = nodes.needed[0] * 8 * HOURS * 2.52 * MONTH_WEEKS
    assert bill.total_usd == pytest.approx(usd)
    assert bill.per_query == pytest.approx(usd / (rate * 3600 * HOURS * MONTH_WEEKS))
    assert bill.year_usd == pytest.approx(12 * usd)


def test_a_day_has_its_hours_and_a_weekend_is_thinner() -> None:
    spec = scenario(("arrivals: {rate: 3/s}", DAY))
    run = priced(spec, thinker=20.0, judge=0.1)
    week = week_of(spec, run)
    assert week[:3] == pytest.approx([1, 2, 3])
    assert week[24 * 5 : 24 * 5 + 3] == pytest.approx([0.7, 1.4, 2.1])
    (nodes,) = month_bill(spec, run).nodes
    assert min(nodes.needed) < nodes.committed < max(nodes.needed)
    assert nodes.total_usd < min(nodes.all_on_demand_usd, nodes.all_committed_usd)
    paid = [max(n, nodes.committed) for n in nodes.needed]
    assert nodes.gpu_hours == pytest.approx(sum(paid) * 8 * MONTH_WEEKS)


def test_without_a_bound_a_query_needs_what_it_was_charged() -> None:
    spec = scenario()
    run = price(fixtures.result(), spec)
    thinker = run.result.pools["pool"] == "thinker"
    each = run.result.pools["attributed_gpu_seconds"][thinker].sum() / size(run.result.queries)
    known = priced(spec, thinker=each, judge=0.0)
    assert month_bill(spec, run).nodes[0].needed == month_bill(spec, known).nodes[0].needed


def test_rates_of_ones_own_replace_the_catalogues() -> None:
    own = "pricing: {device_rates: {h200-sxm-141gb: 3 USD/h}, month: {committed_rates: {h200-sxm-141gb: 1 USD/h}}}\n"
    spec = fixtures.loaded(re.sub(r"pricing: .*\n", own, fixtures.SCENARIO)).scenario
    (nodes,) = month_bill(spec, priced(spec, thinker=2.0, judge=0.1)).nodes
    assert (nodes.on_demand_rate, nodes.committed_rate) == (3.0, 1.0)


def test_from_the_break_even_on_serving_oneself_stays_cheaper() -> None:
    spec = scenario()
    run = priced(spec, thinker=2.0, judge=0.1)
    today = month_bill(spec, run)
    volume = break_even_queries(spec, run, 3 * today.per_query)
    assert volume is not None
    assert volume < today.queries
    for factor in (volume / today.queries * 1.001, 1.0, 10.0, 100.0):
        assert month_bill(spec, run, factor).per_query < 3 * today.per_query
    assert month_bill(spec, run, volume / today.queries / 1.1).per_query > 3 * today.per_query
    assert break_even_queries(spec, run, 1e-7) is None


def test_elsewhere_each_query_is_priced_as_one_request_on_its_day() -> None:
    pytest.importorskip("genai_prices", reason="the extra `prices` is not installed")
    spec = scenario()
    run = priced(spec, thinker=2.0)
    table = measured(run.result.queries)
    (now, then) = (elsewhere(run, ["o3"], day)[0] for day in ("2026-11-01", "2025-06-01"))
    assert (now.provider, now.model, now.as_of) == ("openai", "o3", "2026-11-01")
    wanted = (2 * table["input_tokens"].mean() + 8 * table["output_tokens"].mean()) / 1e6
    assert now.same_tokens == pytest.approx(wanted, rel=0.05)  # a sample of the queries
    assert now.one_answer < now.same_tokens
    # o3 was five times dearer until 2025-06-10
    assert then.same_tokens == pytest.approx(5 * now.same_tokens)


@pytest.mark.parametrize(
    ("model", "day", "words"),
    [
        ("gpt-nonsense", "2026-11-01", "--against gpt-nonsense"),
        ("o3", "last year", "is no date. Write --as-of 2026-11-01."),
    ],
)
def test_an_unknown_model_or_day_is_refused(model: str, day: str, words: str) -> None:
    pytest.importorskip("genai_prices", reason="the extra `prices` is not installed")
    with pytest.raises(UserError, match=re.escape(words)):
        elsewhere(priced(scenario(), thinker=2.0), [model], day)
