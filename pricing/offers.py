"""What could be sold: every tier of some runs, at every confidence that the verifier can keep, as its clients see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.promise import certify
from pricing.breakdown import paid
from pricing.contract import Priced, charges, price
from pricing.cost import rates
from pricing.demand import Offer, Segment
from pricing.promises import calibrators_of, confidences, sample
from scenarios.schema import Scenario
from sim.estimate import mean
from sim.metrics import answered, latencies
from sim.records import Result, Table, measured, select, size
from sim.resolve import Resolved

PROMISES: Final = (0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)  # tried for a tier that promises one


@dataclass(frozen=True, slots=True)
class Played:
    """One run of the grid: its scenario, its priced records, and what its verifier can keep.

    `thresholds` says for each tier and promise what confidence a class has to reach, inf where the
    promise is refused.
    """

    label: str
    resolved: Resolved
    priced: Priced
    thresholds: dict[tuple[str, float], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to sell a tier: in which run it was played, and the confidence it would promise (None: none).

    `table` holds the measured queries of the tier, repriced; `offers` what they are to each segment,
    where one unit of price is today's price.
    """

    tier: str
    label: str
    promise: float | None
    table: Table
    offers: tuple[Offer, ...]


def played(label: str, resolved: Resolved, result: Result) -> Played:
    """Price a run and certify every promise that its tiers could make."""
    scenario = resolved.scenario
    priced = price(result, scenario, rates(scenario))
    thresholds: dict[tuple[str, float], dict[str, float]] = {}
    classes, tiers = list(scenario.workload.classes), list(scenario.tiers)
    for (c, t), calibrator in calibrators_of(resolved).items():
        promised = scenario.tiers[tiers[t]].promise
        assert promised is not None
        drawn = sample(resolved, c, t, scenario.pricing.calibration_queries)
        said = confidences(drawn, promised.basis, calibrator)
        for promise in {*PROMISES, promised.confidence or 1.0}:
            found = certify(said, drawn.correct, promise, scenario.pricing.delta)
            limit = math.inf if found is None else found.threshold
            thresholds.setdefault((tiers[t], promise), {})[classes[c]] = limit
    return Played(label, resolved, priced, thresholds)


def segments_of(scenario: Scenario) -> tuple[Segment, ...]:
    """The segments of a scenario in the terms of demand: waiting per second."""
    return tuple(
        Segment(name, item.share, item.value, item.harm, item.wait / 3600, item.scale)
        for name, item in scenario.pricing.segments.items()
    )


def as_it_is(found: Played) -> tuple[Variant, ...]:
    """Every priced tier as the run sold it."""
    table = measured(found.priced.result.queries)
    return tuple(
        _variant(found, name, _promise(found, name), select(table, table["tier"] == name))
        for name, tier in found.resolved.scenario.tiers.items()
        if tier.price is not None
    )


def variants(runs: Sequence[Played]) -> dict[str, tuple[Variant, ...]]:
    """By tier, every way to sell it that brings something: each run, each promise that some class can keep."""
    found: dict[str, list[Variant]] = {}
    for run in runs:
        table = measured(run.priced.result.queries)
        for name, tier in run.resolved.scenario.tiers.items():
            if tier.price is None:
                continue
            mine = select(table, table["tier"] == name)
            promises: list[float | None] = [
                promise for tier_, promise in sorted(run.thresholds) if tier_ == name
            ]
            for promise in promises or [None]:
                made = _variant(run, name, promise, _resold(run, name, promise, mine))
                if sum(max(0.0, offer.units) for offer in made.offers) > 0:
                    found.setdefault(name, []).append(made)
    return {name: tuple(made) for name, made in found.items()}


def _promise(found: Played, tier: str) -> float | None:
    promise = found.resolved.scenario.tiers[tier].promise
    return promise.confidence if promise is not None else None


def _resold(run: Played, tier: str, promise: float | None, table: Table) -> Table:
    """The tier's queries if a promise were sold where it is certified, at today's prices."""
    terms = run.resolved.scenario.tiers[tier]
    if promise is None or terms.price is None:
        return table
    limits = run.thresholds[tier, promise]
    limit = np.array([limits.get(str(name), math.inf) for name in table["class"]])
    sold = {**table, "accepted": answered(table) & (table["confidence"] >= limit)}
    owed = charges(sold, terms, terms.price)
    return sold | dict(zip(("charge_usd", "refund_usd", "credit_usd"), owed, strict=True))


def _variant(run: Played, tier: str, promise: float | None, table: Table) -> Variant:
    scenario = run.resolved.scenario
    refund = scenario.tiers[tier].price.refund  # type: ignore[union-attr]  # it has a price
    offers = tuple(
        _offer(
            tier, select(table, _asked_by(table, item.classes)), run.priced.bill.overhead, refund
        )
        for item in scenario.pricing.segments.values()
    )
    return Variant(tier, run.label, promise, table, offers)


def _asked_by(table: Table, classes: Sequence[str] | None) -> NDArray[np.bool_]:
    if classes is None:
        return np.ones(size(table), dtype=bool)
    return np.isin(table["class"], classes)


def _offer(tier: str, table: Table, overhead: float, refund: float) -> Offer:
    """A tier's queries as one offer; it does not exist for those who ask nothing in it."""
    if not size(table):
        return Offer(tier, math.nan, 0.0, 0.0, 0.0)
    sold = answered(table) & table["accepted"]
    e2e = latencies(table)["e2e"]
    return Offer(
        name=tier,
        coverage=mean(sold),
        precision=mean(table["correct"][sold]) if sold.any() else 0.0,
        latency_s=mean(np.minimum(e2e, np.nanmax(e2e[np.isfinite(e2e)], initial=0.0))),
        cost_usd=mean(table["cost_usd"]) * overhead,
        gpu_s=mean(table["gpu_seconds"]),
        units=mean(paid(table)),
        at_risk=refund * float(table["charge_usd"][sold].sum()) / size(table),
    )


def misjudged(offer: Offer, points: float) -> Offer:
    """The offer if a share `points` more of the sold answers were wrong than the sample says."""
    down = min(points, offer.precision)
    return replace(
        offer, precision=offer.precision - down, units=offer.units - down * offer.at_risk
    )
