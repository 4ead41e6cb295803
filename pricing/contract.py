"""What a client owes for each query, and what a promise is worth: charges, refunds, credits, margins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pricing.cost import FleetBill, price_queries, rates
from scenarios.schema import Price, Scenario, Tier
from sim.estimate import Estimate, Floats, estimate, mean
from sim.metrics import answered, latencies, loosest
from sim.records import Result, Table, measured, select, size

# What a price looks at, so that nothing else of a long run is copied tier by tier.
_USED = ("replication", "measured", "arrival_s", "tier", "status", "input_tokens", "output_tokens",
         "trajectories", "correct", "confidence", "accepted", "first_token_s", "first_answer_token_s",
         "finish_s")  # fmt: skip
_SPENT = ("replication", "arrival_s", "cost_usd", "charge_usd", "refund_usd", "credit_usd")
_MILLION = 1e6  # tokens of a price per million
_WINDOW_S = 60.0  # in which a committed rate is used or lost
_HOUR = 3600.0  # s


@dataclass(frozen=True, slots=True)
class TierMoney:
    """Money of one tier's measured queries, USD; per query unless named otherwise.

    `cost_usd` is the GPU time used, `idle_usd` the tier's share of idle time in proportion to it.
    Without a price revenue and what follows from it are NaN. `margin_claimed` is what the margin
    would be if confidence were right. `break_even` multiplies today's prices so that the margin is
    nought; inf when no price is high enough.
    """

    tier: str
    n: int
    sold: int
    revenue_usd: float
    refund_usd: float
    credit_usd: float
    cost_usd: float
    idle_usd: float
    cost_per_query: Estimate
    cost_per_correct: float
    margin_per_query: Estimate
    margin_claimed: float
    break_even: float

    @property
    def margin_usd(self) -> float:
        """Revenue less refunds, credits, GPU time and its share of idle time."""
        paid = self.revenue_usd - self.refund_usd - self.credit_usd
        return paid - self.cost_usd - self.idle_usd


@dataclass(frozen=True, slots=True)
class Priced:
    """A result whose queries carry the priced columns, the fleet's bill, and money by tier."""

    result: Result
    bill: FleetBill
    tiers: tuple[TierMoney, ...]


def price(
    result: Result, scenario: Scenario, pool_rates: Mapping[str, float | None] | None = None
) -> Priced:
    """Price every query of a result; rates (USD per GPU and hour) default to `pricing.cost.rates`.

    Raises ConservationError when the result's GPU-seconds do not add up.
    """
    cost, bill = price_queries(result, rates(scenario) if pool_rates is None else pool_rates)
    queries = {**result.queries, "cost_usd": cost}
    for column in ("charge_usd", "refund_usd", "credit_usd"):
        queries[column] = np.full(cost.shape, np.nan)
    used = {name: queries[name] for name in _USED}
    for name, tier in scenario.tiers.items():
        rows = queries["tier"] == name
        if tier.price is None:
            continue
        mine = select(used, rows)
        charge, *back = charges(mine, tier, tier.price)
        if tier.price.committed is not None:
            charge = charge + commitment_fees(mine, result.pools, tier.price.committed.fee)
        owed = (charge, *back)
        for column, values in zip(("charge_usd", "refund_usd", "credit_usd"), owed, strict=True):
            queries[column][rows] = values
    priced = replace(result, queries=queries)
    mine = measured({**used, **{name: queries[name] for name in _SPENT}})
    tiers = tuple(
        _tier(name, select(mine, mine["tier"] == name), tier, bill.overhead)
        for name, tier in scenario.tiers.items()
    )
    return Priced(priced, bill, tiers)


def charges(queries: Table, tier: Tier, price: Price) -> tuple[Floats, Floats, Floats]:
    """Charge, refund and late credit of each query in USD for what it used, shape (rows,).

    Only answers are charged; `per_answer` and `levels` only those accepted (confidence reaches the
    promise), `levels` by the highest one that the confidence reaches; `per_outcome` only those that
    are right too. No query is charged more than a promised budget in USD, and none that a committed
    throughput covers (its fee is `commitment_fees`). A refund is a multiple of the charge of an
    accepted answer that is wrong; a late credit a fraction of the charge of any answer whose
    end-to-end time misses the tier's loosest e2e target.
    """
    got, accepted = answered(queries), queries["accepted"]
    charge = (
        price.per_mtok_in / _MILLION * queries["input_tokens"]
        + price.per_mtok_out / _MILLION * queries["output_tokens"]
        + price.per_query
        + price.per_trajectory * queries["trajectories"]
        + price.per_answer * accepted
        + price.per_outcome * (accepted & queries["correct"])
        + _by_level(queries["confidence"], price) * accepted
    )
    budget = tier.promise.budget.usd if tier.promise and tier.promise.budget else None
    charge = np.where(got, np.minimum(charge, math.inf if budget is None else budget), 0.0)
    if price.committed is not None:
        charge = np.where(covered(queries, price.committed.rate), 0.0, charge)
    refund = np.where(got & accepted & ~queries["correct"], price.refund * charge, 0.0)
    target_s = loosest(tier).get("e2e", math.inf)
    late = got & (latencies(queries)["e2e"] > target_s)
    return charge, refund, np.where(late, price.late_credit * charge, 0.0)


