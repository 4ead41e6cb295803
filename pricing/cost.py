"""GPU-seconds become USD: each query its share, idle time its own line, their sum the bill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.device import device, device_from
from hw.rates import hourly, watts
from scenarios.schema import Pool, Scenario
from sim.estimate import Floats
from sim.records import Result, Table, select, size

_HOUR = 3600.0  # s
_EXACT = 1e-9  # relative: attributed + idle against fleet hours x rate


class ConservationError(AssertionError):
    """The parts of a bill do not add up to the bill: a broken invariant of the simulator."""


@dataclass(frozen=True, slots=True)
class PoolBill:
    """What one pool cost over the whole simulation, all replications: GPU-hours, USD.

    USD are NaN where the device has no rate; `rate` is in USD per GPU and hour.
    """

    pool: str
    role: str
    device: str
    rate: float
    gpu_hours: float
    total_usd: float
    attributed_usd: float
    idle_usd: float


@dataclass(frozen=True, slots=True)
class FleetBill:
    """The bill of a fleet; attributed_usd (to queries) + idle_usd = total_usd to 1e-9."""

    total_usd: float
    attributed_usd: float
    idle_usd: float
    gpu_hours: float
    pools: tuple[PoolBill, ...]

    @property
    def overhead(self) -> float:
        """Total over attributed: what a query costs with its share of the idle time; NaN if none."""
        return self.total_usd / self.attributed_usd if self.attributed_usd > 0 else math.nan


def rates(scenario: Scenario) -> dict[str, float | None]:
    """USD per GPU and hour by pool, power included where it is given; None if unknown.

    The scenario's own rate, else what the catalogue says of the device under `pricing.terms`.
    Raises CatalogError where the catalogue knows no rate for those terms, or no power.
    """
    return {name: _rate(scenario, pool) for name, pool in scenario.fleet.items()}


def _rate(scenario: Scenario, pool: Pool) -> float | None:
    pricing = scenario.pricing
    name = pool.device if isinstance(pool.device, str) else str(pool.device.get("name", ""))
    found = device(name) if isinstance(pool.device, str) else device_from(pool.device)
    rate = pricing.device_rates.get(name)
    if rate is None:
        rate = hourly(found, pricing.terms).value
    if pricing.power is not None:
        kilowatts = watts(found).value / 1000 * pricing.power.pue
        rate += kilowatts * pricing.power.per_kwh
    return rate if rate > 0 else None


def price_queries(
    result: Result, pool_rates: Mapping[str, float | None]
) -> tuple[NDArray[np.float64], FleetBill]:
    """Cost of every query in USD, shape (rows,), and the bill of the fleet that it adds up to.

    A query pays its GPU-seconds at the rate of its pool (NaN if unknown); idle time is charged to
    nobody. Raises ConservationError when attributed and idle are not the fleet's to 1e-9, or more
    is attributed than a pool was busy.
    """
    queries, pools = result.queries, result.pools
    _not_more_than_busy(pools)
    usd_per_s = {
        name: math.nan if rate is None else rate / _HOUR for name, rate in pool_rates.items()
    }
    cost = np.zeros(size(queries))
    names = ("replication", "policy_pool", "policy_gpu_seconds", "verifier_gpu_seconds",
             "first_pool", "first_gpu_seconds")  # fmt: skip
    asked = {name: queries[name] for name in names}
    for replication in np.unique(pools["replication"]):
        mine = asked["replication"] == replication
        rows = select(pools, pools["replication"] == replication)
        cost[mine] = _replication(select(asked, mine), rows, usd_per_s)
    bill = _bill(pools, usd_per_s)
    if not math.isnan(bill.total_usd):
        _conserved("USD", float(cost.sum()), bill.idle_usd, bill.total_usd)
    return cost, bill


def _replication(queries: Table, pools: Table, usd_per_s: Mapping[str, float]) -> Floats:
    """Cost of the queries of one replication, checked against each of its policy pools."""
    spent = queries["policy_gpu_seconds"]
    first = queries["first_gpu_seconds"]
    used = ((first, queries["first_pool"]), (spent - first, queries["policy_pool"]))
    cost, placed = np.zeros(size(queries)), np.zeros(size(queries), dtype=bool)
    verifiers = pools["role"] == "verifier"
    for index in np.flatnonzero(~verifiers):
        name = str(pools["pool"][index])
        here = np.zeros(size(queries))
        for seconds, served in used:  # an escalated query has worked in two pools
            mine = served == name
            here[mine] += seconds[mine]
            placed |= mine
        idle, fleet = pools["idle_gpu_seconds"][index], pools["fleet_gpu_seconds"][index]
        _conserved(f"GPU-seconds of {name}", float(here.sum()), float(idle), float(fleet))
        cost += np.where(here > 0, here * usd_per_s[name], 0.0)
    if spent[~placed].any():
        raise ConservationError("queries have policy GPU-seconds in no policy pool of the run")
    return cost + _verified(queries["verifier_gpu_seconds"], select(pools, verifiers), usd_per_s)


def _verified(spent: Floats, pools: Table, usd_per_s: Mapping[str, float]) -> Floats:
    """Cost of verification, at the mean rate of the verifier pools by what they worked."""
    idle, fleet = float(pools["idle_gpu_seconds"].sum()), float(pools["fleet_gpu_seconds"].sum())
    _conserved("GPU-seconds of the verifiers", float(spent.sum()), idle, fleet)
    work = pools["attributed_gpu_seconds"]
    if not work.sum() > 0:
        return np.zeros_like(spent)
    each = np.array([usd_per_s[str(name)] for name in pools["pool"]])
    used = work > 0
    rate = float((each[used] * work[used]).sum() / work[used].sum())
    return np.where(spent > 0, spent * rate, 0.0)


def _bill(pools: Table, usd_per_s: Mapping[str, float]) -> FleetBill:
    lines = []
    for name in dict.fromkeys(pools["pool"].tolist()):
        rows = select(pools, pools["pool"] == name)
        rate = usd_per_s[name]
        fleet = float(rows["fleet_gpu_seconds"].sum())
        lines.append(
            PoolBill(
                pool=name,
                role=str(rows["role"][0]),
                device=str(rows["device"][0]),
                rate=rate * _HOUR,
                gpu_hours=fleet / _HOUR,
                total_usd=fleet * rate,
                attributed_usd=float(rows["attributed_gpu_seconds"].sum()) * rate,
                idle_usd=float(rows["idle_gpu_seconds"].sum()) * rate,
            )
        )
    return FleetBill(
        total_usd=sum(line.total_usd for line in lines),
        attributed_usd=sum(line.attributed_usd for line in lines),
        idle_usd=sum(line.idle_usd for line in lines),
        gpu_hours=sum(line.gpu_hours for line in lines),
        pools=tuple(lines),
    )


def _not_more_than_busy(pools: Table) -> None:
    """What queries are charged for was computed: attributed is at most busy, in every pool."""
    attributed, busy = pools["attributed_gpu_seconds"], pools["busy_gpu_seconds"]
    for index in np.flatnonzero(attributed > busy * (1 + _EXACT)):
        raise ConservationError(
            f"GPU-seconds of {pools['pool'][index]}: attributed {float(attributed[index])!r} is "
            f"more than the {float(busy[index])!r} that it was busy"
        )


def _conserved(what: str, attributed: float, idle: float, total: float) -> None:
    if abs(attributed + idle - total) > _EXACT * max(abs(total), abs(attributed)):
        raise ConservationError(
            f"{what}: attributed {attributed!r} + idle {idle!r} is not the fleet's {total!r}"
        )
