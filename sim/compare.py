"""Two runs of the same queries, side by side: paired differences per tier, with intervals.

A query is the same query in both when replication and query_id agree (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.estimate import Estimate, Floats, estimate, mean, percentile
from sim.metrics import PoolMetrics, answered, latencies, pool_table
from sim.records import Result, Table, select, size


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure in both runs; `change` is other - base over the n pairs that have it in both."""

    name: str
    unit: str
    base: float
    other: float
    change: Estimate

    @property
    def clear(self) -> bool:
        """Whether the interval of the change excludes zero."""
        return self.change.low > 0 or self.change.high < 0

    @property
    def state(self) -> str:
        """What can be said of the change, in a word: lower, higher, not clear, no interval or unchanged."""
        if self.unchanged:
            return "unchanged"
        if math.isnan(self.change.low) or math.isnan(self.change.high):
            return "no interval"
        if not self.clear:
            return "not clear"
        return "higher" if self.change.value > 0 else "lower"

    @property
    def unchanged(self) -> bool:
        """Whether every pair has the same value in both, as far as the mean and its spread tell."""
        return self.change.value == 0 and not self.change.high > 0


@dataclass(frozen=True, slots=True)
class TierComparison:
    """One tier: its differences over `pairs` queries; `unpaired` are measured in one run only."""

    tier: str
    pairs: int
    unpaired: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class PoolComparison:
    """One pool of both fleets; a pool that only one fleet has does not appear."""

    base: PoolMetrics
    other: PoolMetrics


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changes from a base run to another of the same seed."""

    base_name: str
    other_name: str
    tiers: tuple[TierComparison, ...]
    pools: tuple[PoolComparison, ...]


def compare(base: Result, other: Result) -> Comparison:
    """Pair the measured queries of two runs by (replication, query_id) and compare them per tier.

    Raises ValueError when the seeds differ, because then no query is the same.
    """
    if base.seed != other.seed:
        raise ValueError(
            f"seeds differ: {base.seed} and {other.seed}; the queries are not the same"
        )
    left, right = pair(base.queries, other.queries)
    tiers = dict.fromkeys([*base.queries["tier"].tolist(), *other.queries["tier"].tolist()])
    before = {row.pool: row for row in pool_table(base)}
    after = {row.pool: row for row in pool_table(other)}
    return Comparison(
        base.scenario_name,
        other.scenario_name,
        tuple(_tier(name, left, right, base.queries, other.queries) for name in tiers),
        tuple(PoolComparison(before[name], after[name]) for name in before if name in after),
    )


def pair(base: Table, other: Table) -> tuple[Table, Table]:
    """The rows of both tables that hold the same measured query in the same tier, in one order."""
    a, b = (select(table, table["measured"]) for table in (base, other))
    _, i, j = np.intersect1d(_keys(a), _keys(b), assume_unique=True, return_indices=True)
    same = a["tier"][i] == b["tier"][j]
    return select(a, i[same]), select(b, j[same])


def _keys(table: Table) -> NDArray[np.int64]:
    keys = table["replication"].astype(np.int64) << 40 | table["query_id"].astype(np.int64)
    assert np.unique(keys).size == keys.size, "a query_id occurs twice in a replication"
    return np.asarray(keys)


def _tier(name: str, left: Table, right: Table, base: Table, other: Table) -> TierComparison:
    a, b = (select(table, table["tier"] == name) for table in (left, right))
    total = sum(int((table["measured"] & (table["tier"] == name)).sum()) for table in (base, other))
    pairs = size(a)
    found = [
        _mean_difference(label, unit, a, column(a), column(b))
        for label, unit, column in _columns(a, b)
    ]
    found += [_percentile_difference(metric, 0.95, a, b) for metric in ("ttft", "ttfat", "e2e")]
    return TierComparison(name, pairs, total - 2 * pairs, tuple(found))


def _columns(a: Table, b: Table) -> list[tuple[str, str, Callable[[Table], Floats]]]:
    """What is compared by its mean: label, unit and how to read it from a table."""

    def of(name: str) -> Callable[[Table], Floats]:
        return lambda table: np.asarray(table[name], dtype=np.float64)

    def seconds(metric: str) -> Callable[[Table], Floats]:
        return lambda table: latencies(table)[metric]

    found = [
        ("mean TTFT", "s", seconds("ttft")),
        ("mean TTFAT", "s", seconds("ttfat")),
        ("mean E2E", "s", seconds("e2e")),
        ("answered", "share", lambda table: answered(table).astype(np.float64)),
        ("accuracy", "share", of("correct")),
        ("coverage", "share", of("accepted")),
        ("confidence", "share", of("confidence")),
        ("tokens per query", "tokens", of("output_tokens")),
        ("GPU-seconds per query", "GPU-s", of("gpu_seconds")),
        ("preemptions per query", "", of("num_preemptions")),
    ]
    if "cost_usd" in a and "cost_usd" in b:
        found += [
            ("GPU cost per query", "USD", of("cost_usd")),
            ("margin before idle", "USD", _margin),
        ]
    return found


def _margin(table: Table) -> Floats:
    paid = table["charge_usd"] - table["refund_usd"] - table["credit_usd"]
    return np.asarray(paid - table["cost_usd"])


def _mean_difference(label: str, unit: str, rows: Table, x: Floats, y: Floats) -> Difference:
    """Mean of paired differences over the pairs where both values are finite."""
    both = np.isfinite(x) & np.isfinite(y)
    slim = _slim(select(rows, both), difference=y[both] - x[both])
    change = estimate(lambda table: mean(table["difference"]), slim)
    return Difference(label, unit, mean(x[both]), mean(y[both]), change)


def _percentile_difference(metric: str, q: float, a: Table, b: Table) -> Difference:
    """Difference of a percentile over all paired queries, those never answered at infinity."""
    x, y = latencies(a)[metric], latencies(b)[metric]
    slim = _slim(a, x=x, y=y)

    def change(table: Table) -> float:
        return _minus(percentile(table["y"], q), percentile(table["x"], q))

    found = estimate(change, slim, least=math.ceil(1 / (1 - q)))
    label = f"p{round(100 * q)} {metric.upper()}"
    return Difference(label, "s", percentile(x, q), percentile(y, q), found)


def _minus(y: float, x: float) -> float:
    return math.nan if math.isinf(x) and math.isinf(y) else y - x


def _slim(rows: Table, **values: NDArray[Any]) -> Table:
    return {"replication": rows["replication"], "arrival_s": rows["arrival_s"], **values}
