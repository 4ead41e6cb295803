"""The bill of the month: a week of load on whole nodes, committed and on demand, and what the same would cost elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hw.device import CatalogError, Device, device, device_from
from hw.rates import hourly
from pricing.contract import Priced
from scenarios.arrivals import Diurnal
from scenarios.schema import Pool, Scenario
from sim.metrics import answered, span_s
from sim.records import measured, size
from sim.workload import day

HOURS: Final = 168  # of a week
MONTH_WEEKS: Final = 365.25 / 12 / 7
YEAR_WEEKS: Final = 365.25 / 7
_FACTORS: Final = np.geomspace(1e-3, 1e3, 241)  # of today's load, tried for the break-even

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of one kind of device over a week, Monday 0:00 first; USD per month.

    `needed` is the number of nodes in each of the 168 hours; `committed` of them run all the time at
    `committed_rate`, the others by the hour at `on_demand_rate` (USD per GPU and hour).
    """

    device: str
    node_gpus: int
    needed: tuple[int, ...]
    committed: int
    on_demand_rate: float
    committed_rate: float
    committed_usd: float
    on_demand_usd: float
    all_on_demand_usd: float
    all_committed_usd: float

    @property
    def total_usd(self) -> float:
        """What the cheapest mix of both costs in a month."""
        return self.committed_usd + self.on_demand_usd

    @property
    def gpu_hours(self) -> float:
        """GPU-hours paid in a month."""
        hours = np.maximum(np.array(self.needed), self.committed).sum()
        return float(hours) * self.node_gpus * MONTH_WEEKS


@dataclass(frozen=True, slots=True)
class MonthBill:
    """What serving a workload oneself costs; rates per second, USD per month.

    `week` holds the arrival rate of each hour. `right` is the share of queries answered rightly.
    """

    scenario: str
    week: tuple[float, ...]
    queries: float
    right: float
    nodes: tuple[Nodes, ...]

    @property
    def total_usd(self) -> float:
        """The whole fleet, a month."""
        return sum(item.total_usd for item in self.nodes)

    @property
    def per_query(self) -> float:
        """USD a query, with every idle hour."""
        return self.total_usd / self.queries

    @property
    def year_usd(self) -> float:
        """The whole fleet, a year."""
        return self.total_usd * 12


def month_bill(scenario: Scenario, priced: Priced, factor: float = 1.0) -> MonthBill:
    """The bill of a month at `factor` times the scenario's load.

    Each pool has in each hour the whole replicas that fill at most a share `pricing.month.busy` of what
    they can take (`sim.bound`), at least one; a device's replicas share whole nodes. That sizes for
    throughput: whether the objectives hold at the peak is for a run to say. Raises CatalogError where a
    device has no rate.
    """
    week = week_of(scenario, priced) * factor
    gpus: dict[str, Floats] = {}
    devices: dict[str, Device] = {}
    for name, pool in scenario.fleet.items():
        found = device(pool.device) if isinstance(pool.device, str) else device_from(pool.device)
        devices[found.name] = found
        needed = _gpus(priced, name, pool, week, scenario.pricing.month.busy)
        gpus[found.name] = gpus.get(found.name, np.zeros(HOURS)) + needed
    queries = float(week.sum()) * 3600 * MONTH_WEEKS
    table = measured(priced.result.queries)
    right = float((answered(table) & table["correct"]).mean()) if size(table) else math.nan
    nodes = tuple(_nodes(scenario, devices[name], needed) for name, needed in gpus.items())
    return MonthBill(scenario.name, tuple(week.tolist()), queries, right, nodes)


def week_of(scenario: Scenario, priced: Priced) -> Floats:
    """The arrival rate of each hour of a week, 1/s, shape (168,).

    Diurnal arrivals repeat their day, thinner at weekends; any other workload is taken to arrive at the
    run's rate around the clock.
    """
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, Diurnal):
        days = np.array([1.0] * 5 + [scenario.pricing.month.weekend] * 2)
        return np.asarray(np.outer(days, day(arrivals)).ravel())
    table = measured(priced.result.queries)
    return np.full(HOURS, size(table) / span_s(priced.result))


def cheapest_commitment(
    needed: Sequence[int] | NDArray[np.int64], on_demand: float, committed: float
) -> tuple[int, float]:
    """How many nodes to commit to, and what an hour then costs on average, in units of the two rates.

    Committed nodes are paid in every hour, the others when they are needed. The best number is the
    quantile of the need at which one more committed node would stand idle too often.
    Source: the newsvendor's critical ratio, Arrow, Harris and Marschak, Econometrica 19 (1951).
    """
    need = np.asarray(needed)
    options = range(int(need.max(initial=0)) + 1)
    costs = [k * committed + on_demand * float(np.maximum(0, need - k).mean()) for k in options]
    best = int(np.argmin(costs))
    return best, costs[best]


def break_even_queries(scenario: Scenario, priced: Priced, usd_per_query: float) -> float | None:
    """Queries a month from which serving oneself is cheaper than `usd_per_query`, and stays so.

    None where it is not at any load up to a thousand times today's.
    """
    found: float | None = None
    for factor in _FACTORS[::-1]:
        bill = month_bill(scenario, priced, float(factor))
        if bill.per_query >= usd_per_query:
            break
        found = bill.queries
    return found


def _gpus(priced: Priced, name: str, pool: Pool, week: Floats, busy: float) -> Floats:
    """GPUs of whole replicas that a pool needs in each hour."""
    replicas = np.ceil(week * _replica_seconds(priced, name, pool) / busy - 1e-9)
    return np.asarray(np.maximum(1, replicas) * pool.tensor_parallel)


def _replica_seconds(priced: Priced, name: str, pool: Pool) -> float:
    """Replica-seconds of a query when the replicas are full: the run's own bound, else what it was charged.

    What a query is charged for in a half-full batch says little about how many would fit.
    """
    result = priced.result
    for bound in result.meta.get("bounds", ()):
        if bound["pool"] == name:
            rate = size(measured(result.queries)) / span_s(result)
            return float(max(bound["compute"], bound["kv"])) / rate
    mine = result.pools["pool"] == name
    spent = float(result.pools["attributed_gpu_seconds"][mine].sum())
    return spent / size(result.queries) / pool.tensor_parallel


def _nodes(scenario: Scenario, found: Device, gpus: Floats) -> Nodes:
    pricing, month = scenario.pricing, scenario.pricing.month
    per_node = month.node_gpus
    needed = np.ceil(gpus / per_node - 1e-9).astype(np.int64)
    on_demand = pricing.device_rates.get(found.name) or hourly(found).value
    committed = month.committed_rates.get(found.name) or _committed(found, on_demand)
    count, _ = cheapest_commitment(needed, on_demand, committed)
    weekly = per_node * MONTH_WEEKS
    beyond = float(np.maximum(0, needed - count).sum())
    return Nodes(
        device=found.name,
        node_gpus=per_node,
        needed=tuple(needed.tolist()),
        committed=count,
        on_demand_rate=on_demand,
        committed_rate=committed,
        committed_usd=count * HOURS * committed * weekly,
        on_demand_usd=beyond * on_demand * weekly,
        all_on_demand_usd=float(needed.sum()) * on_demand * weekly,
        all_committed_usd=float(needed.max()) * HOURS * committed * weekly,
    )


def _committed(found: Device, on_demand: float) -> float:
    """The catalogue's committed rate, or the on-demand rate where there is none below it."""
    try:
        return min(on_demand, hourly(found, "committed").value)
    except CatalogError:
        return on_demand
