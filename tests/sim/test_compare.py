"""The same query is the same query: differences are paired."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sim.compare import Difference, compare, pair
from sim.records import Result, select, size
from tests.sim import fixtures


def difference(base: Result, other: Result, tier: str, name: str) -> Difference:
    (row,) = [row for row in compare(base, other).tiers if row.tier == tier]
    return next(found for found in row.differences if found.name == name)


def test_a_run_against_itself_differs_in_nothing() -> None:
    result = fixtures.result()
    for row in compare(result, result).tiers:
        assert row.unpaired == 0
        for found in row.differences:
            assert found.change.value == 0, found.name
            assert not found.clear


def test_a_known_change_is_found_exactly_and_its_interval_is_far_narrower_than_unpaired() -> None:
    base = fixtures.result()
    other = replace(base, queries={**base.queries, "finish_s": base.queries["finish_s"] + 0.25})
    found = difference(base, other, "fast", "mean E2E")
    assert found.change.value == pytest.approx(0.25)
    assert found.clear
    assert found.change.high - found.change.low < 1e-9
    assert found.other - found.base == pytest.approx(0.25)


def test_pairs_are_found_by_replication_and_id_whatever_the_order() -> None:
    base = fixtures.result(n=40)
    rng = np.random.default_rng(0)
    shuffled = select(base.queries, rng.permutation(size(base.queries)))
    left, right = pair(base.queries, shuffled)
    for column in ("replication", "query_id", "arrival_s", "difficulty"):
        np.testing.assert_array_equal(left[column], right[column])
    assert size(left) == 3 * 36


def test_queries_measured_in_one_run_only_or_moved_to_another_tier_are_not_paired() -> None:
    base = fixtures.result(n=40)
    fewer = {name: values.copy() for name, values in base.queries.items()}
    fast = np.flatnonzero(fewer["measured"] & (fewer["tier"] == "fast"))
    fewer["measured"][fast[0]] = False
    fewer["tier"][fast[1]] = "careful"
    rows = {row.tier: row for row in compare(base, replace(base, queries=fewer)).tiers}
    assert rows["fast"].unpaired == 2
    assert rows["careful"].unpaired == 1
    assert rows["fast"].pairs == fast.size - 2


def test_a_query_that_only_one_run_answered_counts_for_answers_and_not_for_mean_latency() -> None:
    base = fixtures.result(n=40)
    queries = {name: values.copy() for name, values in base.queries.items()}
    lost = np.flatnonzero(queries["measured"] & (queries["tier"] == "fast"))[0]
    queries["status"] = queries["status"].astype("U10")
    queries["status"][lost] = "refused"
    queries["finish_s"][lost] = math.nan
    other = replace(base, queries=queries)
    mean, share = (difference(base, other, "fast", name) for name in ("mean E2E", "answered"))
    assert mean.change.value == 0
    assert mean.change.n == share.change.n - 1
    assert share.change.value == pytest.approx(-1 / share.change.n)


def test_slower_is_clearly_slower_and_pools_stand_side_by_side() -> None:
    base, other = fixtures.result(), fixtures.result(slow=2.0, name="slow")
    found = difference(base, other, "careful", "p95 E2E")
    assert found.clear
    assert found.other == pytest.approx(2 * found.base)
    comparison = compare(base, other)
    assert (comparison.base_name, comparison.other_name) == ("made-up", "slow")
    assert [row.base.pool for row in comparison.pools] == ["thinker", "judge"]


def test_other_seeds_are_other_queries() -> None:
    with pytest.raises(ValueError, match="seeds differ"):
        compare(fixtures.result(seed=1), fixtures.result(seed=2))