def covered(queries: Table, rate: float) -> NDArray[np.bool_]:
    """Which queries a committed rate (1/s) covers, shape (rows,): the first rate x 60 s of each minute."""
    minute = np.floor(queries["arrival_s"] / _WINDOW_S).astype(np.int64)
    order = np.lexsort((queries["arrival_s"], minute, queries["replication"]))
    window = np.stack([queries["replication"][order], minute[order]])
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (window[:, 1:] != window[:, :-1]).any(axis=0)
    place = np.arange(len(order))
    number = place - np.maximum.accumulate(np.where(begins, place, 0))
    found = np.zeros(len(order), dtype=bool)
    found[order] = number < rate * _WINDOW_S
    return found


def commitment_fees(queries: Table, pools: Table, fee: float) -> Floats:
    """The fee (USD/h) of the measured span, spread over the measured queries of a tier, shape (rows,).

    Owed whether the throughput is used or not; a replication without a query in the tier shows none.
    """
    owed = np.zeros(size(queries))
    for replication in np.unique(queries["replication"]):
        mine = (queries["replication"] == replication) & queries["measured"]
        span_s = float(pools["span_s"][pools["replication"] == replication].max())
        owed[mine] = fee * span_s / _HOUR / max(1, int(mine.sum()))
    return owed


def _by_level(confidence: Floats, price: Price) -> Floats:
    """What the highest level that a confidence reaches costs, USD; 0 below the lowest and without levels."""
    if not price.steps:
        return np.zeros(confidence.shape)
    bounds, usd = zip(*price.steps, strict=True)
    reached = np.searchsorted(np.array(bounds), np.nan_to_num(confidence, nan=-1.0), side="right")
    return np.array([0.0, *usd])[reached]


def margin(
    price: float,
    cost: float,
    coverage: float = 1.0,
    precision: float = 1.0,
    refund: float = 0.0,
    late_credit: float = 0.0,
    late: float = 0.0,
) -> float:
    """Expected margin per query of a price per accepted answer: a P (1 - r (1 - s) - c l) - cost.

    Coverage a, precision s and the late share l are in [0, 1], price and cost in USD. Source:
    expectation of the contract in `charges`, with lateness independent of truth.
    """
    return coverage * price * kept(precision, refund, late_credit, late) - cost


def kept(
    precision: float, refund: float = 0.0, late_credit: float = 0.0, late: float = 0.0
) -> float:
    """The share of a charge that stays after refunds and credits, 1 - r (1 - s) - c l; may be < 0."""
    return 1 - refund * (1 - precision) - late_credit * late


def break_even(
    cost: float,
    coverage: float = 1.0,
    precision: float = 1.0,
    refund: float = 0.0,
    late_credit: float = 0.0,
    late: float = 0.0,
) -> float:
    """The price per accepted answer at which `margin` is nought, USD; inf when none is high enough."""
    share = coverage * kept(precision, refund, late_credit, late)
    return cost / share if share > 0 else math.inf


def miscalibration_loss(
    price: float, coverage: float, refund: float, claimed: float, precision: float
) -> float:
    """Margin per query that a claimed precision promises and the true one does not keep, USD."""
    return coverage * price * refund * (claimed - precision)


def _tier(name: str, table: Table, tier: Tier, overhead: float) -> TierMoney:
    got, n = answered(table), size(table)
    spent = {column: table[column] for column in _SPENT}
    cost = float(table["cost_usd"].sum())
    charge, refund, credit = (
        float(table[column].sum()) if tier.price else math.nan
        for column in ("charge_usd", "refund_usd", "credit_usd")
    )
    loaded = cost * overhead if cost > 0 else cost
    right = int((got & table["correct"]).sum())
    kept_usd = charge - refund - credit
    return TierMoney(
        tier=name,
        n=n,
        sold=int((table["charge_usd"] > 0).sum()),
        revenue_usd=charge,
        refund_usd=refund,
        credit_usd=credit,
        cost_usd=cost,
        idle_usd=loaded - cost,
        cost_per_query=estimate(lambda rows: mean(rows["cost_usd"]) * overhead, spent),
        cost_per_correct=loaded / right if right else math.nan,
        margin_per_query=estimate(lambda rows: _margin(rows, overhead), spent),
        margin_claimed=_claimed(table, tier, charge - credit - loaded),
        break_even=_factor(loaded, kept_usd),
    )


def _margin(rows: Table, overhead: float) -> float:
    paid = rows["charge_usd"] - rows["refund_usd"] - rows["credit_usd"]
    return mean(paid - rows["cost_usd"] * overhead)


def _claimed(table: Table, tier: Tier, before_refunds: float) -> float:
    """Margin per query if each accepted answer were wrong as often as its confidence says."""
    if tier.price is None or not size(table):
        return math.nan
    sold = select(table, table["accepted"] & answered(table))
    if tier.price.refund == 0:
        return before_refunds / size(table)
    expected = tier.price.refund * float((sold["charge_usd"] * (1 - sold["confidence"])).sum())
    return (before_refunds - expected) / size(table)


def _factor(cost: float, kept_usd: float) -> float:
    if math.isnan(kept_usd) or math.isnan(cost):
        return math.nan
    return cost / kept_usd if kept_usd > 0 else math.inf
