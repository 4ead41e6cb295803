"""Every GPU-second is paid by a query or is idle: the parts of a bill add up to the bill."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.cost import ConservationError, price_queries, rates
from sim.records import Recorder, Result
from tests.sim import fixtures


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Result, dict[str, float | None]]:
    """Any number of policy and verifier pools, queries spread over them, some never placed."""
    recorder = Recorder()
    policies = [f"policy{i}" for i in range(draw(st.integers(1, 3)))]
    verifiers = [f"verifier{i}" for i in range(draw(st.integers(0, 2)))]
    seconds = st.floats(0, 1e4, allow_subnormal=False)
    for replication in range(draw(st.integers(1, 3))):
        work = dict.fromkeys([*policies, *verifiers], 0.0)
        for index in range(draw(st.integers(0, 20))):
            pool, policy = draw(st.sampled_from(policies)), draw(seconds)
            judged = draw(seconds) if verifiers else 0.0
            work[pool] += policy
            for share, name in zip(
                (0.25, 0.75) if len(verifiers) == 2 else (1.0,), verifiers, strict=False
            ):
                work[name] += share * judged
            row = fixtures.query(
                replication=replication, query_id=index, policy_pool=pool, gpu_seconds=policy + judged,
                policy_gpu_seconds=policy, verifier_gpu_seconds=judged,
            )  # fmt: skip
            recorder.add("queries", **row)
        for name, used in work.items():
            role = "policy" if name in policies else "verifier"
            fleet = used + draw(seconds)
            recorder.add("pools", **fixtures.pool_row(replication, name, role, used, fleet, 1, 1.0))
    rate = st.floats(0.1, 20)
    return (
        Result("any", 0, *recorder.tables()),
        {name: draw(rate) for name in (*policies, *verifiers)},
    )


@settings(deadline=None)
@given(fleets())
def test_attributed_and_idle_are_the_fleet_hours_at_their_rate(
    fleet: tuple[Result, dict[str, float | None]],
) -> None:
    result, pool_rates = fleet
    cost, bill = price_queries(result, pool_rates)
    hours = result.pools["fleet_gpu_seconds"] / 3600
    expected = sum(
        float(h) * float(pool_rates[str(p)] or 0)
        for h, p in zip(hours, result.pools["pool"], strict=True)
    )
    assert bill.total_usd == pytest.approx(expected, rel=1e-9)
    assert cost.sum() + bill.idle_usd == pytest.approx(bill.total_usd, rel=1e-9)
    assert bill.attributed_usd == pytest.approx(cost.sum(), rel=1e-9, abs=1e-15)


def test_a_query_pays_its_gpu_seconds_at_the_rate_of_each_pool() -> None:
    result = fixtures.result(n=30)
    cost, bill = price_queries(result, {"thinker": 3.6, "judge": 7.2})
    queries = result.queries
    expected = queries["policy_gpu_seconds"] * 0.001 + queries["verifier_gpu_seconds"] * 0.002
    np.testing.assert_allclose(cost, expected)
    assert bill.overhead == pytest.approx(1 / (1 - 0.4))
    assert bill.gpu_hours == pytest.approx(float(result.pools["fleet_gpu_seconds"].sum()) / 3600)


@pytest.mark.parametrize("column", ["policy_gpu_seconds", "verifier_gpu_seconds"])
def test_a_gpu_second_that_is_lost_or_found_is_an_error(column: str) -> None:
    for factor in (1 - 1e-6, 1 + 1e-6):
        result = fixtures.result(n=30)
        result.queries[column] *= factor
        with pytest.raises(ConservationError, match="GPU-seconds of"):
            price_queries(result, {"thinker": 3.6, "judge": 3.6})


def test_charging_for_more_than_a_pool_was_busy_is_an_error() -> None:
    result = fixtures.result(n=30)
    result.pools["busy_gpu_seconds"] *= 1 - 1e-6
    with pytest.raises(ConservationError, match="more than"):
        price_queries(result, {"thinker": 3.6, "judge": 3.6})


def test_work_in_a_pool_that_does_not_exist_is_an_error() -> None:
    result = fixtures.result(n=30)
    for column in ("policy_pool", "first_pool"):
        moved = result.queries[column].astype("U10")
        moved[0] = "elsewhere"
        result.queries[column] = moved
    with pytest.raises(ConservationError):
        price_queries(result, {"thinker": 3.6, "judge": 3.6})


def test_a_pool_without_a_rate_has_no_cost_and_breaks_nothing() -> None:
    cost, bill = price_queries(fixtures.result(n=30), {"thinker": None, "judge": 3.6})
    assert np.isnan(cost).all()
    assert math.isnan(bill.total_usd)
    assert bill.pools[1].total_usd > 0


def test_rates_come_from_the_scenario_then_from_the_catalogue() -> None:
    assert rates(fixtures.loaded().scenario) == {"thinker": 3.6, "judge": 3.6}
    text = fixtures.SCENARIO.replace("pricing: {device_rates: {h200-sxm-141gb: 3.60 USD/h}}", "")
    assert rates(fixtures.loaded(text).scenario) == {"thinker": 3.99, "judge": 3.99}
