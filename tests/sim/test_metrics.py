"""Percentiles, goodput, calibration and intervals mean exactly what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.schema import Tier
from sim.estimate import estimate, interval, mean, percentile, rank
from sim.metrics import (
    calibration,
    joint,
    latencies,
    latency,
    loosest,
    meets,
    pool_table,
    targets,
    tier_table,
    warnings,
)
from sim.records import Result, Table, concatenate
from tests.sim import fixtures

NEVER = {"first_token_s": math.nan, "first_answer_token_s": math.nan, "finish_s": math.nan}


def tier(**targets_s: str) -> Tier:
    return Tier.model_validate({"slo": targets_s})


def queries(*latencies_s: float | None) -> Table:
    """Queries with the given end-to-end latencies; None was refused."""
    rows = [
        fixtures.query(query_id=i, arrival_s=float(i), finish_s=i + s, first_token_s=i + s / 2)
        if s is not None
        else fixtures.query(
            query_id=i, arrival_s=float(i), status="refused", correct=False, **NEVER
        )
        for i, s in enumerate(latencies_s)
    ]
    return fixtures.table("queries", *rows)


def test_latencies_follow_the_shared_definitions() -> None:
    table = fixtures.table(
        "queries",
        fixtures.query(
            arrival_s=10.0, first_token_s=11.0, first_answer_token_s=14.0, finish_s=16.0,
            output_tokens=51,
        ),
    )  # fmt: skip
    found = {name: float(values[0]) for name, values in latencies(table).items()}
    assert found == pytest.approx({"ttft": 1.0, "ttfat": 4.0, "tpot": 0.1, "e2e": 6.0})


def test_a_single_token_has_no_tpot_and_a_refused_query_has_infinite_latency() -> None:
    one = fixtures.table("queries", fixtures.query(output_tokens=1))
    assert math.isnan(latencies(one)["tpot"][0])
    assert latencies(queries(None))["e2e"][0] == math.inf


@given(
    st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
    st.floats(0, 100),
)
def test_a_percentile_is_within_a_target_exactly_when_enough_are(
    values: list[float], q: float, target: float
) -> None:
    array = np.array(values)
    within = int((array <= target).sum())
    assert (percentile(array, q) <= target) == (within >= rank(q, len(values)))


def test_percentile_ranks_are_exact_where_floats_are_not() -> None:
    values = np.arange(1.0, 101.0)
    assert [percentile(values, q) for q in (0.5, 0.9, 0.95, 0.99)] == [50, 90, 95, 99]
    assert math.isnan(percentile(np.array([math.nan]), 0.5))


def test_refused_queries_count_against_every_target() -> None:
    table = queries(*[1.0] * 19, None)
    (held,) = targets(table, tier(e2e_p95="2s"))
    assert held.met
    assert held.attained == 0.95
    (lost,) = targets(queries(*[1.0] * 18, None, None), tier(e2e_p95="2s"))
    assert not lost.met
    assert lost.observed_s == math.inf


def test_a_query_has_to_meet_the_loosest_target_of_each_latency() -> None:
    spec = tier(e2e_p50="1s", e2e_p95="4s", ttft_p95="1s")
    assert loosest(spec) == {"e2e": 4.0, "ttft": 1.0}
    assert meets(queries(0.5, 1.9, 3.0, 5.0, None), spec).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_goodput_is_the_rate_of_queries_that_met_everything_over_all_offered() -> None:
    result = fixtures.result(n=300)
    fast, careful = tier_table(result, fixtures.loaded().scenario)
    span = 3 * result.pools["span_s"][0]
    assert fast.n + careful.n == 3 * 270
    assert fast.offered_per_s == pytest.approx(fast.n / span)
    assert fast.goodput_per_s.value == pytest.approx(fast.attained.value * fast.n / span)
    assert fast.attained.low <= fast.attained.value <= fast.attained.high <= 1
    assert careful.promised == 0.9
    assert careful.precision.n < careful.n


def test_slower_queries_never_raise_goodput() -> None:
    spec = fixtures.loaded().scenario
    goodput = [
        [row.goodput_per_s.value for row in tier_table(fixtures.result(slow=slow), spec)]
        for slow in (1.0, 2.0, 4.0)
    ]
    assert all(a >= b for a, b in zip(goodput[0], goodput[1], strict=True))
    assert goodput[0][0] > goodput[2][0]


def test_a_tier_without_queries_has_no_figures_and_a_warning() -> None:
    result = fixtures.result(n=5)
    result.queries["tier"][:] = "fast"
    _, careful = tier_table(result, fixtures.loaded().scenario)
    assert careful.n == 0
    assert math.isnan(careful.accuracy.value)
    assert any("careful: no query" in line for line in warnings([careful]))


@given(st.integers(1, 2500))
def test_a_percentile_with_fewer_than_ten_samples_beyond_it_is_marked(n: int) -> None:
    row = fixtures.table("queries", fixtures.query())
    table = {name: np.repeat(values, n) for name, values in row.items()}
    few = latency(table, "e2e").few
    assert ("p99" in few) == (n < 1000)
    assert ("p95" in few) == (n < 200)
    assert ("p50" in few) == (n < 20)


def test_the_interval_over_replications_is_student_t() -> None:
    rows = [
        fixtures.query(replication=r, query_id=i, confidence=value)
        for r, value in enumerate((1.0, 2.0, 3.0))
        for i in range(2)
    ]
    table = fixtures.table("queries", *rows)
    half, groups = interval(lambda t: mean(t["confidence"]), table)
    assert groups == 3
    assert half == pytest.approx(
        4.302653 / math.sqrt(3), rel=1e-6
    )  # t(0.975, 2) s / sqrt(3), s = 1


def test_one_replication_gives_batch_means_and_too_few_rows_give_no_interval() -> None:
    rng = np.random.default_rng(1)
    rows = [
        fixtures.query(query_id=i, arrival_s=float(i), signal=v)
        for i, v in enumerate(rng.normal(size=400))
    ]
    table = fixtures.table("queries", *rows)
    found = estimate(lambda t: mean(t["signal"]), table)
    assert 0.03 < found.high - found.value < 0.3  # 2.26 / sqrt(400) = .11 expected
    short = {name: values[:19] for name, values in table.items()}
    assert math.isnan(estimate(lambda t: mean(t["signal"]), short).low)


def test_the_batch_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        values = rng.exponential(size=100)
        table = {"replication": np.zeros(100), "arrival_s": np.arange(100.0), "x": values}
        found = estimate(lambda t: mean(t["x"]), table)
        covered += found.low <= 1 <= found.high
    assert 0.88 <= covered / 300 <= 0.99


def test_calibration_of_a_known_table() -> None:
    said = np.array([0.25, 0.25, 0.75, 0.75, math.nan])
    truth = np.array([False, True, True, True, True])
    found = calibration(said, truth, bins=2)
    assert found.n == 4
    assert found.ece == pytest.approx(0.25)
    assert found.brier == pytest.approx((0.0625 + 0.5625 + 0.0625 + 0.0625) / 4)
    assert [(row.n, row.correct) for row in found.bins] == [(2, 0.5), (2, 1.0)]


def test_confidence_one_falls_in_the_last_bin_and_perfect_confidence_has_no_error() -> None:
    found = calibration(np.array([1.0, 0.0]), np.array([True, False]))
    assert (found.ece, found.brier) == (0.0, 0.0)
    assert found.bins[-1].high == 1.0


def test_quality_given_latency_splits_all_answers_fastest_first() -> None:
    bins = joint(queries(4.0, 1.0, None, 3.0, 2.0), bins=2)
    assert [(row.low_s, row.high_s, row.n) for row in bins] == [(1.0, 2.0, 2), (3.0, 4.0, 2)]


def test_a_pool_says_what_sharing_saved_and_how_busy_it_was() -> None:
    thinker, judge = pool_table(fixtures.result())
    assert (thinker.pool, judge.role) == ("thinker", "verifier")
    assert thinker.saved == pytest.approx(0.6)
    assert thinker.utilisation == pytest.approx(0.5)
    assert thinker.hit == pytest.approx(0.1)
    assert thinker.num_preemptions == 9


def test_means_of_a_pool_leave_the_warm_up_out() -> None:
    rows = [
        fixtures.sample(0, time_s, "thinker", pages_pinned=pinned)
        for time_s, pinned in ((10.0, 0), (20.0, 0), (50.0, 400), (100.0, 600))
    ]
    found = fixtures.result(replications=1)
    total = float(found.pools["span_s"][0])
    assert 60 < total < 75  # of 100 s: the span begins between the second sample and the third
    result = replace(found, timeline=fixtures.table("timeline", *rows))
    assert pool_table(result)[0].pinned_mean == 500


def test_figures_do_not_depend_on_the_order_of_replications() -> None:
    result = fixtures.result(replications=2)
    parts = [
        {k: v[result.queries["replication"] == r] for k, v in result.queries.items()}
        for r in (1, 0)
    ]
    swapped: Result = replace(result, queries=concatenate(parts))
    spec = fixtures.loaded().scenario
    a, b = tier_table(result, spec)[0], tier_table(swapped, spec)[0]
    assert a.of("e2e") == b.of("e2e")
    assert a.accuracy.value == b.accuracy.value
