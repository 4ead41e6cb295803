"""The price list of a run: what each tier sells for, costs and breaks even at, what it promises and must reserve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pricing.breakdown import Breakdown, breakdowns
from pricing.contract import Priced, TierMoney, price
from pricing.cost import FleetBill, rates
from pricing.drift import DriftCost, drift_costs
from pricing.liability import Reserve, reserve
from pricing.promises import Judged, calibrators_of, certified_only, judge
from sim.metrics import span_s
from sim.records import Result, measured, select
from sim.resolve import Resolved

MONTH_S = 365.25 / 12 * 86400  # s
Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Line:
    """One tier of the list, USD; per answer sold unless named otherwise.

    `price` is what an answer is charged on average, `kept` the share of it that stays after refunds
    and credits, `cost` the GPU time and idle share of all its queries over the answers sold,
    `break_even` the price at which the margin is nought; NaN without a price, inf where none would do.
    """

    tier: str
    sold: int
    price: float
    kept: float
    cost: float
    break_even: float
    money: TierMoney

    @property
    def margin_share(self) -> float:
        """Margin over revenue; NaN without revenue."""
        revenue = self.money.revenue_usd
        return self.money.margin_usd / revenue if revenue > 0 else math.nan


@dataclass(frozen=True, slots=True)
class PriceList:
    """Everything that `treeline price` says of one run.

    `certified` is the money of the tiers if only certified promises were sold, the same queries and
    costs; `reserves` is by tier: the beta-binomial one, then the one as if errors were independent.
    """

    scenario: str
    bill: FleetBill
    lines: tuple[Line, ...]
    promises: tuple[Judged, ...]
    certified: tuple[TierMoney, ...]
    reserves: tuple[tuple[str, Reserve, Reserve], ...]
    breakdowns: tuple[Breakdown, ...]
    drift: tuple[DriftCost, ...]

    @property
    def refused(self) -> tuple[Judged, ...]:
        """The promises that the verifier cannot keep."""
        return tuple(item for item in self.promises if not item.kept)


def price_list(resolved: Resolved, result: Result, tell: Tell | None = None) -> PriceList:
    """Price a run and judge its promises; `tell` hears a share in [0, 1] and a word on what is being done."""
    say = tell or (lambda share, text: None)
    scenario = resolved.scenario
    pool_rates = rates(scenario)
    priced = price(result, scenario, pool_rates)
    say(0.1, "calibrating confidence")
    calibrators = calibrators_of(resolved)
    say(0.4, "judging promises")
    promises = judge(resolved, priced, calibrators)
    kept = replace(result, queries=certified_only(priced, promises))
    certified = price(kept, scenario, pool_rates).tiers if promises else ()
    drift = scenario.pricing.drift
    say(0.7, "letting the verifier drift" if drift else "splitting the bill")
    drifting = drift_costs(resolved, priced, calibrators, drift) if drift is not None else ()
    return PriceList(
        scenario=scenario.name,
        bill=priced.bill,
        lines=tuple(_line(money) for money in priced.tiers),
        promises=promises,
        certified=certified,
        reserves=tuple(_reserves(resolved, priced)),
        breakdowns=breakdowns(priced),
        drift=drifting,
    )


def _line(money: TierMoney) -> Line:
    sold = money.sold
    spent = money.cost_usd + money.idle_usd
    each = money.revenue_usd / sold if sold else math.nan
    back = money.refund_usd + money.credit_usd
    return Line(
        tier=money.tier,
        sold=sold,
        price=each,
        kept=1 - back / money.revenue_usd if money.revenue_usd > 0 else math.nan,
        cost=spent / sold if sold else math.inf,
        break_even=each * money.break_even,
        money=money,
    )


def _reserves(resolved: Resolved, priced: Priced) -> Sequence[tuple[str, Reserve, Reserve]]:
    """The month's reserve of each tier that refunds, at this run's rate of sold answers."""
    scenario, queries = resolved.scenario, measured(priced.result.queries)
    months = span_s(priced.result) / MONTH_S
    found = []
    for name, tier in scenario.tiers.items():
        mine = select(queries, (queries["tier"] == name) & (queries["charge_usd"] > 0))
        n = len(mine["tier"])
        if tier.price is None or tier.price.refund == 0 or not n:
            continue
        wrong = (int((~mine["correct"]).sum()) + 1) / (
            n + 2
        )  # none in a few is not none in a million
        owed = tier.price.refund * float(mine["charge_usd"].mean())
        sold = round(n / months)
        rho = scenario.pricing.error_correlation
        found.append((name, reserve(sold, wrong, rho, owed), reserve(sold, wrong, 0.0, owed)))
    return found
