"""What a drifting verifier costs: margin lost a day, and how many days pass before the audit sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.search import ALGORITHMS
from pricing.contract import Priced, margin
from pricing.promises import confidences, sample
from scenarios.schema import Drift
from sim.estimate import mean
from sim.metrics import span_s
from sim.records import Table, measured, select, size
from sim.replication import Calibrators
from sim.resolve import Resolved

_DAY = 86400.0  # s
_QUESTIONS = 600  # of a class in a tier, before and after


@dataclass(frozen=True, slots=True)
class DriftCost:
    """One tier before and after a drift, at the threshold that was calibrated before it; USD, per day.

    `lost_usd` is margin that no longer comes in (below 0: the provider gains, its clients lose),
    `wrong` the additional wrong answers sold. `days` pass in the mean until the audit of sold answers
    raises its alarm (inf: precision did not fall), `unlabelled_days` until the share of sold answers
    alone shows it, which needs no truth but only a mix of questions that stays.
    """

    tier: str
    queries: float
    coverage: tuple[float, float]
    precision: tuple[float, float]
    lost_usd: float
    wrong: float
    days: float
    unlabelled_days: float

    @property
    def seen_days(self) -> float:
        """Days until the first of both alarms."""
        return min(self.days, self.unlabelled_days)

    @property
    def until_seen_usd(self) -> float:
        """What is lost until the first alarm; 0 for a drift that costs nothing, inf if none is raised."""
        return self.lost_usd * self.seen_days if self.lost_usd else 0.0


def drift_costs(
    resolved: Resolved, priced: Priced, calibrators: Calibrators, drift: Drift
) -> tuple[DriftCost, ...]:
    """What a drift costs each tier that promises a confidence and asks the verifier.

    `calibrators` are those of `pricing.promises.calibrators_of`.
    """
    scenario = resolved.scenario
    found = []
    for index, tier in enumerate(scenario.tiers.values()):
        promised = tier.promise.confidence if tier.promise is not None else None
        if promised is None or not ALGORITHMS[resolved.plans[index].algorithm].needs_verifier:
            continue
        found.append(_tier(resolved, priced, calibrators, drift, index))
    return tuple(found)


def alarm_days(
    before: float, after: float, checks_per_day: float, false_alarm_days: float
) -> float:
    """Mean days until a CUSUM on checks sees a share fall from `before` to `after`; inf if there is no change.

    Its threshold is ln of the checks between false alarms (at least so many pass), the mean delay
    then about that over the divergence of the two shares.
    Source: Lorden, Ann. Math. Stat. 42 (1971), 1897-1908; Page, Biometrika 41 (1954), 100-115.
    """
    gain = divergence(after, before)
    if gain <= 0 or checks_per_day <= 0:
        return math.inf
    threshold = math.log(max(2.0, checks_per_day * false_alarm_days))
    return threshold / gain / checks_per_day


def divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of two yes-or-no laws in nats, with q kept inside (0, 1)."""
    q = min(max(q, 1e-6), 1 - 1e-6)
    terms = ((p, q), (1 - p, 1 - q))
    return sum(a * math.log(a / b) for a, b in terms if a > 0)


def _tier(
    resolved: Resolved, priced: Priced, calibrators: Calibrators, drift: Drift, index: int
) -> DriftCost:
    scenario, queries = resolved.scenario, measured(priced.result.queries)
    name = list(scenario.tiers)[index]
    mine = select(queries, queries["tier"] == name)
    coverage, precision = _before_and_after(resolved, mine, calibrators, drift, index)
    per_day = size(mine) / span_s(priced.result) * _DAY
    sold = select(mine, mine["charge_usd"] > 0)
    price = mean(sold["charge_usd"])
    terms = scenario.tiers[name].price
    refund = terms.refund if terms is not None else 0.0
    margins = [margin(price, 0.0, a, s, refund) for a, s in zip(coverage, precision, strict=True)]
    lost = (margins[0] - margins[1]) * per_day if size(sold) and terms is not None else math.nan
    wrong = [a * (1 - s) * per_day for a, s in zip(coverage, precision, strict=True)]
    checks = drift.audited * coverage[1] * per_day
    fell = precision[1] < precision[0]
    return DriftCost(
        tier=name,
        queries=per_day,
        coverage=coverage,
        precision=precision,
        lost_usd=lost,
        wrong=wrong[1] - wrong[0],
        days=alarm_days(precision[0], precision[1], checks, drift.false_alarm_days)
        if fell
        else math.inf,
        unlabelled_days=alarm_days(coverage[0], coverage[1], per_day, drift.false_alarm_days),
    )


def _before_and_after(
    resolved: Resolved, mine: Table, calibrators: Calibrators, drift: Drift, index: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Coverage and precision of a tier before and after, over the classes as its queries mix them."""
    scenario = resolved.scenario
    promised = list(scenario.tiers.values())[index].promise
    assert promised is not None
    assert promised.confidence is not None
    classes = list(scenario.workload.classes)
    sold, right, total = np.zeros(2), np.zeros(2), 0.0
    for (class_index, tier_index), calibrator in calibrators.items():
        weight = float((mine["class"] == classes[class_index]).sum())
        if tier_index != index or not weight:
            continue
        total += weight
        for place, change in enumerate((None, drift)):
            drawn = sample(resolved, class_index, index, _QUESTIONS, audit=True, drift=change)
            kept = confidences(drawn, promised.basis, calibrator) >= promised.confidence
            sold[place] += weight * float(kept.mean())
            right[place] += weight * float((kept & drawn.correct).mean())
    coverage = sold / total if total else np.zeros(2)
    precision = np.divide(right, sold, out=np.zeros(2), where=sold > 0)
    return (float(coverage[0]), float(coverage[1])), (float(precision[0]), float(precision[1]))
